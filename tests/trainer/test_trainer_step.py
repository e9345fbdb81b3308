"""One step of the method: against a slow twin written from the paper, and against itself computed in other ways."""

import math
from contextlib import nullcontext
from dataclasses import replace
from functools import partialmethod
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from indexer.backbone.vit import Architecture, VisionTransformer
from trainer.config import Config, make_config
from trainer.data.masking import draw_masks, pick_masked
from trainer.model.optim import clip_gradients, update_ema
from trainer.model.student_teacher import (
    Centers,
    FeatureTeacher,
    Losses,
    MaskedCrops,
    Network,
    compute_losses,
    make_network,
    make_predictor,
    prepare_blocks,
    set_learning,
)

TINY = Architecture(embed_dim=24, depth=2, num_heads=2, num_registers=2, image_size=56, interpolate_offset=0.0)
B, V = 3, 2  # images, local views of each


def config_with(**changes: object) -> Config:
    small = {"batch_size": B, "num_local": V, "prototypes": 12, "ibot_prototypes": 10, "head_hidden": 16}
    return make_config("tiny", changes={**small, "head_bottleneck": 8, "global_size": 56, "local_size": 28, **changes})


def network(config: Config, seed: int, architecture: Architecture = TINY) -> Network:
    torch.manual_seed(seed)
    made = make_network(VisionTransformer(architecture), config)
    for parameter in made.parameters():  # norms and LayerScale too, so that nothing is the identity
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def batch_of(config: Config) -> MaskedCrops:
    torch.manual_seed(9)
    masks = draw_masks(replace(config, mask_probability=0.7, mask_ratio=(0.3, 0.5)), (4, 4), 0)
    assert masks.sum() > 8
    return MaskedCrops(torch.randn(2 * B, 3, 56, 56), torch.randn(V * B, 3, 28, 28), pick_masked(masks))


def step(
    student: Network,
    teacher: Network | FeatureTeacher,
    config: Config,
    batch: MaskedCrops,
    centers: Centers | None = None,
) -> Losses:
    centers = centers or Centers(config.prototypes, config.ibot_prototypes)
    losses = compute_losses(student, teacher, centers, batch, config, temperature=0.05, autocast=nullcontext)
    student.zero_grad()
    losses.total.backward()
    return losses


def gradients(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def assert_same_gradients(one: dict[str, Tensor], two: dict[str, Tensor], rtol: float = 2e-3) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(two[name], value, rtol=rtol, atol=max(scale, 1e-6) * rtol, msg=name)


# The slow twin: one image at a time, one head, one query and one pair of crops at a time, as the papers' formulas read.


def slow_tokens(net: Network, image: Tensor, mask: Tensor | None) -> Tensor:
    """(3, S, S) -> (1 + R + N, D), normalised."""
    vit, weights = net.backbone, dict(net.backbone.named_parameters())
    side = image.shape[-1] // 14
    kernel = weights["patch_embed.proj.weight"].flatten(1)
    tokens = []
    for row in range(side):
        for col in range(side):
            patch = image[:, 14 * row : 14 * row + 14, 14 * col : 14 * col + 14].flatten()
            tokens.append(kernel @ patch + weights["patch_embed.proj.bias"])
    if mask is not None:
        tokens = [weights["mask_token"][0] if hidden else token for token, hidden in zip(tokens, mask, strict=True)]
    positions = weights["pos_embed"][0]
    grid = positions[1:].T.reshape(1, -1, 4, 4)
    grid = grid if side == 4 else F.interpolate(grid, size=(side, side), mode="bicubic")
    placed = [token + grid[0, :, n // side, n % side] for n, token in enumerate(tokens)]
    x = torch.stack([weights["cls_token"][0, 0] + positions[0], *weights["register_tokens"][0], *placed])
    for block in cast(Any, vit.blocks):
        y = F.layer_norm(x, x.shape[1:], block.norm1.weight, block.norm1.bias, 1e-6)
        query, key, value = (y @ block.attn.qkv.weight.T + block.attn.qkv.bias).chunk(3, 1)
        heads = []
        for q, k, v in zip(query.chunk(2, 1), key.chunk(2, 1), value.chunk(2, 1), strict=True):
            rows = [torch.softmax(k @ one / math.sqrt(len(one)), 0) @ v for one in q]
            heads.append(torch.stack(rows))
        y = torch.cat(heads, 1) @ block.attn.proj.weight.T + block.attn.proj.bias
        x = x + block.ls1.gamma * y
        y = F.layer_norm(x, x.shape[1:], block.norm2.weight, block.norm2.bias, 1e-6)
        y = F.gelu(y @ block.mlp.fc1.weight.T + block.mlp.fc1.bias) @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
        x = x + block.ls2.gamma * y
    return F.layer_norm(x, x.shape[1:], vit.norm.weight, vit.norm.bias, 1e-6)


def slow_scores(head: Any, token: Tensor) -> Tensor:
    hidden = token
    for layer in head.mlp:
        hidden = F.gelu(hidden) if isinstance(layer, torch.nn.GELU) else layer.weight @ hidden + layer.bias
    hidden = hidden / hidden.norm()
    last = head.last_layer
    return torch.stack([g * (v @ hidden) / v.norm() for g, v in zip(last.weight_g[:, 0], last.weight_v, strict=True)])


def slow_sinkhorn(scores: Tensor, temperature: float) -> Tensor:
    q = torch.exp(scores.double() / temperature)
    for _ in range(3):
        q = q / q.sum(0, keepdim=True) / q.shape[1]
        q = q / q.sum(1, keepdim=True) / q.shape[0]
    return (q * len(q)).float()


def slow_entropy(target: Tensor, scores: Tensor) -> Tensor:
    return -(target * torch.log(torch.softmax(scores / 0.1, 0))).sum()


def slow_total(student: Network, teacher: Network, batch: MaskedCrops, config: Config) -> Tensor:
    first = 1 + TINY.num_registers
    hidden = batch.masks.hidden
    places = [(crop, patch) for crop, mask in enumerate(hidden) for patch in mask.nonzero().flatten().tolist()]
    with torch.no_grad():
        theirs = [slow_tokens(teacher, image, None) for image in batch.global_crops]
        targets = slow_sinkhorn(torch.stack([slow_scores(teacher.dino_head, t[0]) for t in theirs]), 0.05)
        head = teacher.ibot_head or teacher.dino_head
        patches = torch.stack([slow_scores(head, theirs[crop][first + patch]) for crop, patch in places])
        patch_targets = slow_sinkhorn(patches, 0.05)
    mine = [slow_tokens(student, i, m) for i, m in zip(batch.global_crops, hidden, strict=True)]
    small = [slow_tokens(student, image, None) for image in batch.local_crops]

    terms = []
    for n in range(B):
        views = [slow_scores(student.dino_head, mine[v * B + n][0]) for v in range(2)]
        others = [slow_scores(student.dino_head, small[v * B + n][0]) for v in range(V)]
        wanted = [targets[v * B + n] for v in range(2)]
        for t, target in enumerate(wanted):
            terms.append(slow_entropy(target, views[1 - t]))
            terms += [slow_entropy(target, local) for local in others]
    dino = sum(terms) / len(terms)

    ibot = torch.tensor(0.0)
    head = student.ibot_head or student.dino_head
    for (crop, patch), target in zip(places, patch_targets, strict=True):
        entropy = slow_entropy(target, slow_scores(head, mine[crop][first + patch]))
        ibot = ibot + entropy / hidden[crop].sum() / len(hidden)

    koleo = torch.tensor(0.0)
    for v in range(2):
        points = [token[0] / token[0].norm() for token in mine[v * B : (v + 1) * B]]
        for i, point in enumerate(points):
            nearest = max((j for j in range(B) if j != i), key=lambda j: float((point @ points[j]).detach()))
            koleo = koleo - torch.log((point - points[nearest]).norm()) / B
    return config.dino_weight * dino + config.ibot_weight * ibot + config.koleo_weight * koleo


@pytest.mark.slow
@pytest.mark.parametrize("separate", [True, False])
def test_a_whole_step_is_the_papers(separate: bool) -> None:
    config = config_with(separate_heads=separate, ibot_weight=0.7, koleo_weight=0.3)
    if not separate:
        config = replace(config, ibot_prototypes=config.prototypes)
    student, teacher, batch = network(config, 1), network(config, 2), batch_of(config)
    losses = step(student, teacher, config, batch)
    fast = gradients(student)
    student.zero_grad()
    slow = slow_total(student, teacher, batch, config)
    slow.backward()
    torch.testing.assert_close(losses.total, slow, rtol=1e-4, atol=1e-4)
    assert_same_gradients(gradients(student), fast)
    assert len(fast) == len(list(student.parameters()))  # every parameter learns


def test_packed_crops_are_the_unpacked_ones() -> None:
    packed, unpacked = config_with(packed=True), config_with(packed=False)
    student, teacher, batch = network(packed, 1), network(packed, 2), batch_of(packed)
    one = step(student, teacher, packed, batch)
    first = gradients(student)
    two = step(student, teacher, unpacked, batch)
    torch.testing.assert_close(one.total, two.total)
    assert_same_gradients(first, gradients(student))


def test_recomputed_blocks_change_nothing_even_where_samples_drop_out() -> None:
    config, architecture = config_with(), replace(TINY, drop_path=0.5)
    student, teacher, batch = network(config, 1, architecture).train(), network(config, 2), batch_of(config)
    found = []
    for recompute in (False, True):
        prepare_blocks(student.backbone, recompute=recompute, compiled=False)
        torch.manual_seed(3)
        found.append((step(student, teacher, config, batch).total, gradients(student)))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert_same_gradients(found[0][1], found[1][1])


@pytest.mark.slow
def test_compiled_blocks_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced with their gradients, as for every compiler; a run with the real one takes minutes to begin."""
    traced = partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    config, architecture = config_with(), replace(TINY, drop_path=0.5)
    student, teacher, batch = network(config, 1, architecture).train(), network(config, 2), batch_of(config)
    found = []
    for compiled in (False, True):
        prepare_blocks(student.backbone, recompute=False, compiled=compiled)
        torch.manual_seed(3)
        found.append((step(student, teacher, config, batch).total, gradients(student)))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert_same_gradients(found[0][1], found[1][1])


def test_centers_follow_the_teacher() -> None:
    config = config_with(targets="centering")
    student, teacher, batch = network(config, 1), network(config, 2), batch_of(config)
    centers = Centers(config.prototypes, config.ibot_prototypes)
    first = step(student, teacher, config, batch, centers)
    assert centers.dino.abs().sum() > 0 and centers.ibot.abs().sum() > 0
    second = step(student, teacher, config, batch, centers)
    assert not torch.equal(first.targets, second.targets)
    torch.testing.assert_close(second.targets.sum(1), torch.ones(2 * B))


@pytest.mark.parametrize("change", [{"ibot_weight": 0}, {"koleo_weight": 0}, {"num_local": 0}, {"dino_weight": 0}])
def test_parts_can_be_left_out(change: dict[str, object]) -> None:
    config = config_with(**change)
    student, teacher, batch = network(config, 1), network(config, 2), batch_of(config)
    if not config.num_local:
        batch = replace(batch, local_crops=batch.local_crops[:0])
    assert step(student, teacher, config, batch).total.isfinite()


def test_a_distilled_student_sees_what_its_teacher_sees() -> None:
    config = config_with(distill_from="somewhere")
    student, teacher, batch = network(config, 1), network(config, 2), batch_of(config)
    step(student, teacher, config, batch)
    assert student.backbone.mask_token.grad is None
    same = step(teacher, teacher, replace(config, student_temperature=0.05), batch)
    # student and teacher alike: what is left of iBOT's loss is what Sinkhorn-Knopp adds to the teacher's own softmax
    assert same.ibot < step(student, teacher, replace(config, student_temperature=0.05), batch).ibot


@pytest.mark.slow
def test_features_of_a_frozen_backbone_can_be_learnt_from() -> None:
    config = config_with(distill_from="somewhere", num_local=0, koleo_weight=0)
    torch.manual_seed(0)
    wide = VisionTransformer(Architecture(embed_dim=40, depth=1, num_heads=2, image_size=56))
    for parameter in wide.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    student = make_predictor(VisionTransformer(TINY), 40, config)
    batch = replace(batch_of(config), local_crops=torch.empty(0, 3, 28, 28))
    centers, optimiser = Centers(40, 40), torch.optim.Adam(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        losses.append(step(student, FeatureTeacher(wide), config, batch, centers).total.item())
        optimiser.step()
    assert losses[-1] < 0.7 * losses[0]


def test_only_what_shall_learn_has_gradients() -> None:
    config = config_with(train_blocks=1)
    student, teacher, batch = network(config, 1), network(config, 2), batch_of(config)
    set_learning(student, config, backbone=False)
    step(student, teacher, config, batch)
    assert not any(name.startswith("backbone") for name in gradients(student))
    set_learning(student, config, backbone=True)
    step(student, teacher, config, batch)
    learning = {name.split(".")[2] for name in gradients(student) if name.startswith("backbone.blocks")}
    assert learning == {"1"}


@pytest.mark.slow
def test_bfloat16_is_near_float32() -> None:
    config = config_with()
    student, teacher, batch = network(config, 1), network(config, 2), batch_of(config)
    exact = step(student, teacher, config, batch).total.item()
    centers = Centers(config.prototypes, config.ibot_prototypes)
    rough = compute_losses(
        student,
        teacher,
        centers,
        batch,
        config,
        temperature=0.05,
        autocast=lambda: torch.autocast("cpu", torch.bfloat16),
    ).total
    rough.backward()
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact, rel=0.05)


def test_the_teacher_follows_by_its_momentum() -> None:
    config = config_with()
    student, teacher = network(config, 1), network(config, 2)
    before = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        update_ema(teacher, student, 0.75)
    for old, new, goal in zip(before, teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * goal)


def test_each_part_is_clipped_by_itself() -> None:
    config = config_with()
    student = network(config, 1)
    for part, size in zip(student.parts(), (100.0, 1e-3, 1e-3), strict=True):
        for parameter in part.parameters():
            parameter.grad = torch.full_like(parameter, size)
    assert clip_gradients(student.parts(), 3.0) > 100
    norms = [torch.stack([g.norm() for g in gradients(part).values()]).norm().item() for part in student.parts()]
    assert norms[0] == pytest.approx(3.0, rel=1e-4)
    assert all(gradient.eq(1e-3).all() for gradient in gradients(student.dino_head).values())
