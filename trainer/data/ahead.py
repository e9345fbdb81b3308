"""Batches one step ahead of a GPU: copied and augmented on a stream of its own while the step before still computes.

On any other device nothing is done ahead, since there is nobody else to do it.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device; a GPU copies it from pinned memory, and nobody waits for that."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def host_buffer(shape: Sequence[int], device: torch.device) -> Tensor:
    """Zeros of uint8 on the CPU, pinned where a GPU is to copy them."""
    return torch.zeros(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")


class OneAhead(Generic[T]):
    """`next(batches)` for a loop that says when it has queued its work.

    batches  makes a batch in each step; what it does on the device goes to the side stream

    for ...:
        batch = ahead.take()
        ...  # queue the step
        ahead.prepare()  # the next batch, beside it
        ...  # wait for the step
    """

    def __init__(self, batches: Iterator[T], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._stream is not None:  # what the batches are made with, may still be on its way
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._ready: T | None = None

    def prepare(self) -> None:
        """Begin the next batch, unless it has been begun."""
        if self._stream is not None and self._ready is None:
            self._ready = self._make()

    def take(self) -> T:
        """The next batch; what is queued after this runs once it is there."""
        batch, self._ready = self._make() if self._ready is None else self._ready, None
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for tensor in tensors_of(batch):
                tensor.record_stream(current)  # its memory is not given to the side stream before the step is over
        return batch

    def _make(self) -> T:
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            return next(self._batches)


def tensors_of(value: object) -> Iterator[Tensor]:
    """All tensors in a value and in the fields of its dataclasses."""
    if isinstance(value, Tensor):
        yield value
    else:
        for inner in getattr(value, "__dataclass_fields__", ()):
            yield from tensors_of(getattr(value, inner))
