"""How a collection is made so that it also holds a hundred million images, and how a large load is told to the server.

What is surprising: a server links new vectors into its graph while more of them come, and does that work again and
again. So while much is loaded its threshold is raised by RAISED_BY, and lowered at the end. What it was before can be
read off the raised value, so that the next writer lowers it where this one was killed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qdrant_client import models

from .payload import INDEXED_FIELDS
from .protocol import Schema

# From 10,000 records on a graph is worth its links: it is what a server takes for 512 numbers a vector by itself.
BULK_RECORDS = 10_000
RAISED_BY = 10**9  # kB: more than any segment holds
DEFAULT_THRESHOLD = 10_000  # kB, where a server does not tell its own

# 20,000 drawn vectors of 512 numbers in the server's engine: recall@10 .90 with and without int8 once 1.5 to 3 times as
# many candidates are rescored, .89 without rescoring; quantiles from .99 to all numbers do not differ.
QUANTILE = 0.99
OVERSAMPLING = 2.0
HNSW_EF_SEARCH = 256  # not tuned: no server was at hand


@dataclass(frozen=True)
class Layout:
    """How a collection is spread over a cluster; counts when it is made, and not for one that is there.

    shards    parts that it is cut into; None: as the server has it
    replicas  nodes that hold each part; None: as the server has it
    """

    shards: int | None = None
    replicas: int | None = None


SERVERS_OWN = Layout()


def vector_params(schema: Schema) -> dict[str, models.VectorParams]:
    """The vector `global`: its float16 numbers on the disk, in memory one byte for each of them, and the graph."""
    return {
        "global": models.VectorParams(
            size=schema.global_dim,
            distance=models.Distance.COSINE,
            datatype=models.Datatype.FLOAT16,
            on_disk=True,
            hnsw_config=models.HnswConfigDiff(m=16, ef_construct=128),
            quantization_config=models.ScalarQuantization(
                scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=QUANTILE, always_ram=True)
            ),
        ),
    }


def search_params(top: int, exact: bool) -> models.SearchParams:
    """Candidates by their one-byte numbers, OVERSAMPLING times as many as asked, put in order by the stored ones."""
    return models.SearchParams(
        hnsw_ef=max(HNSW_EF_SEARCH, top),
        exact=exact,
        quantization=models.QuantizationSearchParams(ignore=exact, rescore=True, oversampling=OVERSAMPLING),
    )


_INDEX_PARAMS: Mapping[str, Any] = {
    "keyword": lambda: models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, on_disk=True),
    "datetime": lambda: models.DatetimeIndexParams(type=models.DatetimeIndexType.DATETIME, on_disk=True),
    "geo": lambda: models.GeoIndexParams(type=models.GeoIndexType.GEO, on_disk=True),
    "integer": lambda: models.IntegerIndexParams(type=models.IntegerIndexType.INTEGER, on_disk=True),
}


def missing_indexes(info: models.CollectionInfo) -> dict[str, Any]:
    """The payload indexes that a collection lacks, by field: on the disk, for in memory they would outgrow the graph.

    Those that are there are left as they are, whoever made them.
    """
    return {field: _INDEX_PARAMS[kind]() for field, kind in INDEXED_FIELDS.items() if field not in info.payload_schema}


def threshold_of(info: models.CollectionInfo) -> int:
    """kB of a segment's vectors from which on the server links them; 0: never."""
    threshold = info.config.optimizer_config.indexing_threshold
    return DEFAULT_THRESHOLD if threshold is None else threshold


def raised(threshold: int) -> int:
    """While much is loaded; a server that never links stays so."""
    return threshold + RAISED_BY if 0 < threshold < RAISED_BY else threshold


def lowered(threshold: int) -> int:
    """What it was before `raised`, the same where it was not."""
    return threshold - RAISED_BY if threshold >= RAISED_BY else threshold
