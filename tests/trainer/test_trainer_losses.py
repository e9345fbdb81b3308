"""Losses, head, masks, schedules and parameter factors: against the reference's numbers and against slow twins."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from indexer.backbone.vit import Architecture, VisionTransformer
from trainer.config import make_config
from trainer.data.masking import block_mask, draw_masks, mask_weights
from trainer.model.heads import Head
from trainer.model.losses import (
    centred_softmax,
    cross_entropy,
    dino_loss,
    ibot_loss,
    koleo_loss,
    moved_center,
    sinkhorn,
)
from trainer.model.optim import cosine, factors_of, frozen_steps, make_optimiser, pace_at, set_pace
from trainer.model.student_teacher import make_network

PARITY = Path(__file__).parents[1] / "data" / "parity"


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    return load_file(PARITY / "losses.safetensors")


@pytest.fixture(scope="module")
def numbers() -> dict[str, Any]:
    return json.loads((PARITY / "reference.json").read_text())


def test_head_gives_the_references_scores(reference: dict[str, Tensor]) -> None:
    head = Head(48, 96, hidden=64, bottleneck=32, layers=3)
    prefix = "head.param."
    head.load_state_dict({k.removeprefix(prefix): v for k, v in reference.items() if k.startswith(prefix)})
    torch.testing.assert_close(head(reference["head.input"]), reference["head.output"], atol=1e-6, rtol=1e-5)


def test_sinkhorn_and_its_dino_loss_are_the_references(reference: dict[str, Tensor]) -> None:
    targets = sinkhorn(reference["dino.teacher"], 0.07)
    torch.testing.assert_close(targets, reference["dino.sinkhorn_t0.07_it3"], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(targets.sum(1), torch.ones(16))
    loss = dino_loss(reference["dino.student"].unflatten(0, (2, 8)), targets.unflatten(0, (2, 8)), 0.1)
    torch.testing.assert_close(loss, reference["dino.loss_sinkhorn"].squeeze(), atol=1e-5, rtol=1e-5)


def test_sinkhorn_survives_scores_that_overflow_an_exponential(reference: dict[str, Tensor]) -> None:
    targets = sinkhorn(reference["dino.teacher"] + 1000, 0.07)
    torch.testing.assert_close(targets, reference["dino.sinkhorn_t0.07_it3"], atol=1e-3, rtol=1e-2)


def test_centering_is_the_references(reference: dict[str, Tensor]) -> None:
    teacher, center = reference["dino.teacher"], torch.zeros(1, 96)
    first = centred_softmax(teacher, center, 0.05)
    torch.testing.assert_close(first, reference["dino.softmax_center_step0_t0.05"], atol=1e-6, rtol=1e-4)
    center = moved_center(center, teacher)
    torch.testing.assert_close(center, reference["dino.center_after1_m0.9"], atol=1e-6, rtol=1e-5)
    second = centred_softmax(teacher, center, 0.05)
    torch.testing.assert_close(second, reference["dino.softmax_center_step1_t0.05"], atol=1e-6, rtol=1e-4)


def test_ibot_loss_is_the_references(reference: dict[str, Tensor]) -> None:
    masks, student = reference["ibot.masks"], reference["ibot.student_masked"]
    weights = mask_weights(masks, masks.flatten().nonzero().squeeze(1))
    torch.testing.assert_close(weights, reference["ibot.masks_weight"])
    targets = sinkhorn(reference["ibot.teacher_masked"], 0.07)
    torch.testing.assert_close(targets, reference["ibot.sinkhorn_t0.07_it3"], atol=1e-6, rtol=1e-4)
    loss = ibot_loss(student, targets, weights, len(masks), 0.1)
    torch.testing.assert_close(loss, reference["ibot.loss"].squeeze(), atol=1e-5, rtol=1e-5)


def test_koleo_is_the_references(reference: dict[str, Tensor]) -> None:
    torch.testing.assert_close(koleo_loss(reference["koleo.input"]), reference["koleo.loss"].squeeze())


def test_koleo_of_one_image_asks_for_nothing() -> None:
    one = torch.randn(1, 8, requires_grad=True)
    koleo_loss(one).backward()
    assert one.grad is not None and not one.grad.any()


def test_dino_loss_is_the_sum_over_pairs() -> None:
    torch.manual_seed(0)
    student, targets = torch.randn(3, 4, 7), torch.randn(2, 4, 7).softmax(-1)
    slow = torch.tensor(0.0)
    for view in student:
        for target in targets:
            slow -= (target * torch.log_softmax(view / 0.1, -1)).sum(-1).mean()
    torch.testing.assert_close(dino_loss(student, targets, 0.1), slow)


def test_cross_entropy_stays_finite_for_extreme_half_precision_scores() -> None:
    scores = torch.tensor([[60000.0, -60000.0]], dtype=torch.float16)
    assert cross_entropy(scores, torch.tensor([[0.5, 0.5]]), 0.1).isfinite().all()


def test_schedules_are_the_references(numbers: dict[str, Any]) -> None:
    expected = numbers["schedules"]
    ours = {
        "lr": [cosine(i, 50, 2e-3, 1e-6, warmup=10) for i in range(50)],
        "last_layer_lr_freeze": [cosine(i, 50, 2e-3, 1e-6, warmup=10, frozen=5) for i in range(50)],
        "momentum": [cosine(i, 50, 0.992, 1.0) for i in range(50)],
        "weight_decay": [cosine(i, 50, 0.04, 0.4) for i in range(50)],
        "teacher_temp": [cosine(i, 15, 0.07, 0.07, warmup=15, warmup_from=0.04) for i in range(15)],
    }
    for name, values in ours.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_parameter_factors_are_the_references(numbers: dict[str, Any]) -> None:
    for row in numbers["param_groups_backbone_reg4_depth3"] + numbers["param_groups_head"]:
        depth = 0 if row["name"].startswith(("mlp.", "last_layer.")) else 3
        factors = factors_of(row["name"], depth, 0.9, 0.2)
        assert factors.rate == pytest.approx(row["lr_multiplier"]), row["name"]
        assert factors.weight_decay == row["wd_multiplier"], row["name"]
        assert factors.is_prototype == row["is_last_layer"], row["name"]


def test_every_parameter_is_in_one_group_with_its_own_rate() -> None:
    config = make_config("tiny", changes={"layer_decay": 0.5, "freeze_last_layer": 0.5, "registers": 2, "warmup": 0})
    network = make_network(VisionTransformer(config.architecture()), config)
    optimiser = make_optimiser(network, config.architecture().depth, config)
    grouped = [id(p) for group in optimiser.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())
    set_pace(optimiser, pace_at(config, 0))
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    rate_of = {name: rates[id(parameter)] for name, parameter in network.named_parameters()}
    full = config.scaled_rate
    assert rate_of["dino_head.last_layer.weight_v"] == 0
    assert rate_of["dino_head.mlp.0.weight"] == pytest.approx(full)
    assert rate_of["backbone.blocks.0.attn.qkv.weight"] == pytest.approx(full * 0.5**3)
    assert rate_of["backbone.patch_embed.proj.weight"] == pytest.approx(full * 0.5**4 * 0.2)


def test_the_backbone_warms_up_after_its_frozen_steps() -> None:
    config = make_config("tiny", changes={"steps": 100, "freeze_backbone": 0.2, "warmup": 0.1})
    assert frozen_steps(config) == 20
    assert pace_at(config, 19).backbone_rate == 0 < pace_at(config, 19).rate
    assert pace_at(config, 29).backbone_rate == pytest.approx(config.scaled_rate)
    assert pace_at(config, 99).backbone_rate < 0.01 * config.scaled_rate


def test_masks_follow_the_ratios_and_depend_on_seed_and_batch_only() -> None:
    config = make_config("tiny", changes={"batch_size": 16, "mask_ratio": "0.2,0.4"})
    masks = draw_masks(config, (16, 16), 3)
    assert masks.shape == (32, 256)
    counts = masks.sum(1)
    assert (counts > 0).sum() == 16  # half of the crops
    assert counts.max() <= 0.4 * 256 and counts[counts > 0].float().mean() == pytest.approx(0.3 * 256, rel=0.1)
    assert torch.equal(masks, draw_masks(config, (16, 16), 3))
    assert not torch.equal(masks, draw_masks(config, (16, 16), 4))


def test_processes_draw_their_parts_of_the_same_masks() -> None:
    config = make_config("tiny", changes={"batch_size": 8})
    everything = draw_masks(config, (8, 8), 5).unflatten(0, (2, 8))  # (2, B, N)
    parts = [draw_masks(config, (8, 8), 5, rank=r, world_size=2).unflatten(0, (2, 4)) for r in range(2)]
    assert torch.equal(everything, torch.cat(parts, dim=1))


def test_masks_are_made_of_blocks() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = block_mask((16, 16), 60, rng)
        assert 40 < mask.sum() <= 60
        seams = (mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum()
        assert seams < 80  # 60 patches strewn about have some 180


def test_a_network_without_prototypes_of_its_own_for_patches_shares_them() -> None:
    config = make_config("tiny", changes={"separate_heads": "false"})
    network = make_network(VisionTransformer(Architecture(embed_dim=16, depth=1, num_heads=1, image_size=56)), config)
    outputs = network([torch.randn(2, 3, 56, 56)], None, torch.tensor([0, 17]))
    assert outputs.patch_scores.shape == (2, config.prototypes)
    assert not any("ibot" in name for name, _ in network.named_parameters())
