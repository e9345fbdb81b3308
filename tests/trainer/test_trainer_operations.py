"""The formulas of the training benchmark against torch's own count of operations; its bytes against a count by hand."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from indexer.backbone.vit import Architecture
from trainer.config import NETWORKS, Config, make_config

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from training_operations import (
    activations_of,
    forward_on_noise,
    kept_bytes,
    layout_of,
    operations_of,
)


def small(**changes: object) -> Config:
    # the distance of KoLeo's neighbours is a product of its own, as are Sinkhorn's, and no part of the networks
    return make_config("tiny", changes={"batch_size": 4, "koleo_weight": 0, **changes})


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"registers": 2, "head_layers": 2}, {"separate_heads": False}, {"arch": "vitl14", "num_local": 1}],
    ids=["mlp", "registers", "one head", "swiglu"],
)
def test_operations_are_those_that_torch_counts(changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "vitl14", Architecture(embed_dim=48, depth=2, num_heads=2, ffn="swiglu"))
    monkeypatch.setattr("trainer.model.student_teacher.sinkhorn", lambda scores, *_, **__: scores.softmax(1))
    config = small(**changes)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the fused one is not counted
        _, losses, batch = forward_on_noise(config, config.architecture())
        losses.total.backward()
    patches = len(batch.masks.picked) / config.batch_size
    ours = operations_of(config, masked_patches=patches)
    assert counter.get_total_flops() / config.batch_size == pytest.approx(ours.total, rel=1e-12)
    assert operations_of(config, padded=True).student > ours.student


def test_the_layout_is_that_of_the_crops() -> None:
    config = make_config("vits14", changes={"registers": 4})
    assert layout_of(config, config.architecture()) == ((2, 261), (8, 54))
    assert layout_of(config, config.architecture(), padded=True) == ((10, 261),)


def test_recomputed_blocks_keep_little_more_than_their_inputs() -> None:
    config = small(batch_size=2)
    recomputing = replace(config, checkpoint_blocks=True)
    kept, recomputed = (kept_bytes(c, c.architecture()) for c in (config, recomputing))
    tokens = sum(n * length for n, length in layout_of(config, config.architecture()))
    spared = (kept - recomputed) / (3 * tokens * 64 * 4)  # in units of what goes into its three blocks
    # normed twice, q, k, v, attention's answer and that packed, before LayerScale twice, before norm, hidden twice 4
    assert 18 <= spared < 18.5
    assert activations_of(config) == kept
    assert activations_of(recomputing) == pytest.approx(recomputed + (kept - recomputed) / 3)
