"""Values that are kept for whoever asks again, up to a number of bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """Values by key, those that were not asked for longest dropped first; may be used from any thread."""

    def __init__(self, max_bytes: int, bytes_of: Callable[[V], int]) -> None:
        self._max_bytes, self._bytes_of = max_bytes, bytes_of
        self._lock = threading.Lock()
        self._kept: OrderedDict[K, V] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: K) -> V | None:
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def keep(self, key: K, value: V) -> None:
        """What is larger than the whole cache is not kept."""
        if self._bytes_of(value) > self._max_bytes:
            return
        with self._lock:
            if (before := self._kept.pop(key, None)) is not None:
                self.num_bytes -= self._bytes_of(before)
            self._kept[key] = value
            self.num_bytes += self._bytes_of(value)
            while self.num_bytes > self._max_bytes:
                self.num_bytes -= self._bytes_of(self._kept.popitem(last=False)[1])

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """Two threads that ask at once for what is not there both make it."""
        if (found := self.get(key)) is not None:
            return found
        value = make()
        self.keep(key, value)
        return value
