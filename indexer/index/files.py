"""Which files an image has, and with them what only files tell: an image without a date of its own has theirs."""

from ..images.jobs import date_outside
from ..images.metadata import OUTER_DATES
from ..store.protocol import Record, Store, StoredFile


def set_files(store: Store, files: dict[str, tuple[StoredFile, ...]]) -> None:
    """Replace the files of existing records, by id, each with one and more. Dates that were taken from names or times
    of files follow them.

    Dates are written first: a run that is killed in between finds the files out of line again.
    """
    dates = {}
    for record in store.retrieve(list(files)):
        metadata = record.metadata
        found = date_outside((file.key.rsplit("/", 1)[-1], file.mtime_ns) for file in files[record.id])
        if is_from_files(record) and found != (metadata.taken_at, metadata.date_source):
            dates[record.id] = found
    store.set_dates(dates)
    store.set_files(files)


def is_from_files(record: Record) -> bool:
    """Whether the image says nothing of its date; one without a source was indexed before sources were kept."""
    metadata = record.metadata
    return metadata.date_source in OUTER_DATES or (metadata.date_source is None and metadata.taken_at is None)
