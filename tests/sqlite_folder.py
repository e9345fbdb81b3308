"""An index of a few records on disk, and what tests of the embedded store ask of it."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from stored_records import RECORDS, SCHEMA, unit

from indexer.errors import SeenitError
from indexer.store.open import open_store
from indexer.store.protocol import Store

DATABASE = "index.sqlite"


def index_of_records(folder: Path) -> Path:
    """RECORDS in a new index at `folder`, closed."""
    with closing(open_store(folder, write=True)) as store:
        store.ensure(SCHEMA)
        store.upsert(RECORDS)
        store.write_blob("manifest.json", b"{}")
    return folder


def read_all(store: Store) -> list[object]:
    return [
        (
            record.id,
            record.files,
            record.metadata,
            record.whitening_id,
            record.tags,
            record.patches,
            record.global_vector.tobytes(),
        )
        for record in store.scroll(vectors=True)
        if record.global_vector is not None
    ]


def held(folder: Path) -> list[object]:
    with closing(open_store(folder)) as store:
        return read_all(store)


def one_line(error: pytest.ExceptionInfo[SeenitError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def query(seed: int, count: int = 3) -> np.ndarray:
    return unit(np.random.default_rng(seed), count, SCHEMA.global_dim)
