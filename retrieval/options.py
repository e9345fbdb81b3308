"""What one can ask of a search, in one object for the command line, Python and the server."""

from dataclasses import dataclass

from indexer.errors import SeenitError
from indexer.store.protocol import Filter


@dataclass(frozen=True)
class SearchOptions:
    """What every query of a call is asked alike; the defaults are those of `seenit search`.

    top           results of each query, 1 or more
    where         conditions on the records, applied before the neighbours are searched; `under` takes paths
    rerank        compare the best (100 at least) patch by patch (images only; a vector has no patches)
    exact         compare with every record, and rerank all of them up to 10,000
    include_self  also return the query's own file where the index holds it
    expand        alpha query expansion over that many of the first results; 0: none
    min_probability  leave out results whose match probability is lower, or not known
    group         leave out near-copies of a better result, see `GROUP_COSINE`
    augment       database-side augmentation of each candidate with that many of its neighbours; 0: none
    like_kind     also find others of the kind: what is no match is ordered by likeness of kind among more candidates
    Raises SeenitError for numbers that make no sense.

    >>> SearchOptions(top=3).rerank
    True
    """

    top: int = 10
    where: Filter = Filter()
    rerank: bool = True
    exact: bool = False
    include_self: bool = False
    expand: int = 0
    augment: int = 0
    min_probability: float = 0.0
    group: bool = False
    like_kind: bool = False

    def __post_init__(self) -> None:
        if self.top < 1:
            raise SeenitError(f"--top {self.top} asks for nothing; take 1 or more")
        if not 0 <= self.min_probability <= 1:
            raise SeenitError(f"--min-probability {self.min_probability:g} is no probability; take one from 0 to 1")
        if self.min_probability and not self.rerank:
            raise SeenitError("--min-probability needs the patches that --no-rerank leaves out; give one of them")
        for name in ("expand", "augment"):
            if (value := getattr(self, name)) < 0:
                raise SeenitError(f"--{name} {value} is below 0; take 0 for none")
