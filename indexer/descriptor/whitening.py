"""From a frozen backbone's tokens to the two things that are stored of an image: one global vector, a few patches.

Raw DINOv2 tokens make poor descriptors for finding the same thing again: a few directions carry most of the variance
and say "a photo", not "this photo". So several layers are read, and means and whitening are fitted on the indexed
images themselves. The whole chain (centre, whiten each layer, keep the main directions of all of them together) is
one affine map, which is what a `Whitening` holds. A small corpus has few statistics of its own. Its whitening leans on
a prior, the statistics of other photos that a backbone's file may carry, as if `PRIOR_IMAGES` of them had been indexed
too; a backbone without one makes do with synthetic views of the corpus itself, see `view_statistics`.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import SeenitError
from .view_statistics import shrink_covariance, within_views

if TYPE_CHECKING:
    from ..backbone.vit import TokenFeatures

# B images, N patches, K of them kept, D channels of the backbone, L layers read, G global and T token dimensions

# Chosen with covers, landmarks, paris and grocery in sight (retrieval_quality.py); how flat it is was not kept.
PRIOR_IMAGES = 1000  # a prior from photos weighs as much as so many images
ORIGIN_IMAGES = 1  # without a prior, as if so many images with a vector of zeros had been indexed
PRIOR_RANK = 192  # directions of the global covariance that a prior keeps; not tuned
# Of what is whitened away beside a prior: how views of one photo differ, which the prior knows. More of it orders other
# photos of a motif better and tells matches worse from the rest, see docs/log.md
VIEW_SHARE = 0.4
# Where views of the corpus itself tell: the corpus has half of its share at CORPUS_HALF images. mAP by the global
# vectors alone at shares of the corpus of .6, .3, .1, 0. Fitted on 600 images: covers .725 - .734 .726, landmarks .663
# .657 .620 .562, paris .519 .586 .670 .786; on 30: covers .665 - .695 .674, landmarks .548 - .559 .552, paris .729 -
# .791 .826. So on all three sets; none is held out for it
CORPUS_SHARE, CORPUS_HALF = 0.3, 100
_TINY = 1e-12


@dataclass(frozen=True)
class DescriptorConfig:
    """All that decides a vector besides the backbone and the whitening. Depths are fractions: 1 is the last block.

    Blocks and tokens were chosen on covers and paintings; `descriptor_ablation.py` prints what each step brings.
    Patches of blocks 6, 7, 9 and 10 of 12 are no better than those of block 8, tokens of fewer than 192 numbers are
    worse, and 2 bits a number lose .01 to .02 against 32, 1 bit .02 to .04. The rest was not tuned.
    """

    cls_depths: tuple[float, ...] = (1.0, 11 / 12)  # where the CLS token is read
    mean_depths: tuple[float, ...] = (10 / 12, 9 / 12)  # where the mean of the patches is read
    global_dim: int = 512  # at most; a small backbone has fewer
    shrinkage: float = 0.05  # share of a layer's mean variance that is added to all its variances before whitening
    token_depth: float = 8 / 12  # where patch tokens are read
    token_dim: int = 192  # at most; a small backbone has fewer
    num_tokens: int = 64  # patches kept of each image; a small grid has fewer
    token_bits: int = 2  # of each number of a token as it is stored
    part_bits: int = 0  # 8: of each number of the pooled features that are kept beside the patches; 0: none are kept
    colour_bits: int = 0  # 8: of each of the two numbers of a kept patch's mean colour; 0: none are kept
    num_views: int = 0  # synthetic views that the whitening is fitted on as well, where a backbone carries no prior
    dark_below: int = 0  # mean grey level of images that are brightened before they are described; 0: none are

    @property
    def settings(self) -> dict[str, object]:
        """By name, as an index's manifest keeps them; `from_settings` reads them."""
        return asdict(self)

    @property
    def version(self) -> str:
        """The settings as text; equal texts make equal vectors."""
        return json.dumps(self.settings, sort_keys=True)

    @classmethod
    def from_settings(cls, settings: Mapping[str, object]) -> "DescriptorConfig":
        """The config of an index's manifest; ValueError where a setting is unknown or no number.

        A setting that is missing has its default: one that is added later gets the default that means "as before".
        """
        known = {field.name: field.default for field in fields(cls)}
        if unknown := sorted(settings.keys() - known.keys()):
            raise ValueError(f"unknown setting {unknown[0]!r}")
        return cls(**{name: _as(value, known[name]) for name, value in settings.items()})

    def layers_of(self, depth: int) -> list[int]:
        """The blocks to ask of `VisionTransformer.intermediate`, ascending, the first is 0."""
        depths = (*self.cls_depths, *self.mean_depths, self.token_depth)
        return sorted({_block(fraction, depth) for fraction in depths})

    def patch_layers_of(self, depth: int) -> list[int]:
        """Those of them of which more than CLS is read."""
        return sorted({_block(fraction, depth) for fraction in (*self.mean_depths, self.token_depth)})


def _as(value: object, default: object) -> Any:
    """A value from JSON of the default's kind; ValueError where it is none."""
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return tuple(_as(one, default[0]) for one in value)
    right = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, right) or isinstance(value, bool) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"{value!r} is no number")
    return type(default)(value)  # type: ignore[call-arg]


NUM_VIEWS = 300  # of a new index
DARK_BELOW = 65  # likewise

_NEW = DescriptorConfig(part_bits=8, colour_bits=8, num_views=NUM_VIEWS, dark_below=DARK_BELOW)
# How much of its patches an image keeps, by the name that a user gives it: bytes an image, at 192 numbers a token; the
# pooled features take 1.5 kB more with a ViT-S
DESCRIPTOR_CONFIGS = {
    "compact": replace(_NEW, num_tokens=40, token_bits=1),  # 1 kB
    "balanced": _NEW,  # 3 kB
    "full": replace(_NEW, num_tokens=65535, token_bits=8),  # 49 kB: every patch
}


@dataclass(frozen=True)
class PooledFeatures:
    """What is kept of B images before any statistics: about 55 kB each with a ViT-S.

    parts      (B, L, D)  float32, L2-normalised
    tokens     (B, K, D)  float16
    positions  (B, K, 2)  uint8, row and column of each token
    colours    (B, K, 2)  int8, mean colour of each token's patch, see `mean_colours`; None where nobody asks for them
    """

    parts: Tensor
    tokens: Tensor
    positions: Tensor
    colours: Tensor | None = None

    def row(self, n: int) -> "PooledFeatures":
        """Image n alone, as a batch of one; a copy, which does not keep the others in memory."""
        parts, tokens, positions = (one[n : n + 1].clone() for one in (self.parts, self.tokens, self.positions))
        return PooledFeatures(
            parts, tokens, positions, None if self.colours is None else self.colours[n : n + 1].clone()
        )


@dataclass(frozen=True)
class Whitening:
    """The statistics of a corpus as two affine maps, x -> (x - mean) @ projection.

    mean              (L * D,)    float32
    projection        (L * D, G)
    token_mean        (D,)
    token_projection  (D, T)
    num_images      how many images it was fitted on
    kind_projection  (L, D, D), of each part, see `kind_vectors`; None where nothing tells how views of an image differ
    """

    config: DescriptorConfig
    mean: Tensor
    projection: Tensor
    token_mean: Tensor
    token_projection: Tensor
    num_images: int
    kind_projection: Tensor | None = None

    @property
    def global_dim(self) -> int:
        return self.projection.shape[1]

    @property
    def token_dim(self) -> int:
        return self.token_projection.shape[1]

    @cached_property
    def id(self) -> str:
        """32 hex digits that tell this whitening from every other; each record names the one that made its vectors."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in _tensors(self).items():
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().astype("<f4").tobytes())
        return digest.hexdigest()


def pool(features: "Sequence[TokenFeatures]", config: DescriptorConfig, depth: int) -> PooledFeatures:
    """The raw material of B images of one shape; which patches are kept depends on the images alone.

    features  of the blocks `config.layers_of(depth)`, in that order, after the final norm
    depth     how many blocks the backbone has
    """
    source = token_features(features, config, depth)
    patches = source.patches.float()  # (B, N, D)
    kept = select_patches(patches, config.num_tokens)  # (B, K)
    tokens = patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[-1]))  # (B, K, D)
    cols = source.grid[1]
    positions = torch.stack([kept // cols, kept % cols], dim=-1)  # (B, K, 2)
    return PooledFeatures(
        parts_of(features, config, depth).cpu(),
        torch.nan_to_num(tokens).clamp(-65504, 65504).half().cpu(),
        positions.to(torch.uint8).cpu(),
    )


def parts_of(features: "Sequence[TokenFeatures]", config: DescriptorConfig, depth: int) -> Tensor:
    """What the global vectors of B images are made of, on the features' device: (B, L, D) float32, L2-normalised."""
    at = dict(zip(config.layers_of(depth), features, strict=True))
    cls = [at[_block(fraction, depth)].cls for fraction in config.cls_depths]
    means = [at[_block(fraction, depth)].patches.float().mean(1) for fraction in config.mean_depths]
    parts = torch.stack([part.float() for part in (*cls, *means)], dim=1)  # (B, L, D)
    return normalize(torch.nan_to_num(parts), dim=-1)


def token_features(features: "Sequence[TokenFeatures]", config: DescriptorConfig, depth: int) -> "TokenFeatures":
    """Of the blocks `config.layers_of(depth)` the one whose patches are matched."""
    return features[config.layers_of(depth).index(_block(config.token_depth, depth))]


def select_patches(patches: Tensor, count: int) -> Tensor:
    """Indices (B, K), ascending, of patches that are unlike each other; K is `count` or all there are.

    patches  (B, N, D)
    Farthest-point sampling by cosine: first the patch least like the image's mean, then again and again

        argmax_n min_{s already chosen} 1 - cos(patches[n], patches[s])

    so that a wall or a sky costs a token or two, not half of them.
    """
    if count >= patches.shape[1]:
        return torch.arange(patches.shape[1], device=patches.device).expand(len(patches), -1)
    unit = normalize(patches, dim=-1)
    similarity = unit @ unit.mT  # (B, N, N)
    rows = torch.arange(len(patches), device=patches.device)
    chosen = (unit * unit.mean(1, keepdim=True)).sum(-1).argmin(1)  # (B,)
    kept, nearest = [chosen], similarity[rows, chosen]  # (B, N), likeness to the nearest chosen one
    for _ in range(count - 1):
        nearest[rows, chosen] = torch.inf  # never chosen twice, even where all patches are equal
        chosen = nearest.argmin(1)
        kept.append(chosen)
        nearest = torch.maximum(nearest, similarity[rows, chosen])
    return torch.stack(kept, dim=1).sort(dim=1).values


def fit_whitening(
    sample: Sequence[PooledFeatures],
    config: DescriptorConfig,
    prior: Mapping[str, Tensor] | None = None,
    views: Sequence[PooledFeatures] = (),
) -> Whitening:
    """The statistics of a sample of the corpus, drawn towards the prior as far as the sample is small.

    prior  the tensors of `prior_from`, which a backbone may carry
    views  of some images of the sample: the image and its synthetic views, a batch each; not used beside a prior
    With n images the corpus weighs n / (n + PRIOR_IMAGES), and n / (n + ORIGIN_IMAGES) without a prior: a single
    image is then not its own mean, and has a descriptor.
    """
    parts = torch.cat([pooled.parts for pooled in sample])  # (n, L, D)
    if prior is not None:
        _check_prior(prior, config, *parts.shape[1:])
    within = within_views([one.parts for one in views]) if prior is None and views else None
    mean, projection, kind_projection = _fit_vectors(parts, config, prior, within)
    weight, dim = _weight_of(len(parts), prior), parts.shape[2]
    token_start = _prior_moments(prior, "token_", dim)
    seen = sample if prior is not None else [*sample, *views]
    token_mean, token_covariance = _blend(_token_moments(seen), token_start, weight)
    token_whitening = _whitening(token_covariance, config.shrinkage)
    token_dim = min(config.token_dim, dim) // 8 * 8  # whole bytes of bits
    token_directions = _main_directions(token_covariance, token_dim)  # (D, T)
    return Whitening(
        config=config,
        mean=mean,
        projection=projection,
        token_mean=token_mean.float(),
        token_projection=(token_whitening @ token_directions).float().contiguous(),
        num_images=len(parts),
        kind_projection=kind_projection,
    )


def refit_whitening(parts: Tensor, whitening: Whitening, prior: Mapping[str, Tensor] | None) -> Whitening:
    """The whitening that a larger sample gives, of which no tokens are at hand: those keep their statistics.

    parts      (n, L, D)  float32, L2-normalised
    whitening  of the index until now; how views of one image differ is had back from its `kind_projection`
    prior      as in `fit_whitening`
    """
    assert whitening.kind_projection is not None, "nothing tells how views of an image differ"
    within = None if prior is not None else _within_of(whitening.kind_projection, whitening.config.shrinkage)
    mean, projection, kind_projection = _fit_vectors(parts, whitening.config, prior, within)
    return replace(whitening, mean=mean, projection=projection, num_images=len(parts), kind_projection=kind_projection)


def _fit_vectors(
    parts: Tensor, config: DescriptorConfig, prior: Mapping[str, Tensor] | None, of_views: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mean, projection and kind projection of a whitening, as `Whitening` has them.

    parts     (n, L, D) of the sample
    of_views  (L, D, D) covariance of views about their image; None beside a prior, and where there are no views
    """
    parts = parts.double()
    assert len(parts) > 0, "a whitening needs an image"
    mean, rows = _blended_rows(parts.flatten(1), prior, _weight_of(len(parts), prior))
    rows = rows.unflatten(1, parts.shape[1:])  # (R, L, D)
    spreads = [rows[:, part].T @ rows[:, part] for part in range(rows.shape[1])]
    within, share = None if prior is None or "within" not in prior else prior["within"].double(), VIEW_SHARE
    if of_views is not None:
        spreads = [shrink_covariance(spread, len(parts)) for spread in spreads]
        within, share = of_views, 1 - CORPUS_SHARE * len(parts) / (len(parts) + CORPUS_HALF)
    if within is not None:
        spreads = [_with_views(own, one, share) for own, one in zip(spreads, within, strict=True)]
    whitening = torch.stack([_whitening(spread, config.shrinkage) for spread in spreads])  # (L, D, D)
    whitened = torch.einsum("rld,lde->rle", rows, whitening).flatten(1)
    directions = _main_directions_of_rows(whitened, config.global_dim).unflatten(0, parts.shape[1:])  # (L, D, G)
    of_kind = None if within is None else torch.stack([_whitening(one, config.shrinkage) for one in within]).float()
    return mean.float(), torch.bmm(whitening, directions).flatten(0, 1).float().contiguous(), of_kind


def _weight_of(num_images: int, prior: Mapping[str, Tensor] | None) -> float:
    """The corpus's share of its statistics, see `fit_whitening`."""
    return num_images / (num_images + (ORIGIN_IMAGES if prior is None else PRIOR_IMAGES))


def _within_of(kind_projection: Tensor, shrinkage: float) -> Tensor:
    """The covariances (L, D, D) float64 of which `_whitening` made this; their scale is that of the shrunk ones.

    With C the covariance and c = shrinkage * trace(C) / D:  projection = (C + c I) ** -1/2
    """
    shrunk = torch.linalg.inv(kind_projection.double())
    shrunk = shrunk @ shrunk  # C + c I
    mean = shrunk.diagonal(dim1=1, dim2=2).mean(1)  # (1 + shrinkage) trace(C) / D
    added = mean * shrinkage / (1 + shrinkage)
    return shrunk - added[:, None, None] * torch.eye(shrunk.shape[-1], dtype=shrunk.dtype)


def apply(pooled: PooledFeatures, whitening: Whitening) -> tuple[np.ndarray, np.ndarray]:
    """The vectors to store: global (B, G) and patch tokens (B, K, T), float32, every row L2-normalised."""
    tokens = (pooled.tokens.float() - whitening.token_mean) @ whitening.token_projection  # (B, K, T)
    return vectors_of(pooled.parts, whitening), _unit_rows(tokens).numpy()


def vectors_of(parts: Tensor, whitening: Whitening) -> np.ndarray:
    """The global vectors (B, G) of parts (B, L, D), float32, L2-normalised."""
    return _unit_rows((parts.flatten(1) - whitening.mean) @ whitening.projection).numpy()


def kind_vectors(parts: Tensor, whitening: Whitening) -> np.ndarray | None:
    """By what images of one kind are alike: their first part whitened by how views of one image differ, and no more.

    parts    (B, 1 or more, D)  float32, L2-normalised; the first is the CLS token of the last block
    returns  (B, D)             float32, L2-normalised; None where the whitening has no `kind_projection`

    What tells the images of a corpus apart stays as large as it is. A corpus of three buildings differs most by
    building, which whitening on the corpus takes away and this does not. It has every number of the part, since what
    is left out by the main directions of the stored vector cannot be had back from it. Earlier blocks know less of
    kinds: with all four parts in place of the first, like kind loses .02 of mAP on covers, landmarks and iconic, and
    .01 on paris and grocery (retrieval_quality.py's sets, every second query).
    """
    if whitening.kind_projection is None:
        return None
    first = parts[:, 0]  # (B, D)
    return _unit_rows((first - whitening.mean[: first.shape[1]]) @ whitening.kind_projection[0]).numpy()


def prior_from(sample: Sequence[PooledFeatures], config: DescriptorConfig) -> dict[str, Tensor]:
    """The statistics of other images, for a backbone's file to carry: under 3 MB in half precision for a ViT-S.

    mean (L, D); factors (R, L * D), whose sum of outer products is the covariance; token_mean (D,);
    token_factors (D, D); `recipe`, the bytes of the JSON of the settings that they hold for
    """
    parts = torch.cat([pooled.parts for pooled in sample]).double()
    mean, covariance = _moments(parts.flatten(1))
    token_mean, token_covariance = _token_moments(sample)
    return {
        "mean": mean.reshape(parts.shape[1:]).half(),
        "factors": _factors(covariance, PRIOR_RANK).half(),
        "token_mean": token_mean.half(),
        "token_factors": _factors(token_covariance, PRIOR_RANK).half(),
        "recipe": torch.frombuffer(bytearray(_inputs(config).encode()), dtype=torch.uint8),
    }


def save_whitening(whitening: Whitening) -> bytes:
    """A whitening as the bytes of a safetensors file."""
    metadata = {"format": "seenit-fit-1", "recipe": whitening.config.version, "num_images": str(whitening.num_images)}
    return safetensors.torch.save(_tensors(whitening), metadata)


def load_whitening(data: bytes) -> Whitening:
    """The whitening that `save_fit` wrote; anything else raises SeenitError."""
    try:
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        if metadata["format"] != "seenit-fit-1":
            raise ValueError("it has another format")
        config = _config_from(metadata["recipe"])
        num_images = int(metadata["num_images"])
        tensors = safetensors.torch.load(data)
        if set(tensors) - {"kind_projection"} != set(_NAMES):
            raise ValueError("it holds other tensors")
        loaded = Whitening(config=config, num_images=num_images, **tensors)
        _check(loaded)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SeenitError(
            f"the index's descriptor statistics are damaged: {reason}; index the folder into a new index"
        ) from error
    return loaded


def _block(fraction: float, depth: int) -> int:
    return max(1, round(fraction * depth)) - 1


_NAMES = ("mean", "projection", "token_mean", "token_projection")  # that every whitening has


def _tensors(whitening: Whitening) -> dict[str, Tensor]:
    tensors = {name: getattr(whitening, name) for name in _NAMES}
    return tensors if whitening.kind_projection is None else tensors | {"kind_projection": whitening.kind_projection}


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of rows (n, D)."""
    mean = rows.mean(0)
    centred = rows - mean
    return mean, centred.T @ centred / len(rows)


def _token_moments(sample: Sequence[PooledFeatures]) -> tuple[Tensor, Tensor]:
    """`_moments` of all tokens, (D,) and (D, D), a batch at a time, for together they are many."""
    count, dim = 0, sample[0].tokens.shape[-1]
    total, products = torch.zeros(dim).double(), torch.zeros(dim, dim).double()
    for pooled in sample:
        tokens = pooled.tokens.flatten(0, 1).double()  # (B * K, D)
        count += len(tokens)
        total += tokens.sum(0)
        products += tokens.T @ tokens
    mean = total / count
    return mean, products / count - torch.outer(mean, mean)


def _blend(own: tuple[Tensor, Tensor], start: tuple[Tensor, Tensor], weight: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a mixture of two populations, the corpus having `weight` of it."""
    shift = own[0] - start[0]
    mean = weight * own[0] + (1 - weight) * start[0]
    covariance = weight * own[1] + (1 - weight) * start[1] + weight * (1 - weight) * torch.outer(shift, shift)
    return mean, covariance


def _blended_rows(parts: Tensor, prior: Mapping[str, Tensor] | None, weight: float) -> tuple[Tensor, Tensor]:
    """`_blend` of the parts (n, D) and the prior's, with the covariance as rows (R, D), whose outer products it sums.

    covariance = rows.T @ rows
    """
    own = parts.mean(0)
    start, factors = torch.zeros_like(own), parts[:0]
    if prior is not None:
        start, factors = prior["mean"].double().flatten(), prior["factors"].double()
    apart = own - start
    shift = math.sqrt(weight * (1 - weight)) * apart[None]
    rows = [math.sqrt(weight / len(parts)) * (parts - own), math.sqrt(1 - weight) * factors, shift]
    return start + weight * apart, torch.cat(rows)


def _prior_moments(prior: Mapping[str, Tensor] | None, prefix: str, size: int) -> tuple[Tensor, Tensor]:
    if prior is None:
        return torch.zeros(size).double(), torch.zeros(size, size).double()
    factors = prior[prefix + "factors"].double()  # (R, size)
    return prior[prefix + "mean"].double().flatten(), factors.T @ factors


def _with_views(covariance: Tensor, within: Tensor, share: float) -> Tensor:
    """A layer's covariance (D, D) mixed with that of views of one photo, so that whitening plays both down."""
    return (1 - share) * covariance + share * within * (covariance.trace() / within.trace().clamp(min=_TINY))


def _whitening(covariance: Tensor, shrinkage: float) -> Tensor:
    """The symmetric (D, D) matrix that makes all variances about equal."""
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=0)
    values = values + shrinkage * values.mean() + _TINY
    return (vectors * values.rsqrt()) @ vectors.T


def _main_directions(covariance: Tensor, count: int) -> Tensor:
    """The `count` eigenvectors (D, count) of largest variance, or all there are.

    The sign of each, which rounding would choose, is that of `_one_sign`.
    """
    return _one_sign(torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :count])  # descending


def _main_directions_of_rows(rows: Tensor, count: int) -> Tensor:
    """`_main_directions` of rows.T @ rows, (R, D) -> (D, count), at less than a tenth of the time where rows are few.

    Fewer rows than `count` leave directions in which nothing varies. Any of them will do, so they are drawn, the same
    ones each time.
    """
    num_rows, dim = rows.shape
    if num_rows >= dim:
        return _main_directions(rows.T @ rows, count)
    basis, within = torch.linalg.qr(rows.T)  # (D, R), (R, R)
    directions = basis @ _main_directions(within @ within.T, count)
    missing = min(count, dim) - num_rows
    if missing > 0:
        drawn = torch.from_numpy(np.random.default_rng(0).standard_normal((dim, missing)))
        for _ in range(2):  # what rounding leaves of the basis goes the second time
            drawn = torch.linalg.qr(drawn - basis @ (basis.T @ drawn)).Q
        directions = torch.cat([directions, drawn], dim=1)
    return _one_sign(directions)


def _one_sign(vectors: Tensor) -> Tensor:
    """Of the two signs of each column that which makes its largest number positive."""
    return vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()


def _factors(covariance: Tensor, rank: int) -> Tensor:
    """Rows (rank, D) whose sum of outer products is nearest to the covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()).T.flip(0)[:rank].contiguous()


def _unit_rows(rows: Tensor) -> Tensor:
    """Rows of length 1; one without a direction becomes the first axis, so that it stays a valid vector."""
    length = rows.norm(dim=-1, keepdim=True)
    axis = torch.zeros(rows.shape[-1])
    axis[0] = 1
    return torch.where(length > _TINY, rows / length.clamp(min=_TINY), axis)


def _inputs(config: DescriptorConfig) -> str:
    """The settings that a prior depends on, as JSON."""
    return json.dumps([config.cls_depths, config.mean_depths, config.token_depth])


def _config_from(text: str) -> DescriptorConfig:
    settings = json.loads(text)
    if not isinstance(settings, dict):
        raise ValueError("its settings are no table of values")
    return DescriptorConfig.from_settings(settings)


def _check_prior(prior: Mapping[str, Tensor], config: DescriptorConfig, num_parts: int, dim: int) -> None:
    wide = num_parts * dim
    missing = {"mean", "factors", "token_mean", "token_factors", "recipe"} - set(prior)
    if missing:
        raise SeenitError(
            f"the backbone's descriptor prior lacks {', '.join(sorted(missing))}; save the backbone again"
        )
    shapes = prior["mean"].numel() == wide and prior["token_mean"].numel() == dim
    shapes = shapes and prior["factors"].shape[1:] == (wide,) and prior["token_factors"].shape[1:] == (dim,)
    if not shapes or bytes(prior["recipe"].tolist()) != _inputs(config).encode():
        raise SeenitError(
            "the backbone's descriptor prior was made for another descriptor config; make the prior again"
        )


def _check(whitening: Whitening) -> None:
    wide, dim = whitening.mean.numel(), whitening.token_mean.numel()
    parts = len(whitening.config.cls_depths) + len(whitening.config.mean_depths)
    shapes = (whitening.projection.shape[0] == wide, whitening.token_projection.shape[0] == dim, wide == parts * dim)
    if not all(shapes) or [getattr(whitening, name).ndim for name in _NAMES] != [1, 2, 1, 2]:
        raise ValueError("its tensors do not fit together")
    if whitening.kind_projection is not None and whitening.kind_projection.shape != (parts, dim, dim):
        raise ValueError("its tensors do not fit together")
    for name, tensor in _tensors(whitening).items():
        if tensor.dtype != torch.float32 or not math.isfinite(tensor.abs().sum().item()):
            raise ValueError(f"{name} is not finite float32")
