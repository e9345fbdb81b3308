"""What a run can be told, and what it answers to what it cannot be."""

import dataclasses
import re
from pathlib import Path

import pytest

import trainer
from trainer.config import NETWORKS, ORIGIN, PRESETS, Config, ConfigError, config_from, make_config


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid_and_survives_json(preset: str) -> None:
    config = make_config(preset)
    assert config_from(dataclasses.asdict(config)) == config
    if config.arch != ORIGIN:
        assert config.architecture().image_size == config.global_size


def test_published_values() -> None:
    short, giant = make_config("vitl16_short"), make_config("vitg14")
    assert (short.steps, short.rate, short.warmup * short.steps, short.weight_decay_end) == (125_000, 4e-3, 12_500, 0.4)
    assert (short.prototypes, short.head_bottleneck, short.separate_heads) == (65_536, 256, False)
    assert (giant.steps, giant.rate, giant.warmup * giant.steps, giant.drop_path) == (625_000, 2e-4, 100_000, 0.4)
    assert (giant.prototypes, giant.head_bottleneck, giant.momentum, giant.local_size) == (131_072, 384, 0.994, 98)
    assert NETWORKS["vitg14"].ffn == "swiglu" and NETWORKS["vitl16"].patch_size == 16


def test_the_rate_grows_with_the_root_of_the_images_in_an_update() -> None:
    config = make_config("tiny", changes={"batch_size": 64, "accumulate": 4, "rate": 0.01})
    assert config.scaled_rate == pytest.approx(0.005)


def test_later_changes_win(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('preset = "tiny"\nsteps = 7\nseed = 3\nglobal_scale = [0.5, 1]\nengine = "torch"\n')
    config = make_config("vits14", file=file, changes=["steps=1e2", "local-scale=0.1,0.2", "alarms=false"])
    assert (config.arch, config.steps, config.seed, config.engine) == ("tiny", 100, 3, "torch")
    assert (config.global_scale, config.local_scale, config.alarms) == ((0.5, 1.0), (0.1, 0.2), False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stepz=3", "no key is called 'stepz'; the nearest is steps"),
        ("steps", "write KEY=VALUE"),
        ("steps=many", "steps is 'many'; it must be a whole number"),
        ("steps=0", "steps is 0; it must be at least 1"),
        ("batch_size=2.5", "batch_size is '2.5'; it must be a whole number"),
        ("rate=nan", "finite number|above 0"),
        ("alarms=perhaps", "it must be true or false"),
        ("mask_ratio=0.5", "it must be two numbers"),
        ("mask_ratio=0.5,0.1", "two rising shares"),
        ("engine=gpu", "choose auto or pillow or torch"),
        ("global_size=100", "a multiple of the patch size 14"),
        ("arch=vits15", "no network is called 'vits15'; the nearest is vits14"),
    ],
)
def test_a_wrong_change_is_told_in_one_line(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_config("tiny", changes=[change])
    assert "\n" not in str(caught.value)


def test_a_wrong_file_is_told_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "run.toml"
    broken.write_text("steps = \n[")
    for path in (broken, tmp_path / "none.toml"):
        with pytest.raises(ConfigError, match=re.escape(path.name)) as caught:
            make_config(file=path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="no preset is called 'vits'; the nearest is vits14"):
        make_config("vits")


def test_every_key_is_read_somewhere() -> None:
    folder = Path(trainer.__file__).parent
    code = "".join(path.read_text("utf-8") for path in folder.rglob("*.py") if path.name != "config.py")
    own = (folder / "config.py").read_text("utf-8")
    properties = own[own.index("def images_per_update") : own.index("_SHARES = (")]
    unread = [
        item.name
        for item in dataclasses.fields(Config)
        if not re.search(rf"(config|stage|origin)\.{item.name}\b", code) and f"self.{item.name}" not in properties
    ]
    assert not unread, unread
