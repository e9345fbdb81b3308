"""What one update of training costs, without running it fast: operations, and bytes that must be held.

    python tests/benchmarks/training_operations.py [--arch vits14 --arch vitl14] [--set KEY=VALUE ...]

Operations are those of matrix products and convolutions (a multiplication and an addition are two), by formula; a test
holds the formulas to torch's own counter. Elementwise work is left out. A fused attention computes its scores once more
in backward, which is not counted. Bytes of activations are counted: two images go forward through one and two blocks
on the CPU, every tensor that autograd keeps is weighed, and further blocks keep as much as the second.
"""

import argparse
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch

from indexer.backbone.attention import Layout
from indexer.backbone.vit import Architecture, VisionTransformer
from trainer.config import Config, make_config
from trainer.data.masking import draw_masks, pick_masked
from trainer.evaluate.probes import format_table
from trainer.model.student_teacher import (
    Centers,
    Losses,
    MaskedCrops,
    Network,
    compute_losses,
    make_network,
    prepare_blocks,
)


@dataclass(frozen=True)
class Operations:
    """Of one image in one update."""

    student: float  # backbone, forward
    student_backward: float
    teacher: float
    heads: float  # student's forward and backward, teacher's forward

    @property
    def total(self) -> float:
        return self.student + self.student_backward + self.teacher + self.heads


def layout_of(config: Config, architecture: Architecture, *, padded: bool = False) -> Layout:
    """One image's crops as (number, tokens) of each size; padded: every crop as long as the longest."""
    counts = ((2, config.global_size), (config.num_local, config.local_size))
    groups = [(n, 1 + architecture.num_registers + (size // architecture.patch_size) ** 2) for n, size in counts if n]
    if padded:
        return ((sum(n for n, _ in groups), max(length for _, length in groups)),)
    return tuple(groups)


def operations_of(config: Config, *, padded: bool = False, masked_patches: float | None = None) -> Operations:
    """masked_patches: of one image's two global crops; None: as many as are masked on average."""
    architecture = config.architecture()
    layout = layout_of(config, architecture, padded=padded)
    blocks, embedding = _blocks(architecture, layout), _embedding(architecture, layout)
    if masked_patches is None:
        patches = (config.global_size // architecture.patch_size) ** 2
        masked_patches = 2 * config.mask_probability * sum(config.mask_ratio) / 2 * patches
    views = 2 + config.num_local
    dino = _head(architecture, config, config.prototypes)
    ibot = _head(architecture, config, config.ibot_prototypes) if config.separate_heads else dino
    heads = dino * (3 * views + 2) + ibot * masked_patches * (3 + 1)  # backward is two forwards
    seen_by_teacher = layout_of(replace(config, num_local=0), architecture)
    return Operations(
        student=blocks + embedding,
        student_backward=2 * blocks + embedding,  # pixels need no gradient
        teacher=_blocks(architecture, seen_by_teacher) + _embedding(architecture, seen_by_teacher),
        heads=heads,
    )


def _blocks(architecture: Architecture, layout: Layout) -> float:
    dim, hidden = architecture.embed_dim, architecture.hidden_dim
    products = 2 if architecture.ffn == "mlp" else 3  # SwiGLU has a gate
    linear = 2 * (4 * dim * dim + products * dim * hidden)  # of one token
    attention = sum(n * 4 * length * length * dim for n, length in layout)
    return architecture.depth * (sum(n * length for n, length in layout) * linear + attention)


def _embedding(architecture: Architecture, layout: Layout) -> float:
    patches = sum(n * (length - 1 - architecture.num_registers) for n, length in layout)
    return patches * 2 * 3 * architecture.patch_size**2 * architecture.embed_dim


def _head(architecture: Architecture, config: Config, prototypes: int) -> float:
    """Of one token, forward."""
    widths = [architecture.embed_dim, *[config.head_hidden] * (config.head_layers - 1), config.head_bottleneck]
    return 2 * sum(wide * narrow for wide, narrow in pairwise([*widths, prototypes]))


def forward_on_noise(config: Config, architecture: Architecture) -> tuple[Network, Losses, MaskedCrops]:
    """One forward of student and teacher, and the losses."""
    torch.manual_seed(0)
    student, teacher = (make_network(VisionTransformer(architecture), config) for _ in range(2))
    teacher.requires_grad_(False)
    prepare_blocks(student.backbone, recompute=config.checkpoint_blocks, compiled=False)
    side = config.global_size // architecture.patch_size
    batch = MaskedCrops(
        torch.randn(2 * config.batch_size, 3, config.global_size, config.global_size),
        torch.randn(config.num_local * config.batch_size, 3, config.local_size, config.local_size),
        pick_masked(draw_masks(config, (side, side), 0)),
    )
    half = config.precision == "bfloat16"
    autocast = partial(torch.autocast, "cpu", torch.bfloat16) if half else nullcontext
    centers = Centers(config.prototypes, config.ibot_prototypes)
    losses = compute_losses(student, teacher, centers, batch, config, temperature=0.05, autocast=autocast)
    return student, losses, batch


def kept_bytes(config: Config, architecture: Architecture) -> float:
    """What autograd keeps of one image until backward, weights left out."""
    sizes: dict[int, int] = {}
    held = []  # a storage that is freed would give its address to the next one

    def weigh(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        held.append(storage)
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
        student, _, _ = forward_on_noise(config, architecture)
    for parameter in student.parameters():
        sizes.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(sizes.values()) / config.batch_size


def activations_of(config: Config) -> float:
    """Bytes of an image, from networks of one and two blocks; where blocks are recomputed, one is whole at a time."""
    architecture = config.architecture()
    one, two = (kept_bytes(config, replace(architecture, depth=depth)) for depth in (1, 2))
    kept = one + (architecture.depth - 1) * (two - one)
    if config.checkpoint_blocks:
        plain = replace(config, checkpoint_blocks=False)
        kept += kept_bytes(plain, replace(architecture, depth=1)) - one
    return kept


def count_weights(config: Config) -> int:
    with torch.device("meta"):
        network = make_network(VisionTransformer(config.architecture()), config)
    return sum(parameter.numel() for parameter in network.parameters())


def operations_table(config: Config) -> str:
    """Packed and unpacked crops cost the same products; unpacked ones need two of each, with fewer rows."""
    architecture = config.architecture()
    rows = []
    for way, padded in (("packed", False), ("unpacked", False), ("padded", True)):
        found = operations_of(config, padded=padded)
        groups = layout_of(config, architecture, padded=padded)
        lengths = [n * length for n, length in groups]
        parts = lengths if way == "unpacked" else [sum(lengths)]
        numbers = (found.student, found.student_backward, found.teacher, found.heads, found.total)
        launches = 4 * architecture.depth * len(parts)  # the forward's products with a block's weights
        rows.append([way, *(f"{n / 1e9:.1f}" for n in numbers), str(launches), " + ".join(map(str, parts))])
    heads = ["crops", "student", "its backward", "teacher", "heads", "total GFLOP", "products", "tokens an image"]
    return format_table(heads, rows)


def bytes_table(config: Config) -> str:
    weights = count_weights(config)
    parts = {"student": 4, "gradients": 4, "two moments": 8, "teacher": 4}  # bytes a weight
    rows = [[name, f"{size * weights / 1e9:.2f} GB"] for name, size in parts.items()]
    for precision in ("float32", "bfloat16"):
        for recomputed in (False, True):
            measured = replace(config, batch_size=2, precision=precision, checkpoint_blocks=recomputed)
            name = f"activations, {precision}{', blocks recomputed' if recomputed else ''}"
            rows.append([name, f"{activations_of(measured) / 1e6:.0f} MB an image"])
    return format_table([f"{weights / 1e6:.1f} M weights with heads", "bytes"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", action="append")
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    for arch in given.arch or ["vits14", "vitl14"]:
        config = make_config(arch, changes=["drop_path=0", *given.set])
        print(f"{arch}: operations of one image in one update\n{operations_table(config)}\n\n{bytes_table(config)}\n")


if __name__ == "__main__":
    main()
