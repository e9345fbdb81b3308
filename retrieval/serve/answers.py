"""What the server answers beside searches and explanations, as pydantic models; see `show.schema` for those."""

from typing import Any, Literal

from pydantic import Field

from indexer.index.keys import Roots
from indexer.store.protocol import Record

from ..duplicates.outcome import File
from ..show.schema import PUBLISHED, Answer, Text


class HealthAnswer(Answer):
    schema_: Literal["seenit.health/1"] = Field("seenit.health/1", alias="schema")
    status: Literal["ok", "stopping"]
    version: str
    token_required: bool
    authorized: bool


class InfoAnswer(Answer):
    """What the index holds, what made it, and how it is served."""

    schema_: Literal["seenit.info/1"] = Field("seenit.info/1", alias="schema")
    index: Text
    images: int
    folders: tuple[Text, ...]
    backbone: Text
    backbone_hash: str
    resolution: int
    descriptor: dict[str, Any]
    fitted_on: int
    dimensions: int | None
    calibrated: bool
    awaiting_refit: int
    bytes: dict[str, int]
    skipped: int
    not_images: int
    made_by: Text
    format: int
    version: str
    read_only: bool
    watching: bool
    move_to: Text | None = Field(description="where duplicates are moved to")


class ImageInfo(Answer):
    """An image of the index."""

    id: str
    path: Text
    copies: tuple[Text, ...]
    width: int
    height: int
    format: str
    taken_at: str | None
    date_source: str | None
    camera: Text | None
    gps: tuple[float, float] | None
    tags: tuple[Text, ...]
    attributes: dict[str, Any]
    bytes: int
    frames: int
    raw: bool
    note: Text | None


class ImageAnswer(ImageInfo):
    schema_: Literal["seenit.image/1"] = Field("seenit.image/1", alias="schema")


class ImagesAnswer(Answer):
    """One page of the library."""

    schema_: Literal["seenit.images/1"] = Field("seenit.images/1", alias="schema")
    total: int
    offset: int = Field(description="of the first image of this page")
    images: tuple[ImageInfo, ...]
    next_cursor: str | None


class Month(Answer):
    month: str | None = Field(description="2023-05; null where no date is known")
    images: int
    offset: int = Field(description="of its first image in the order of dates")


class DatesAnswer(Answer):
    schema_: Literal["seenit.dates/1"] = Field("seenit.dates/1", alias="schema")
    months: tuple[Month, ...]


class Folder(Answer):
    path: Text
    name: Text
    parent: Text | None
    images: int = Field(description="files in it and below")


class FoldersAnswer(Answer):
    schema_: Literal["seenit.folders/1"] = Field("seenit.folders/1", alias="schema")
    folders: tuple[Folder, ...]


class TagCount(Answer):
    tag: Text
    images: int


class TagsAnswer(Answer):
    schema_: Literal["seenit.tags/1"] = Field("seenit.tags/1", alias="schema")
    tags: tuple[TagCount, ...]


class ImageTagsAnswer(Answer):
    schema_: Literal["seenit.image_tags/1"] = Field("seenit.image_tags/1", alias="schema")
    id: str
    tags: tuple[Text, ...]


class Skipped(Answer):
    path: Text
    reason: Text


class SkippedAnswer(Answer):
    schema_: Literal["seenit.skipped/1"] = Field("seenit.skipped/1", alias="schema")
    total: int
    offset: int
    files: tuple[Skipped, ...]


class TaskAnswer(Answer):
    """A run of the index, or a search for duplicates."""

    schema_: Literal["seenit.task/1"] = Field("seenit.task/1", alias="schema")
    id: str
    kind: Literal["index", "duplicates"]
    state: Literal["running", "done", "failed", "stopped"]
    stage: Text
    done: int
    total: int = Field(description="0 where it is not known")
    message: Text
    notes: tuple[Text, ...]
    summary: dict[str, Any] | None
    started_at: str
    ended_at: str | None


class TasksAnswer(Answer):
    schema_: Literal["seenit.tasks/1"] = Field("seenit.tasks/1", alias="schema")
    tasks: tuple[TaskAnswer, ...]


class ChangedAnswer(Answer):
    """The index changed."""

    schema_: Literal["seenit.changed/1"] = Field("seenit.changed/1", alias="schema")
    images: int


class DuplicateFile(Answer):
    file: Text = Field(description="opaque; names this file in choices")
    path: Text
    id: str
    width: int
    height: int
    format: str
    bytes: int
    taken_at: str | None
    date_source: str | None
    frames: int
    raw: bool
    note: Text | None
    moved: bool


class DuplicateDifference(Answer):
    in_keeper: tuple[int, int, int, int] = Field(description="left, top, width, height in pixels")
    in_member: tuple[int, int, int, int]


class DuplicateMember(DuplicateFile):
    level: Literal["exact", "near", "scene"]
    similarity: float
    how: Text
    spare: bool
    why_not: Text | None
    differs_at: tuple[DuplicateDifference, ...]
    transform: tuple[tuple[float, float, float], tuple[float, float, float]] | None = Field(
        description="affine, from fractions of the keeper to those of the member"
    )


class DuplicateGroup(Answer):
    group: int
    keeper: DuplicateFile
    why_kept: Text | None
    bytes_freed: int
    members: tuple[DuplicateMember, ...]


class DuplicatesRun(Answer):
    id: str
    level: str
    keep: str
    images: int
    seconds: float
    notes: tuple[Text, ...]
    groups: int
    spare_files: int
    spare_bytes: int
    finished_at: str


class AppliedManifest(Answer):
    manifest: str
    files: int
    bytes: int


class DuplicatesAnswer(Answer):
    """One page of the last run."""

    schema_: Literal["seenit.duplicates/1"] = Field("seenit.duplicates/1", alias="schema")
    run: DuplicatesRun | None
    total: int
    offset: int
    groups: tuple[DuplicateGroup, ...]
    applied: tuple[AppliedManifest, ...] = Field(description="what can be undone, the newest first")


class MovedAnswer(Answer):
    """What was moved, or put back."""

    schema_: Literal["seenit.moved/1"] = Field("seenit.moved/1", alias="schema")
    dry_run: bool
    files: int
    bytes: int
    left: tuple[Text, ...] = Field(description="what was left alone, and why")
    manifest: str | None
    to: Text | None
    moved: tuple[Text, ...] = Field(description="`file` of each")
    notes: tuple[Text, ...]


class SchemasAnswer(Answer):
    schema_: Literal["seenit.schemas/1"] = Field("seenit.schemas/1", alias="schema")
    schemas: dict[str, Any]


ALL: tuple[type[Answer], ...] = (
    *PUBLISHED,
    HealthAnswer,
    InfoAnswer,
    ImageAnswer,
    ImagesAnswer,
    DatesAnswer,
    FoldersAnswer,
    TagsAnswer,
    ImageTagsAnswer,
    SkippedAnswer,
    TaskAnswer,
    TasksAnswer,
    ChangedAnswer,
    DuplicatesAnswer,
    MovedAnswer,
    SchemasAnswer,
)


def image_values(record: Record, roots: Roots) -> dict[str, Any]:
    """A record as the fields of `ImageInfo`."""
    metadata = record.metadata
    paths = [roots.path(file.key) for file in record.files]
    return {
        "id": record.id,
        "path": paths[0] if paths else "",
        "copies": tuple(paths[1:]),
        "width": metadata.width,
        "height": metadata.height,
        "format": metadata.format,
        "taken_at": metadata.taken_at.isoformat() if metadata.taken_at else None,
        "date_source": metadata.date_source,
        "camera": metadata.camera,
        "gps": metadata.gps,
        "tags": record.tags,
        "attributes": dict(record.attributes),
        "bytes": record.files[0].size if record.files else 0,
        "frames": metadata.frames,
        "raw": metadata.raw,
        "note": metadata.note,
    }


def duplicate_values(record: Record, file: File, moved: bool) -> dict[str, Any]:
    """A file of a group as the fields of `DuplicateFile`."""
    metadata = record.metadata
    return {
        "file": file.key,
        "path": file.path,
        "id": record.id,
        "width": metadata.width,
        "height": metadata.height,
        "format": metadata.format,
        "bytes": file.size,
        "taken_at": metadata.taken_at.isoformat() if metadata.taken_at else None,
        "date_source": metadata.date_source,
        "frames": metadata.frames,
        "raw": metadata.raw,
        "note": metadata.note,
        "moved": moved,
    }
