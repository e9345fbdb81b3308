"""How good frozen features are for telling classes apart: weighted k-NN, linear probes, few shots.

Every measure takes features that `labelled.embed_labelled` made and answers with a small frozen dataclass that prints
itself as a table. Dense measures are in `dense.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from indexer.errors import SeenitError

from .labelled import LabelledFeatures

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)  # for 256 images a batch
BLOCKS = (1, 4)  # how many of the last blocks' CLS a linear probe reads
LINEAR_BATCH = 128
LINEAR_STEPS = (1250, 12_500)  # least and most
SHOTS = (1, 2, 5, 10)


@dataclass(frozen=True)
class KnnScores:
    """Share of the images whose class the weighted vote of their k nearest training images gives."""

    accuracy: dict[int, float]  # k -> [0, 1]
    num_train: int
    num_val: int

    @property
    def best(self) -> float:
        return max(self.accuracy.values())

    def table(self) -> str:
        rows = [[str(k), f"{100 * value:.1f}"] for k, value in self.accuracy.items()]
        return format_table(["k", "accuracy %"], rows)


@dataclass(frozen=True)
class LinearProbe:
    """The best rate for one choice of features."""

    blocks: int
    mean_patch: bool  # whether the mean patch of the last block is read too
    rate: float
    accuracy: float  # [0, 1]


@dataclass(frozen=True)
class LinearScores:
    """Linear classifiers on frozen features; as in the reference, rates are chosen on the images that are scored."""

    probes: tuple[LinearProbe, ...]
    num_train: int
    num_val: int

    @property
    def best(self) -> LinearProbe:
        return max(self.probes, key=lambda probe: probe.accuracy)

    def table(self) -> str:
        rows = [
            [str(p.blocks), "yes" if p.mean_patch else "no", f"{p.rate:g}", f"{100 * p.accuracy:.1f}"]
            for p in self.probes
        ]
        return format_table(["blocks", "mean patch", "best rate", "accuracy %"], rows)


@dataclass(frozen=True)
class FewShotScore:
    """Nearest class mean of `shots` images a class, over many draws of these."""

    shots: int
    accuracy: float  # [0, 1], mean over the draws
    interval: float  # half the width of the 95 % confidence interval of that mean
    draws: int


@dataclass(frozen=True)
class FewShotScores:
    scores: tuple[FewShotScore, ...]

    def table(self) -> str:
        rows = [[str(s.shots), f"{100 * s.accuracy:.1f} ± {100 * s.interval:.1f}", str(s.draws)] for s in self.scores]
        return format_table(["shots", "accuracy %", "draws"], rows)


# n training and m validation images, D channels, C classes, R rates
def knn(
    train: LabelledFeatures,
    val: LabelledFeatures,
    *,
    neighbours: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> KnnScores:
    """Weighted k-NN on the last CLS by cosine (Wu et al. 2018, as DINOv2 has it).

    for v: votes[c] = sum over v's k nearest t of class c of exp(cos(v, t) / temperature)
    A k beyond the number of training images is left out; with none left, all of them vote.
    """
    _check(train, val)
    ks = [k for k in neighbours if k <= len(train.labels)] or [len(train.labels)]
    gallery = normalize(train.cls[:, -1], dim=-1)  # (n, D)
    right = dict.fromkeys(ks, 0)
    for queries, labels in zip(val.cls[:, -1].split(1024), val.labels.split(1024), strict=True):
        cosines, nearest = (normalize(queries, dim=-1) @ gallery.T).topk(max(ks))  # (m, K)
        weights = (cosines / temperature).softmax(1)
        votes = one_hot(train.labels[nearest], len(train.classes)) * weights[..., None]  # (m, K, C)
        for k in ks:
            right[k] += int((votes[:, :k].sum(1).argmax(1) == labels).sum())
    return KnnScores({k: right[k] / len(val.labels) for k in ks}, len(train.labels), len(val.labels))


def linear(
    train: LabelledFeatures,
    val: LabelledFeatures,
    *,
    rates: Sequence[float] = RATES,
    steps: int | None = None,
    seed: int = 0,
) -> LinearScores:
    """The reference's grid of linear classifiers, all trained in one pass over the same batches.

    Features: the CLS of the last 1 or 4 blocks, with and without the mean patch. SGD with momentum 0.9, no weight
    decay, the rate falling to 0 by a cosine.
    steps  None: 10 epochs, within LINEAR_STEPS
    """
    _check(train, val)
    if steps is None:
        steps = min(max(LINEAR_STEPS[0], 10 * len(train.labels) // LINEAR_BATCH), LINEAR_STEPS[1])
    generator = torch.Generator().manual_seed(seed)
    choices = [(blocks, mean) for blocks in BLOCKS if blocks <= train.cls.shape[1] for mean in (False, True)]
    inputs = [_linear_input(train, *choice) for choice in choices]
    peak = torch.tensor(rates).repeat_interleave(len(train.classes)) * LINEAR_BATCH / 256  # (R * C,)
    shape = (len(rates), len(train.classes))
    weights = [torch.randn(x.shape[1] + 1, len(peak), generator=generator) * 0.01 for x in inputs]  # (D + 1, R * C)
    for weight in weights:
        weight[-1] = 0  # the bias
    speeds = [torch.zeros_like(weight) for weight in weights]
    for step in range(steps):
        rate = peak * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows = torch.randint(len(train.labels), (LINEAR_BATCH,), generator=generator)
        truth = one_hot(train.labels[rows], shape[1])[:, None]  # (b, 1, C)
        for x, weight, speed in zip(inputs, weights, speeds, strict=True):
            batch = _with_one(x[rows])  # (b, D + 1)
            error = (batch @ weight).unflatten(1, shape).softmax(-1) - truth  # (b, R, C), the cross-entropy's gradient
            speed.mul_(0.9).addmm_(batch.T, error.flatten(1), alpha=1 / LINEAR_BATCH)
            weight.sub_(rate * speed)
    probes = []
    for (blocks, mean), weight in zip(choices, weights, strict=True):
        logits = (_with_one(_linear_input(val, blocks, mean)) @ weight).unflatten(1, shape)  # (m, R, C)
        accuracy = (logits.argmax(-1) == val.labels[:, None]).float().mean(0)  # (R,)
        best = int(accuracy.argmax())
        probes.append(LinearProbe(blocks, mean, float(rates[best]), float(accuracy[best])))
    return LinearScores(tuple(probes), len(train.labels), len(val.labels))


def few_shot(
    train: LabelledFeatures,
    val: LabelledFeatures,
    *,
    shots: Sequence[int] = SHOTS,
    draws: int = 100,
    seed: int = 0,
) -> FewShotScores:
    """The nearest mean (by cosine) of k images of each class, drawn again and again.

    A number of shots that some class does not have is left out. The interval is that of the mean over the draws; the
    images that are scored stay the same.
    """
    _check(train, val)
    members = [torch.nonzero(train.labels == label)[:, 0] for label in range(len(train.classes))]
    members = [rows for rows in members if len(rows)]
    kinds = torch.stack([train.labels[rows[0]] for rows in members])  # (C,)
    possible = [k for k in shots if k <= min(map(len, members))]
    if not possible:
        raise SeenitError(f"a class has fewer than {min(shots)} training images; give more of it")
    generator = torch.Generator().manual_seed(seed)
    gallery, queries = normalize(train.cls[:, -1], dim=-1), normalize(val.cls[:, -1], dim=-1)
    scores = []
    for k in possible:
        accuracies = []
        for _ in range(draws):
            rows = torch.stack([own[torch.randperm(len(own), generator=generator)[:k]] for own in members])  # (C, k)
            means = normalize(gallery[rows].mean(1), dim=-1)  # (C, D)
            answers = kinds[(queries @ means.T).argmax(1)]  # (m,)
            accuracies.append((answers == val.labels).double().mean())
        values = torch.stack(accuracies)
        interval = 1.96 * float(values.std()) / math.sqrt(draws) if draws > 1 else math.inf
        scores.append(FewShotScore(k, float(values.mean()), interval, draws))
    return FewShotScores(tuple(scores))


def format_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, each as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (heads, *rows)]
    return "\n".join(line.rstrip() for line in lines)


def _linear_input(features: LabelledFeatures, blocks: int, mean: bool) -> Tensor:
    """(n, blocks * D), or (n, (blocks + 1) * D) with the mean patch."""
    cls = features.cls[:, -blocks:].flatten(1)
    return torch.cat([cls, features.mean], 1) if mean else cls


def _with_one(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_ones(len(rows), 1)], 1)


def _check(train: LabelledFeatures, val: LabelledFeatures) -> None:
    assert train.classes == val.classes, "both sets must number the same classes"
    if len(set(train.labels.tolist())) < 2:
        raise SeenitError("all training images are of one class; give at least two classes")
