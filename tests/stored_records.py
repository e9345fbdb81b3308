"""Thirty records that differ in everything that a store keeps; also written by processes that tests kill."""

from datetime import UTC, datetime, timedelta

import numpy as np

from indexer.images.metadata import Metadata, content_id
from indexer.store.protocol import Record, Schema, StoredFile

SCHEMA = Schema(global_dim=16)
DAY_0 = datetime(2020, 1, 1, tzinfo=UTC)


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def make_record(number: int) -> Record:
    rng = np.random.default_rng(number)
    return Record(
        id=content_id(str(number).encode()),
        files=(
            StoredFile(f"0/album{number % 3}/image {number}.jpg", 1000 + number, 1_700_000_000_123_456_789 + number),
        ),
        metadata=Metadata(
            width=640 + number,
            height=480,
            format="JPEG",
            taken_at=DAY_0 + timedelta(days=number, microseconds=number),
            camera=("Canon EOS 5D", "NIKON D70", None)[number % 3],
            gps=(48.0 + number / 10, 11.5) if number % 2 else None,
            date_source=("exif", "xmp", "name", "file", None)[number % 5],
            frames=1 + number % 4,
            raw=number % 7 == 0,
            note="its end is missing" if number % 3 == 0 else None,
            keywords=("Straße", "two words")[: number % 3],
            rating=(None, 0, 3, 5, -1)[number % 5],
            title="a title" if number % 4 == 0 else None,
            caption="日本" if number % 6 == 0 else None,
        ),
        whitening_id="fit-a" if number < 20 else "fit-b",
        tags=("even",) if number % 2 == 0 else ("odd", "straße"),
        global_vector=unit(rng, 16),
        patches=rng.bytes(1000 + number),
        attributes={
            "sku": f"A {number}",
            "price": number / 2,
            "colours": ["red", "日本"][: number % 3],
            "deep": {"x": 1},
        }
        if number % 4 == 0
        else {},
    )


RECORDS = [make_record(number) for number in range(30)]
