"""An endless stream of cropped batches that is the same however a run is cut up.

Which images a batch holds and what is done to them are functions of (seed, batch number, slot). So a run that is
resumed at batch 500, or spread over 2 processes, sees exactly what one uninterrupted process sees. The decoder
processes work ahead of the training; an image that cannot be read is reported once and replaced by another, which is
again drawn from (seed, batch number, slot).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from indexer.backbone.layouts import Preprocessing
from indexer.errors import SeenitError
from indexer.images.jobs import Broken, Cut, Job, Outcome, Settings
from indexer.images.pool import DecodePool
from indexer.messages import Say, say_to_stderr

from ..device_defaults import with_device_defaults
from .ahead import host_buffer, to_device
from .augment import VIEW, Augmentation, Crop
from .augment_torch import cut_with_torch
from .sources import ImageSource, crop_job, cut_crops

if TYPE_CHECKING:
    from ..config import Config

BATCHES_AHEAD = 3  # decoded before they are asked for, the one in hand included
_IMAGENET = Preprocessing()
MAX_REPLACEMENTS = 50  # for one slot; so many broken images in a row are no accident


# B images, V_g global and V_l local views of each, G and L their sides in pixels
@dataclass(frozen=True)
class CropBatch:
    """Crops with mean and deviation taken out.

    global_crops  (V_g * B, 3, G, G)  float32, view-major: the first B are view 0 of each image
    local_crops   (V_l * B, 3, L, L)  float32, view-major; V_l may be 0
    indices       (B,)                int64, which images of the source
    """

    global_crops: Tensor
    local_crops: Tensor
    indices: Tensor


def augmentation_of(config: "Config") -> Augmentation:
    """The crops that a run makes of each image: 2 global ones, then the local ones."""
    local = Crop(config.local_size, config.local_scale, config.blur_local, 0.0)
    return Augmentation(
        crops=(
            Crop(config.global_size, config.global_scale, config.blur_first, 0.0),
            Crop(config.global_size, config.global_scale, config.blur_second, config.solarise_probability),
            *[local] * config.num_local,
        ),
        flip=config.flip_probability,
        jitter=config.jitter_probability,
        grey=config.grey_probability,
    )


def check_batch(num_images: int, config: "Config", world_size: int) -> None:
    """SeenitError where a batch has more images than there are, or cannot be dealt out to the processes."""
    if config.batch_size > num_images:
        raise SeenitError(
            f"a batch of {config.batch_size} images from {num_images}: set batch_size to {num_images} or less,"
            " or give more images"
        )
    if config.batch_size % world_size:
        raise SeenitError(
            f"{config.batch_size} images do not divide among {world_size} processes;"
            f" set batch_size to a multiple of {world_size}"
        )


class CropStream:
    """Endless batches; iterating yields batch number `position`, then the next.

    position    the number of the next batch
    rank        this process's number; it gets the slots [rank * B, (rank + 1) * B) of each global batch
    world_size  how many processes share `config.batch_size`
    device      where the crops are to be; the torch engine makes them there
    broken      why each unreadable image was replaced, by name
    say         gets one line for each of them

    Close it, or use it in a `with` block: its decoder processes end with it.
    """

    def __init__(
        self,
        source: ImageSource,
        config: "Config",
        *,
        position: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        preprocessing: Preprocessing = _IMAGENET,
        say: Say = say_to_stderr,
    ) -> None:
        check_batch(len(source), config, world_size)
        config = with_device_defaults(config, torch.device(device))
        self.position = position
        self.broken: dict[str, str] = {}
        self._source, self._config = source, config
        self._augmentation = augmentation_of(config)
        self._device, self._say = torch.device(device), say
        self._first_slot, self._slots = rank * config.batch_size // world_size, config.batch_size // world_size
        self._mean, self._std = (
            torch.tensor(values, device=device).mul(255).view(1, 3, 1, 1)
            for values in (preprocessing.mean, preprocessing.std)
        )
        self._pool: DecodePool | None = None
        if config.workers:
            ahead = BATCHES_AHEAD * self._slots + config.workers
            self._pool = DecodePool(config.workers, work=cut_crops, ahead=ahead)

    def __enter__(self) -> "CropStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    def __iter__(self) -> Iterator[CropBatch]:
        orders = _Orders(self)
        while True:
            for outcome in self._outcomes(orders):
                orders.take(outcome)
                while len(orders.done.get(self.position, ())) == self._slots:
                    filled = orders.done.pop(self.position)
                    self.position += 1  # before the yield: whoever stores it now resumes with the next batch
                    yield self._assemble([filled[slot] for slot in sorted(filled)])

    def _outcomes(self, orders: "_Orders") -> Iterator[Outcome]:
        if self._pool is not None:
            return self._pool.run(orders)
        settings = Settings()
        return (cut_crops(job, settings) for job in orders)

    def _assemble(self, answers: list[tuple[int, Cut]]) -> CropBatch:
        indices = torch.tensor([index for index, _ in answers])
        crops = self._augmentation.crops
        if self._config.engine == "torch":
            views, images = zip(*(_split_image(answer, len(crops)) for _, answer in answers), strict=True)
            table = np.stack(views)  # (B, V)
            cut = [cut_with_torch(images, table[:, :2], crops[0].size, self._device)]
            if len(crops) > 2:
                cut.append(cut_with_torch(images, table[:, 2:], crops[2].size, self._device))
        else:
            rows = host_buffer((len(answers), answers[0][1].pixels.size), self._device)  # (B, bytes of all crops)
            np.stack([answer.pixels for _, answer in answers], out=rows.numpy())
            border = sum(3 * crop.size**2 for crop in crops[:2])
            parts = zip(to_device(rows, self._device).tensor_split([border], 1), (crops[:2], crops[2:]), strict=True)
            cut = [
                part.view(len(rows), len(kind), kind[0].size, kind[0].size, 3).movedim(-1, 2)
                for part, kind in parts
                if kind
            ]  # (B, V, 3, S, S) uint8
        if len(cut) == 1:
            size = self._config.local_size
            cut.append(torch.empty(len(answers), 0, 3, size, size, device=self._device))
        global_crops, local_crops = (self._normalised(part) for part in cut)
        return CropBatch(global_crops, local_crops, indices)

    def _normalised(self, crops: Tensor) -> Tensor:
        """(B, V, 3, S, S) in [0, 255] -> (V * B, 3, S, S), view-major."""
        return (crops.transpose(0, 1).flatten(0, 1).float() - self._mean) / self._std


@dataclass
class _Slot:
    """One place of a batch, while its image is on its way."""

    batch: int
    slot: int  # of the global batch
    index: int  # of the image
    attempt: int = 0


@dataclass
class _Orders:
    """The jobs of a stream, as far ahead as is allowed; replacements of broken images come first.

    It runs dry when everything allowed is under way, and gives jobs again once the stream has moved on.
    """

    stream: CropStream
    waiting: dict[str, _Slot] = field(default_factory=dict)  # by the job's name
    again: list[_Slot] = field(default_factory=list)
    done: dict[int, dict[int, tuple[int, Cut]]] = field(default_factory=dict)  # batch -> slot -> image, crops
    batch: int = -1  # of the next job
    offset: int = 0  # in this process's part of that batch

    def __iter__(self) -> "_Orders":
        return self

    def __next__(self) -> Job:
        stream = self.stream
        if self.again:
            slot = self.again.pop()
        else:
            self.batch = max(self.batch, stream.position)
            if self.batch >= stream.position + BATCHES_AHEAD:
                raise StopIteration
            number = stream._first_slot + self.offset
            config = stream._config
            sample = self.batch * config.batch_size + number
            slot = _Slot(self.batch, number, _image_of(sample, len(stream._source), config.seed))
            self.offset += 1
            if self.offset == stream._slots:
                self.batch, self.offset = self.batch + 1, 0
        while stream._source.places[slot.index].name in stream.broken:
            self._replace(slot)
        name = f"batch {slot.batch} slot {slot.slot} attempt {slot.attempt}"
        self.waiting[name] = slot
        seed = (stream._config.seed, slot.batch, slot.slot)
        return crop_job(name, stream._source.places[slot.index], seed, stream._augmentation, stream._config.engine)

    def take(self, outcome: Outcome) -> None:
        """Keep a decoded image, or report a broken one and order another in its place."""
        slot = self.waiting.pop(outcome.path)
        if isinstance(outcome, Cut):
            self.done.setdefault(slot.batch, {})[slot.slot] = (slot.index, outcome)
            return
        # a job has no file of its name, so that the pool calls it vanished when its decoder dies or takes too long
        reason = outcome.reason if isinstance(outcome, Broken) else "its decoder crashed or took too long"
        name = self.stream._source.places[slot.index].name
        if name not in self.stream.broken:
            self.stream.broken[name] = reason
            self.stream._say(f"cannot read {name}: {reason}; another image takes its place")
        self.again.append(slot)

    def _replace(self, slot: _Slot) -> None:
        slot.attempt += 1
        stream = self.stream
        if slot.attempt > MAX_REPLACEMENTS:
            example, reason = next(iter(stream.broken.items()))
            raise SeenitError(
                f"{len(stream.broken)} of {len(stream._source)} images cannot be read, {example} ({reason}) among"
                " them; give images that can"
            )
        seed = (stream._config.seed, slot.batch, slot.slot, slot.attempt)
        slot.index = int(np.random.default_rng(seed).integers(len(stream._source)))


def _image_of(sample: int, count: int, seed: int) -> int:
    """Which image the sample of this number is: every image once in each epoch, in an order of its own."""
    epoch, place = divmod(sample, count)
    return int(_order(epoch, count, seed)[place])


@lru_cache(maxsize=2)
def _order(epoch: int, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, count)).permutation(count)


def _split_image(answer: Cut, num_views: int) -> tuple[np.ndarray, np.ndarray]:
    """The views (V,) and the image (H, W, 3) of an answer of the torch engine."""
    border = num_views * VIEW.itemsize
    return answer.pixels[:border].view(VIEW), answer.pixels[border:].reshape(*answer.grid, 3)
