"""The statistics that a whitening is fitted on: those of the indexed images, drawn towards others where these are few.

A small corpus has few statistics of its own. Its whitening leans on a prior, the statistics of other photos that a
backbone's file may carry, as if `PRIOR_IMAGES` of them had been indexed too; a backbone without one makes do with
synthetic views of the corpus itself, see `view_statistics`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import SeenitError
from .config import DescriptorConfig
from .covariance import (
    covariances_behind,
    low_rank_factors,
    main_directions,
    main_directions_of_rows,
    mix_covariances,
    moments,
    whitening_matrix,
)
from .pooling import PooledFeatures
from .view_statistics import shrink_covariance, within_views
from .whitening import Whitening

# n images, D channels of the backbone, L layers read, G global and T token dimensions, R rows of a covariance

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
    token_whitening = whitening_matrix(token_covariance, config.shrinkage)
    token_dim = min(config.token_dim, dim) // 8 * 8  # whole bytes of bits
    token_directions = main_directions(token_covariance, token_dim)  # (D, T)
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
    within = None if prior is not None else covariances_behind(whitening.kind_projection, whitening.config.shrinkage)
    mean, projection, kind_projection = _fit_vectors(parts, whitening.config, prior, within)
    return replace(whitening, mean=mean, projection=projection, num_images=len(parts), kind_projection=kind_projection)


def prior_from(sample: Sequence[PooledFeatures], config: DescriptorConfig) -> dict[str, Tensor]:
    """The statistics of other images, for a backbone's file to carry: under 3 MB in half precision for a ViT-S.

    mean (L, D); factors (R, L * D), whose sum of outer products is the covariance; token_mean (D,);
    token_factors (D, D); `recipe`, the bytes of the JSON of the settings that they hold for
    """
    parts = torch.cat([pooled.parts for pooled in sample]).double()
    mean, covariance = moments(parts.flatten(1))
    token_mean, token_covariance = _token_moments(sample)
    return {
        "mean": mean.reshape(parts.shape[1:]).half(),
        "factors": low_rank_factors(covariance, PRIOR_RANK).half(),
        "token_mean": token_mean.half(),
        "token_factors": low_rank_factors(token_covariance, PRIOR_RANK).half(),
        "recipe": torch.frombuffer(bytearray(_inputs(config).encode()), dtype=torch.uint8),
    }


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
    if within is not None:  # whitening then plays both down
        spreads = [mix_covariances(own, one, share) for own, one in zip(spreads, within, strict=True)]
    whitening = torch.stack([whitening_matrix(spread, config.shrinkage) for spread in spreads])  # (L, D, D)
    whitened = torch.einsum("rld,lde->rle", rows, whitening).flatten(1)
    directions = main_directions_of_rows(whitened, config.global_dim).unflatten(0, parts.shape[1:])  # (L, D, G)
    projection = torch.bmm(whitening, directions).flatten(0, 1).float().contiguous()
    if within is None:
        return mean.float(), projection, None
    return mean.float(), projection, torch.stack([whitening_matrix(one, config.shrinkage) for one in within]).float()


def _weight_of(num_images: int, prior: Mapping[str, Tensor] | None) -> float:
    """The corpus's share of its statistics, see `fit_whitening`."""
    return num_images / (num_images + (ORIGIN_IMAGES if prior is None else PRIOR_IMAGES))


def _token_moments(sample: Sequence[PooledFeatures]) -> tuple[Tensor, Tensor]:
    """`moments` of all tokens, (D,) and (D, D), a batch at a time, for together they are many."""
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


def _inputs(config: DescriptorConfig) -> str:
    """The settings that a prior depends on, as JSON."""
    return json.dumps([config.cls_depths, config.mean_depths, config.token_depth])


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
