"""Two processes on the CPU do what one process does with the same global batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import draw_photo
from safetensors.torch import load_file

from trainer.config import Config, make_config
from trainer.model.distributed import local_tensor, parallelize
from trainer.train import train

CHANGES = {
    "steps": 4,
    "batch_size": 4,
    "num_local": 1,
    "head_hidden": 32,
    "prototypes": 64,
    "ibot_prototypes": 64,
    "snapshot_every": 2,
    "rate": 5e-2,
    "koleo_weight": 0.5,
}
RUNS: dict[str, dict[str, object]] = {
    "sinkhorn": {},
    "centering, accumulated, frozen": {
        "targets": "centering",
        "accumulate": 2,
        "batch_size": 2,
        "freeze_backbone": 0.5,
    },
    "shards": {"parallel": "fsdp"},
    "high resolution": {"high_res_share": 0.5, "high_res_global_size": 84, "high_res_local_size": 42},
    "shards, high resolution": {
        "high_res_share": 0.5,
        "high_res_global_size": 84,
        "high_res_local_size": 42,
        "parallel": "fsdp",
    },
}
pytestmark = [
    pytest.mark.long,  # what all of them look at is half a minute of training
    pytest.mark.skipif(
        not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo to join processes by"
    ),
]


def config_of(name: str) -> Config:
    return make_config("tiny", changes=CHANGES | RUNS[name])


def run_all(images: Path, out: Path) -> None:
    for name in RUNS:
        if name.startswith("shards"):  # in two parts, so that sharded states are read back, too
            asked = iter([False, False, False, True])
            train(images, out / name, config_of(name), progress=False, say=quiet, stop=asked.__next__)
        train(images, out / name, config_of(name), resume=True, progress=False, say=SAID.append)
    (out / f"said{os.environ.get('RANK', 0)}.txt").write_text("\n".join(SAID))


def scaled_steps(out: Path) -> None:
    """Two steps with loss scaling; in the first a gradient is infinite in the second process's shard only."""
    network = torch.nn.Linear(4, 4)
    parallelize(network, "fsdp", torch.device("cpu"), [], torch.float16)
    optimiser, scaler = torch.optim.AdamW(network.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    moved = []
    for overflows in (True, False):
        optimiser.zero_grad()
        scaler.scale(network(torch.ones(2, 4)).mean()).backward()
        gradient = network.weight.grad
        assert gradient is not None
        if overflows and dist.get_rank() == 1:
            local_tensor(gradient)[0, 0] = torch.inf
        before = local_tensor(network.weight).detach().clone()
        scaler.unscale_(optimiser)
        scaler.step(optimiser)
        scaler.update()
        moved.append(not torch.equal(local_tensor(network.weight), before))
    (out / f"scaled{dist.get_rank()}.json").write_text(json.dumps([*moved, scaler.get_scale()]))


SAID: list[str] = []  # by this process


def quiet(line: str) -> None:
    pass


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Images, and the folders of one process's runs and of two processes' runs."""
    root = tmp_path_factory.mktemp("distributed")
    images, one, two = root / "images", root / "one", root / "two"
    for n in range(9):
        draw_photo(images / f"{n}.jpg", n)
    here = Path(__file__).parents[1]
    code = (
        "import sys, torch; from pathlib import Path; torch.set_num_threads(1)\n"
        "from test_trainer_distributed import scaled_steps, run_all\n"
        "run_all(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "scaled_steps(Path(sys.argv[2]))\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here), str(here / "trainer")]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
    }
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(images), str(two)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        run_all(images, one)
        for child in children:
            _, errors = child.communicate(timeout=120)
            assert child.returncode == 0, errors[-3000:]
    finally:
        for child in children:
            child.kill()
    return images, one, two


def test_one_process_speaks(outcomes: tuple[Path, Path, Path]) -> None:
    _, _, two = outcomes
    assert "going on after step 3" in (two / "said0.txt").read_text()
    assert (two / "said1.txt").read_text() == ""


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_those_of_one_process(outcomes: tuple[Path, Path, Path], name: str) -> None:
    _, one, two = outcomes
    rows = [
        [json.loads(line) for line in (out / name / "metrics.jsonl").read_text().splitlines()] for out in (one, two)
    ]
    assert len(rows[0]) == len(rows[1]) == 4
    for alone, together in zip(*rows, strict=True):
        for key in ("loss", "dino", "ibot", "koleo", "gradient_norm"):
            assert together[key] == pytest.approx(alone[key], rel=1e-3, abs=1e-5), (key, alone["step"])


@pytest.mark.parametrize("name", RUNS)
def test_weights_are_those_of_one_process(outcomes: tuple[Path, Path, Path], name: str) -> None:
    _, one, two = outcomes
    alone, together = (load_file(out / name / "snapshots" / "step_000000004.safetensors") for out in (one, two))
    start = load_file(one / name / "snapshots" / "step_000000002.safetensors")
    assert alone.keys() == together.keys()
    for key, value in alone.items():
        if key.startswith(("student.", "teacher.", "centers.")):
            torch.testing.assert_close(together[key], value, rtol=1e-3, atol=2e-4, msg=key)
    moved = (alone["student.dino_head.mlp.0.weight"] - start["student.dino_head.mlp.0.weight"]).abs().max()
    assert moved > 4e-4  # twice what is allowed above, or equal weights would say nothing


def test_one_process_goes_on_from_the_snapshot_of_two(outcomes: tuple[Path, Path, Path], tmp_path: Path) -> None:
    images, one, two = outcomes
    for source in ("sinkhorn", "shards"):
        out = tmp_path / source
        (out / "snapshots").mkdir(parents=True)
        name = "step_000000002.safetensors"
        (out / "snapshots" / name).write_bytes((two / source / "snapshots" / name).read_bytes())
        train(images, out, config_of("sinkhorn"), resume=True, progress=False, say=quiet)
        alone, resumed = (load_file(o / "backbone.safetensors") for o in (one / "sinkhorn", out))
        for key, value in alone.items():
            torch.testing.assert_close(resumed[key], value, rtol=1e-3, atol=2e-4, msg=key)


def test_what_overflows_in_one_shard_makes_all_skip_the_step(outcomes: tuple[Path, Path, Path]) -> None:
    for rank in range(2):
        assert json.loads((outcomes[2] / f"scaled{rank}.json").read_text()) == [False, True, 2.0**15]
