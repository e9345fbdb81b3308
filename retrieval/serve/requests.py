"""What may be asked, as pydantic models: bodies of requests, and how they become a Filter and SearchOptions."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from indexer.errors import SeenitError
from indexer.images.metadata import ID_PATTERN
from indexer.store.attributes import conditions_of
from indexer.store.protocol import Filter
from indexer.terminal import MOST_LATITUDE, MOST_LONGITUDE, MOST_RADIUS_KM, attribute_of, moment_of

from ..options import SearchOptions
from ..show.schema import Fraction, Text

MOST_VIEWS = 16  # images of one query, and of its likes, and of its dislikes
MOST_QUERIES = 64  # in one batch
MOST_TAGS = 200
LONGEST_TAG = 200  # characters


def _region(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    if box[2] <= 0 or box[3] <= 0:
        raise ValueError("width and height of a region are above 0")
    return box


def _moment(text: str) -> str:
    moment_of(text)
    return text


ImageId = Annotated[str, Field(pattern=ID_PATTERN)]
Region = Annotated[tuple[Fraction, Fraction, Fraction, Fraction], AfterValidator(_region)]
Moment = Annotated[str, AfterValidator(_moment), Field(description="2023, 2023-05, 2023-05-01 or an ISO 8601 moment")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Plain = bool | int | Finite | Text | None
Place = tuple[
    Annotated[float, Field(ge=-MOST_LATITUDE, le=MOST_LATITUDE)],
    Annotated[float, Field(ge=-MOST_LONGITUDE, le=MOST_LONGITUDE)],
    Annotated[float, Field(ge=0, le=MOST_RADIUS_KM)],
]


class Asked(BaseModel):
    """What all bodies share: a field that is not known is an error, for it would change nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)


class Filters(Asked):
    """Conditions that a result must meet, all of them."""

    under: tuple[Text, ...] = Field((), max_length=1000, description="folders, any of them: absolute or below a root")
    after: Moment | None = Field(None, description="taken then or later")
    before: Moment | None = Field(None, description="taken earlier than that")
    file_dates: bool = Field(False, description="where an image has no date of its own, go by its file's time")
    camera: Text | None = Field(None, description="words of the camera's name")
    near: Place | None = Field(None, description="latitude, longitude in degrees, radius in km")
    tags: tuple[Text, ...] = Field((), max_length=1000, description="all of them")
    keywords: tuple[Text, ...] = Field((), max_length=1000, description="of the images' own metadata, all of them")
    rating: int | None = Field(None, ge=-1, le=5, description="of the images' own metadata: so many stars or more")
    attributes: dict[Text, Plain] = Field({}, max_length=100, description="of added images, all of them")

    def to_filter(self) -> Filter:
        return Filter(
            under=self.under,
            after=moment_of(self.after) if self.after else None,
            before=moment_of(self.before) if self.before else None,
            camera=self.camera or None,
            near=self.near,
            tags=self.tags,
            keywords=self.keywords,
            rating=self.rating,
            attributes=conditions_of(self.attributes),
            file_dates=self.file_dates,
        )


class Options(Asked):
    """How to search; the defaults are those of `seenit search`."""

    top: int = Field(SearchOptions.top, ge=1, le=1000, description="results")
    rerank: bool = Field(SearchOptions.rerank, description="compare the best candidates patch by patch")
    exact: bool = Field(SearchOptions.exact, description="compare with every image")
    include_self: bool = Field(SearchOptions.include_self, description="keep the query's own files in")
    expand: int = Field(SearchOptions.expand, ge=0, le=100, description="query expansion over so many results")
    augment: int = Field(SearchOptions.augment, ge=0, le=100, description="database-side augmentation, neighbours")
    like_kind: bool = Field(SearchOptions.like_kind, description="find others of the kind as well")

    def to_options(self, filters: Filters) -> SearchOptions:
        return SearchOptions(
            self.top,
            filters.to_filter(),
            self.rerank,
            self.exact,
            self.include_self,
            self.expand,
            self.augment,
            like_kind=self.like_kind,
        )


class QueryBody(Asked):
    """One query: indexed images by id or path, or a vector; uploads come beside it."""

    id: ImageId | None = Field(None, description="an indexed image")
    ids: tuple[ImageId, ...] = Field((), max_length=MOST_VIEWS, description="further views of the same thing")
    path: Text | None = Field(None, description="of an indexed file, absolute")
    vector: tuple[Finite, ...] | None = Field(
        None, min_length=1, max_length=65_536, description="as Searcher.embed returns it"
    )
    like: tuple[Text, ...] = Field((), max_length=MOST_VIEWS, description="ids or paths of results that were right")
    unlike: tuple[Text, ...] = Field((), alias="not", max_length=MOST_VIEWS, description="of results that were wrong")
    region: Region | None = Field(None, description="the part of the first image that counts: x, y, width, height")


class SearchBody(QueryBody):
    """A query with its conditions and options."""

    filters: Filters = Filters()
    options: Options = Options()


class BatchBody(Asked):
    """Several queries that are asked alike; uploads are further queries, a query each."""

    queries: tuple[QueryBody, ...] = Field((), max_length=MOST_QUERIES)
    filters: Filters = Filters()
    options: Options = Options()


class ExplainBody(Asked):
    """Two images; each an id or the path of an indexed file, unless it is uploaded."""

    query: Text | None = None
    image: Text | None = None
    region: Region | None = Field(None, description="the part of the query that counts")
    similarity: bool = Field(False, description="with both similarity maps")


class TagsBody(Asked):
    """The tags that an image is to have, and no others."""

    tags: tuple[Annotated[str, Field(min_length=1, max_length=LONGEST_TAG)], ...] = Field(max_length=MOST_TAGS)


class IndexBody(Asked):
    allow_empty: bool = Field(False, description="accept that a folder with indexed images is now empty")
    follow_links: bool = Field(False, description="also what links out of the folders lead to")


class DuplicatesBody(Asked):
    level: Literal["exact", "near", "scene"] = "near"
    keep: Literal["resolution", "bytes", "format", "oldest", "newest"] = "resolution"


class Choice(Asked):
    group: int = Field(ge=0)
    move: tuple[Text, ...] = Field(description="`file` of each file to move; one at least stays")


class ApplyBody(Asked):
    run: str = Field(description="id of the run that the choices were made on")
    choices: tuple[Choice, ...] = Field(max_length=100_000)
    dry_run: bool = False


class UndoBody(Asked):
    manifest: Annotated[str, Field(pattern=r"^seenit-moved-[0-9-]{1,40}\.jsonl$")]


class SessionBody(Asked):
    token: str = Field(max_length=1000)


def filters_of(
    under: list[str],
    after: str | None,
    before: str | None,
    file_dates: bool,
    camera: str | None,
    near: str | None,
    tag: list[str],
    keyword: list[str],
    rating: int | None,
    where: list[str],
) -> Filters:
    """The same conditions out of an address; SeenitError for a `near` that is not three numbers, or a `where` that is
    not NAME=VALUE.

    pydantic's ValidationError where they are no conditions.
    """
    values: dict[str, Any] = {"under": under, "camera": camera, "tags": tag, "keywords": keyword, "rating": rating}
    try:
        values["attributes"] = dict(map(attribute_of, where))
    except ValueError as error:
        raise SeenitError(f"where: {error}") from None
    values |= {"after": after, "before": before, "file_dates": file_dates}
    if near is not None:
        parts = near.split(",")
        if len(parts) != 3:
            raise SeenitError(f"near={near} is not LATITUDE,LONGITUDE,KM")
        values["near"] = tuple(parts)
    return Filters.model_validate(values)
