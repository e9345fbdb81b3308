"""What has other processes or machines do a step's parts; a Ray cluster is one (see `indexer.cluster.session`)."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Spread(Protocol):
    """The files of a work folder have to be at the same paths for all workers."""

    def map(self, function: Callable[..., T], arguments: Iterable[tuple[Any, ...]]) -> Iterator[T]:
        """The results of calls of a function at a module's top level, in no order; a lost worker's are repeated."""

    def share(self, value: Any) -> Any:
        """A value that many calls take as an argument."""
