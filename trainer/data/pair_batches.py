"""Batches of photos and their views: drawn in the decoder processes, and brought to the device.

What a batch holds is a function of (seed, step, place in the batch); an image that cannot be read is reported once and
replaced by another, which is again drawn from these.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from indexer.backbone.layouts import Preprocessing
from indexer.errors import SeenitError
from indexer.images.jobs import Broken, Cut
from indexer.images.pool import DecodePool
from indexer.messages import Say

from ..config import Config
from .ahead import to_device
from .relit_views import RelitPair, pair_job, read_pair, seen_places
from .sources import ImageSource
from .stream import MAX_REPLACEMENTS


# B images of S pixels a side, g x g patches of each
@dataclass(frozen=True)
class ViewBatch:
    """Pairs on the device, mean and deviation taken out.

    crops, views  (B, 3, S, S)
    places        (B, g, g, 2)  see `seen_places`
    difficulties  (B,)
    """

    crops: Tensor
    views: Tensor
    places: Tensor
    difficulties: Tensor


def draw_pairs(
    pool: DecodePool,
    source: ImageSource,
    config: Config,
    step: int,
    *,
    dark_below: int,
    broken: dict[int, str],
    say: Say,
) -> list[RelitPair]:
    """The `batch_size` pairs of one step, in their order.

    pool        of `cut_pair`, its resolution the side of the crops
    dark_below  as in `lighten`
    broken      gets why an image cannot be read, by its number in the source
    SeenitError where hardly any image can be read.
    """
    first = np.random.default_rng((config.seed, step)).choice(len(source), config.batch_size, replace=False).tolist()
    pairs: dict[int, RelitPair] = {}
    for attempt in range(MAX_REPLACEMENTS):
        chosen = {}  # place in the batch -> image
        for slot in range(config.batch_size):
            seed = (config.seed, step, slot, attempt)
            index = int(np.random.default_rng(seed).integers(len(source))) if attempt else first[slot]
            if slot not in pairs and index not in broken:
                chosen[slot] = index
        jobs = [
            pair_job(str(slot), source.places[index], (config.seed, step, slot, attempt), config.view_share, dark_below)
            for slot, index in chosen.items()
        ]
        for answer in pool.run(jobs):
            slot = int(answer.path)
            if isinstance(answer, Cut):
                pairs[slot] = read_pair(answer)
            elif chosen[slot] not in broken:
                # a job has no file of its name, so that the pool calls it vanished when its decoder dies
                reason = answer.reason if isinstance(answer, Broken) else "its decoder crashed or took too long"
                broken[chosen[slot]] = reason
                say(f"cannot read {source.places[chosen[slot]].name}: {reason}; another image takes its place")
        if len(pairs) == config.batch_size:
            return [pairs[slot] for slot in sorted(pairs)]
    number, reason = next(iter(broken.items()))
    raise SeenitError(
        f"{len(broken)} of {len(source)} images cannot be read, {source.places[number].name} ({reason}) among them;"
        " give images that can"
    )


def as_batch(
    pairs: Sequence[RelitPair], patch_size: int, preprocessing: Preprocessing, device: torch.device
) -> ViewBatch:
    """Pairs of one size as the networks and the loss take them."""
    mean, std = (
        torch.tensor(values, device=device)[:, None, None] for values in (preprocessing.mean, preprocessing.std)
    )
    crops, views = (
        (to_device(torch.from_numpy(np.stack(pixels)), device).permute(0, 3, 1, 2) / 255 - mean) / std
        for pixels in ([pair.crop for pair in pairs], [pair.view for pair in pairs])
    )
    places = np.stack([seen_places(pair.homography, pair.crop.shape[0], patch_size) for pair in pairs])
    difficulties = torch.tensor([pair.difficulty for pair in pairs], device=device)
    return ViewBatch(crops, views, to_device(torch.from_numpy(places), device), difficulties)
