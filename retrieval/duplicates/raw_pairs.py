"""Raw files and the JPEG or HEIC that the camera wrote beside them: two files of one shot, of which neither is a copy.

Their pixels need not lie on each other, for cameras straighten the lens and crop in the one and not in the other. So
names tell: one folder, one name before the suffix, and no two different times.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from indexer.images.raw import SUFFIXES
from indexer.store.protocol import Listed, Record

ONE_SHOT_S = 2.0  # that the times of two files may differ: some cameras write them after another
PAIR = "a raw file and the image of the same shot are a pair; both stay"


def beside_raw(listed: Iterable[Listed]) -> list[tuple[str, str]]:
    """The ids of files that lie beside a raw file of the same name: the raw one and the other one, by suffix."""
    raw: dict[str, set[str]] = defaultdict(set)
    other: dict[str, set[str]] = defaultdict(set)
    for one in listed:
        for file in one.files:
            stem, suffix = os.path.splitext(file.key)
            (raw if suffix.lower() in SUFFIXES else other)[stem].add(one.id)
    return sorted((id, beside) for stem, ids in raw.items() for id in ids for beside in other.get(stem, ()))


def shots(names: Sequence[tuple[str, str]], records: Mapping[str, Record]) -> list[tuple[str, str]]:
    """Which of them are one raw file and one image of the same time, as far as both have a real one."""
    return [
        (raw, other)
        for raw, other in names
        if raw in records
        and other in records
        and records[raw].metadata.raw
        and not records[other].metadata.raw
        and _one_time(records[raw], records[other])
    ]


def _one_time(one: Record, other: Record) -> bool:
    times = [
        record.metadata.taken_at.timestamp()
        for record in (one, other)
        if record.metadata.taken_at and record.metadata.date_source in ("exif", "xmp")
    ]
    return len(times) < 2 or abs(times[0] - times[1]) <= ONE_SHOT_S
