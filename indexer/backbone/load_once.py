"""A backbone that is loaded when it is first needed, and then kept for all steps and rounds of a run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..messages import Say, say_nothing

if TYPE_CHECKING:  # it imports torch, which a run that embeds nothing does without
    import numpy as np

    from .backbone import Backbone
    from .byte_ranges import ByteRanges


class LoadOnce:
    """Names a backbone and, once it was asked for, holds it."""

    def __init__(
        self, spec: "Backbone | str | Path | None" = None, say: Say = say_nothing, precision: str = "auto"
    ) -> None:
        """What to load.

        spec       a loaded backbone, a name or a path; None: whatever the index was made with, `auto` for a new one
        precision  of what is loaded, a `dtype` of `Backbone.load`
        """
        self.spec: str | Path | None = spec if spec is None or isinstance(spec, (str, Path)) else spec.spec
        self._loaded: Backbone | None = None if spec is None or isinstance(spec, (str, Path)) else spec
        self.precision = precision
        self._say = say

    def load(
        self,
        otherwise: str,
        *,
        fetch: bool = False,
        precision: str = "auto",
        ranges: "Callable[[], ByteRanges | None]" = lambda: None,
    ) -> "Backbone":
        """The backbone; `otherwise` names it where none, or `auto`, was asked for, and `precision` likewise.

        fetch  whether an official one that is not here may be fetched: nothing that works with an existing index waits
               for a network
        ranges  an index's own for 8 bits, asked for if these are computed in and nothing is loaded yet
        """
        if self._loaded is None:
            from .backbone import Backbone

            spec = otherwise if self.spec in (None, "auto") else self.spec
            assert spec is not None
            wanted = precision if self.precision == "auto" else self.precision
            own = ranges() if wanted == "int8" else None
            self._loaded = Backbone.load(spec, dtype=wanted, offline=not fetch, ranges=own, say=self._say)
        return self._loaded

    def fit_to(self, images: "Sequence[np.ndarray]") -> "Backbone":
        """The backbone, which is loaded, with ranges of these images where it computes in 8 bits by no index's own."""
        assert self._loaded is not None
        if images and self._loaded.precision == "int8" and self._loaded.ranges is None:
            self._loaded = self._loaded.with_own_ranges(images)
        return self._loaded

    @property
    def is_loaded(self) -> bool:
        return self._loaded is not None


def load_once(backbone: "Backbone | LoadOnce | str | Path | None", say: Say = say_nothing) -> LoadOnce:
    return backbone if isinstance(backbone, LoadOnce) else LoadOnce(backbone, say)
