"""Random conditions on random records: every store answers as a plain Python filter does.

Drawn are the cases that engines, SQL and their clients get wrong: names that hold wildcards, quotes or the character
that follows `/`, moments at a record's own, circles over a pole or over the 180th meridian, and all of it together.
"""

import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from stored_records import SCHEMA, unit

from indexer.images.metadata import Metadata, content_id
from indexer.store.attributes import conditions_of
from indexer.store.protocol import Filter, Record, Store, StoredFile

pytestmark = pytest.mark.filterwarnings("ignore:Local mode", "ignore:Payload indexes have no effect")

NUM_RECORDS, NUM_CONDITIONS = 100, 200
EARTH_RADIUS_KM = 6371.0088  # the mean radius that the IUGG recommends
NEAR_THE_BORDER = 1e-5  # of a circle's radius: stores round, and the earth's radius is not agreed upon to the metre

# Wildcards and quotes of SQL, neighbours of `/` in the order of characters, cases, composed and not, any bytes.
NAMES = [
    "a", "A", "a0", "a.", "a!", "a b", "a ", "100%", "100_", "100x", "_", "%", "*", "[a]", "?", "o'brien", '"quoted"',
    "back\\slash", "--", ";", "é", "e\u0301", "日本", "😀", "\udc80", "straße", "new\nline", "0", "00",
]  # fmt: skip
CAMERAS = [
    "Canon EOS 5D",
    "canon eos 5d mark ii",
    "NIKON D70",
    "iPhone 12",
    "iPhone 12 Pro",
    "Großbild-Kamera",
    "日本 X1",
    "%",
]
TAGS = [
    "holiday",
    "Holiday",
    "holi",
    "o'brien",
    "100%",
    "100_",
    "é",
    "e\u0301",
    "日本",
    "two words",
    '"',
    "\udc80",
    "0",
]
KEYWORDS = [tag for tag in TAGS if tag.isprintable()]  # XML and IPTC are decoded, they hold no lone surrogates
DATE_SOURCES = ["exif", "exif", "xmp", "name", "file", "file", None, "later"]
ATTRIBUTES: list[Any] = [
    ("sku", "A 1"), ("sku", "a 1"), ("sku", "A"), ("sku", 1), ("sku", "1"), ("sku", 1.0), ("sku", 1.5), ("sku", True),
    ("sku", "true"), ("sku", None), ("sku", ""), ("a=b", "c"), ("a", "b=c"), ("o'brien", '"quoted"'), ("日本", "é"),
    ("日本", "e\u0301"), ("%", "_"), ("$.sku", "A 1"), ("long", "x" * 5000), ("long", "x" * 5001), ("\udc80", "\udc80"),
    ("list", [1, "two", None]), ("list", "two"), ("list", []), ("list", [[1], {"two": 1}]), ("sku", {"A 1": 1}),
]  # fmt: skip
FITS = ["fit-a", "fit-b", "FIT-A", "fit%"]
ZONES = [UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-12)), timezone(timedelta(hours=5, minutes=45))]
PLACES = [
    (90.0, 0.0), (90.0, 135.0), (89.9, -60.0), (89.9, 120.0), (-90.0, 17.0), (-89.95, 179.9),  # poles
    (0.0, 180.0), (0.0, -180.0), (0.1, 179.95), (-0.1, -179.95), (65.0, 179.99), (65.0, -179.99),  # 180th meridian
    (0.0, 0.0), (48.8566, 2.3522), (48.8584, 2.2945), (-33.8688, 151.2093), (64.1466, -21.9426),
]  # fmt: skip
RADII_KM = [-1.0, 0.0, 0.5, 5.0, 12.0, 60.0, 400.0, 3000.0, 10_007.0, 15_000.0, 20_030.0, math.inf]
FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
# Of records; the very last microsecond is left to conditions, which may lie beyond it.
EXTREMES = [FIRST, LAST - timedelta(microseconds=1), datetime(1970, 1, 1, tzinfo=UTC)]


def draw_records(rng: random.Random) -> list[Record]:
    vectors = unit(np.random.default_rng(rng.getrandbits(32)), NUM_RECORDS, SCHEMA.global_dim)  # (N, G)
    return [
        Record(
            id=content_id(b"filters %d" % number),
            files=tuple(StoredFile(draw_key(rng), 1, 2) for _ in range(rng.choice([1, 1, 2, 3]))),
            metadata=Metadata(
                width=640,
                height=480,
                format="JPEG",
                taken_at=maybe(rng, lambda: draw_moment(rng)),
                date_source=rng.choice(DATE_SOURCES),
                camera=maybe(rng, lambda: rng.choice(CAMERAS)),
                gps=maybe(rng, lambda: draw_place(rng)),
                keywords=tuple(rng.sample(KEYWORDS, rng.choice([0, 1, 2, 5]))),
                rating=rng.choice([None, -1, 0, 1, 3, 5]),
            ),
            whitening_id=rng.choice(FITS),
            tags=tuple(rng.sample(TAGS, rng.choice([0, 1, 2, 5]))),
            global_vector=vectors[number],
            patches=b"",
            attributes=dict(rng.sample(ATTRIBUTES, rng.choice([0, 1, 2, 5, 9]))),
        )
        for number in range(NUM_RECORDS)
    ]


def maybe(rng: random.Random, draw: Callable[[], Any]) -> Any:
    return draw() if rng.random() < 0.8 else None


def draw_key(rng: random.Random) -> str:
    folders = [rng.choice(NAMES) for _ in range(rng.choice([0, 1, 1, 2, 3]))]
    return "/".join([rng.choice("01"), *folders, rng.choice(NAMES) + ".jpg"])


def draw_moment(rng: random.Random) -> datetime:
    day = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=rng.randrange(-40, 40), microseconds=rng.randrange(2))
    return rng.choice([day] * 8 + EXTREMES)


def draw_place(rng: random.Random) -> tuple[float, float]:
    if rng.random() < 0.3:
        return rng.uniform(-90, 90), rng.uniform(-180, 180)
    latitude, longitude = rng.choice(PLACES)
    return latitude, longitude


def draw_condition(rng: random.Random, records: list[Record]) -> Filter:
    """One condition or several; their values are mostly those of records."""
    names = ["under", "after", "before", "camera", "near", "tags", "keywords", "rating", "not_whitening_id", "not_ids"]
    names.append("attributes")
    drawn = rng.sample(names, rng.choice([1, 1, 1, 2, 2, 3, 10]))
    where = replace(Filter(), **{name: draw_value(rng, name, rng.choice(records)) for name in drawn})
    return replace(where, file_dates=rng.random() < 0.5)


def draw_value(rng: random.Random, name: str, record: Record) -> Any:
    if name == "under":
        return tuple(draw_folder(rng, record) for _ in range(rng.choice([1, 1, 2, 3])))
    if name in ("after", "before"):
        return draw_border(rng, record)
    if name == "camera":
        words = re.findall(r"\S+", record.metadata.camera or "nikon")
        words = rng.sample(words, rng.randrange(len(words) + 1)) + rng.choice([[], [], [], ["5d"], ["%"], ["can"]])
        return rng.choice([str.upper, str.lower, str.title])(" ".join(words))
    if name == "near":
        return draw_circle(rng, record)
    if name == "tags":
        return tuple(rng.sample(record.tags or TAGS, 1)) + rng.choice([(), (), ("holiday",), ("unknown",)])
    if name == "keywords":
        drawn = rng.sample(record.metadata.keywords or KEYWORDS, 1) + rng.choice([[], [], ["holiday"], ["unknown"]])
        return tuple(rng.choice([word, word.upper(), word.title()]) for word in drawn)
    if name == "attributes":
        return draw_attributes(rng, record)
    if name == "rating":
        return rng.choice([-1, 0, 1, 2, 3, 4, 5])
    if name == "not_whitening_id":
        return rng.choice([*FITS, "unknown"])
    return tuple({record.id, *(content_id(b"filters %d" % rng.randrange(200)) for _ in range(rng.randrange(40)))})


def draw_attributes(rng: random.Random, record: Record) -> tuple[tuple[str, Any], ...]:
    """Mostly those of the record, some of them as texts."""
    held = [
        (name, one)
        for name, value in [*record.attributes.items(), rng.choice(ATTRIBUTES)]
        for one in (value if isinstance(value, list) else [value])
        if not isinstance(one, (list, dict))
    ]
    drawn = rng.sample(held, min(len(held), rng.choice([1, 1, 2]))) or [("sku", "A 1")]
    return tuple((name, value if rng.random() < 0.5 else plain(value)) for name, value in drawn)


def draw_folder(rng: random.Random, record: Record) -> str:
    parts = record.files[0].key.split("/")
    folder = "/".join(parts[: rng.randrange(1, len(parts))])
    return rng.choice(
        [folder] * 12 + [folder[:-1] or "0", folder + "%", folder + "/", folder.swapcase(), record.files[0].key]
    )


def draw_border(rng: random.Random, record: Record) -> datetime:
    """A record's own moment or the microsecond beside it, in some zone or in none."""
    moment = record.metadata.taken_at or draw_moment(rng)
    if moment in EXTREMES:  # a zone would leave what datetime can hold, or make it a moment that UTC cannot
        return rng.choice([moment, moment.replace(tzinfo=None), moment.replace(tzinfo=rng.choice(ZONES))])
    moment += timedelta(microseconds=rng.choice([0, 0, 0, 1, -1]))
    return rng.choice([moment.astimezone(rng.choice(ZONES)), moment.replace(tzinfo=None)])


def draw_circle(rng: random.Random, record: Record) -> tuple[float, float, float]:
    """Around a record's place or another one; none whose border runs through a place that records have."""
    latitude, longitude = record.metadata.gps or draw_place(rng)
    if rng.random() < 0.5:
        latitude = max(-90.0, min(90.0, latitude + rng.uniform(-0.2, 0.2)))
        longitude += rng.uniform(-0.2, 0.2)  # may cross the 180th meridian
    return latitude, longitude, rng.choice(RADII_KM)


# The plain filter


def meets(record: Record, where: Filter) -> bool:
    return (
        (not where.under or any(file.key.startswith(key + "/") for file in record.files for key in where.under))
        and (where.after is None or is_from(record.metadata.taken_at, where.after))
        and (where.before is None or is_before(record.metadata.taken_at, where.before))
        and ((where.after is None and where.before is None) or where.file_dates or is_real(record.metadata.date_source))
        and words(where.camera or "") <= words(record.metadata.camera or "")
        and (where.near is None or is_within(record.metadata.gps, *where.near))
        and set(where.tags) <= set(record.tags)
        and {one.casefold() for one in where.keywords} <= {one.casefold() for one in record.metadata.keywords}
        and all(has(record, name, value) for name, value in conditions_of(where.attributes))
        and (where.rating is None or (record.metadata.rating is not None and record.metadata.rating >= where.rating))
        and record.whitening_id != where.not_whitening_id
        and record.id not in where.not_ids
    )


def has(record: Record, name: str, value: str) -> bool:
    there = record.attributes.get(name, [])
    plains = [one for one in (there if isinstance(there, list) else [there]) if not isinstance(one, (list, dict))]
    return value in map(plain, plains)


def plain(value: object) -> str:
    """A value as it is compared: 1, 1.0 and "1" are one, and so are true and "true"."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def is_from(taken_at: datetime | None, border: datetime) -> bool:
    return taken_at is not None and taken_at >= in_utc(border)


def is_before(taken_at: datetime | None, border: datetime) -> bool:
    return taken_at is not None and taken_at < in_utc(border)


def is_real(date_source: str | None) -> bool:
    return date_source is not None and date_source in {"exif", "xmp", "name"}


def in_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def is_within(gps: tuple[float, float] | None, latitude: float, longitude: float, radius_km: float) -> bool:
    return gps is not None and distance_km(gps, (latitude, longitude)) <= radius_km


def distance_km(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Along the great circle: the angle between the two directions from the earth's centre."""
    a, b = direction(*one), direction(*other)
    return EARTH_RADIUS_KM * math.atan2(float(np.linalg.norm(np.cross(a, b))), float(a @ b))


def direction(latitude: float, longitude: float) -> np.ndarray:
    north, east = math.radians(latitude), math.radians(longitude)
    return np.array([math.cos(north) * math.cos(east), math.cos(north) * math.sin(east), math.sin(north)])


def on_the_border(where: Filter, records: list[Record]) -> bool:
    """Whether rounding may decide about one of the records; a record at the centre itself is no such case."""
    if where.near is None:
        return False
    latitude, longitude, radius_km = where.near
    places = {record.metadata.gps for record in records if record.metadata.gps} - {(latitude, longitude)}
    distances = [distance_km(place, (latitude, longitude)) for place in places]
    return any(abs(distance - radius_km) < max(1e-5, NEAR_THE_BORDER * distance) for distance in distances)


# The tests


def drawn(seed: int) -> tuple[list[Record], list[Filter]]:
    rng = random.Random(seed)
    records = draw_records(rng)
    conditions = (draw_condition(rng, records) for _ in range(2 * NUM_CONDITIONS))
    return records, [where for where in conditions if not on_the_border(where, records)][:NUM_CONDITIONS]


@pytest.mark.slow
def test_what_is_drawn_tells_filters_apart() -> None:
    """Most conditions are met by some records and not by others, each kind of them included."""
    records, conditions = drawn(0)
    assert len(conditions) == NUM_CONDITIONS
    split = [where for where in conditions if 0 < sum(meets(record, where) for record in records) < len(records)]
    assert len(split) > len(conditions) / 2
    for name in Filter.__dataclass_fields__:
        assert sum(bool(getattr(where, name)) for where in split) >= 8, name


@pytest.mark.long
def test_stores_answer_as_a_plain_filter_does(empty: Store) -> None:
    records, conditions = drawn(0)
    empty.ensure(SCHEMA)
    empty.upsert(records)
    (query,) = unit(np.random.default_rng(0), 1, SCHEMA.global_dim)
    cosines = {record.id: float(query @ np.asarray(record.global_vector)) for record in records}
    for where in conditions:
        expected = sorted(record.id for record in records if meets(record, where))
        found = [record.id for record in empty.scroll(where, batch=50)]
        assert found == expected, (where, [r for r in records if r.id in set(found) ^ set(expected)])
        assert empty.count(where) == len(expected), where
        (hits,) = empty.search(query[None], 5, where)
        best = sorted((cosines[id] for id in expected), reverse=True)[:5]
        assert {hit.id for hit in hits} <= set(expected) and len(hits) == len(best), where
        np.testing.assert_allclose([hit.score for hit in hits], best, atol=2e-3, err_msg=str(where))
