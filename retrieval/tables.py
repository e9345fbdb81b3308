"""Results as plain data: dictionaries, and a table where pandas is installed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from indexer.errors import SeenitError

from .results import Result
from .show.schema import found_image

if TYPE_CHECKING:
    import pandas


def to_dicts(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Each result in JSON's types, with the fields of the JSON that `seenit search --json` prints.

    >>> from retrieval import Searcher, to_dicts
    >>> with Searcher.open("photos") as searcher:
    ...     rows = to_dicts(searcher.search("query.jpg"))
    >>> rows[0]["rank"], sorted(rows[0])[:3]
    (1, ['attributes', 'box', 'camera'])
    """
    return [found_image(result).model_dump(mode="json") for result in results]


def to_pandas(results: Sequence[Result]) -> "pandas.DataFrame":
    """Results as a table, a row each, with the columns of `to_dicts`; SeenitError where pandas is missing.

    >>> from retrieval import Searcher, to_pandas
    >>> with Searcher.open("photos") as searcher:
    ...     table = to_pandas(searcher.search("query.jpg"))
    >>> list(table["rank"])[:3]
    [1, 2, 3]
    """
    try:
        import pandas
    except ImportError:
        raise SeenitError("tables of results need pandas; install it with: pip install pandas") from None
    return pandas.DataFrame(to_dicts(results))
