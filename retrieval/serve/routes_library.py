"""Routes that look: images, thumbnails, folders, dates, tags; and the tags that are changed."""

import os
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Query, Request
from starlette.responses import Response

from indexer.index.keys import Roots

from ..show.schema import json_schemas
from .answers import (
    ALL,
    DatesAnswer,
    Folder,
    FoldersAnswer,
    ImageAnswer,
    ImageInfo,
    ImagesAnswer,
    ImageTagsAnswer,
    InfoAnswer,
    Month,
    SchemasAnswer,
    Skipped,
    SkippedAnswer,
    TagCount,
    TagsAnswer,
    image_values,
)
from .files import IMMUTABLE, Original, open_original
from .refusal import json_response
from .requests import TagsBody, filters_of
from .routes_search import IdInPath, answers
from .service import Service

Offset = Annotated[int, Query(ge=0, le=2**53)]
Limit = Annotated[int, Query(ge=1, le=1000)]
Texts = Annotated[list[str], Query()]


def library_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["library"])
    index, library = service.index, service.library

    @router.get("/api/images", response_model=None, **answers(ImagesAnswer))
    def images(
        order: Literal["date", "path"] = "date",
        offset: Offset = 0,
        limit: Limit = 200,
        cursor: Annotated[str | None, Query(max_length=10_000)] = None,
        under: Texts = [],  # noqa: B006 - FastAPI makes a new one for each request
        after: str | None = None,
        before: str | None = None,
        file_dates: bool = False,
        camera: str | None = None,
        near: Annotated[str | None, Query(description="LATITUDE,LONGITUDE,KM")] = None,
        tag: Texts = [],  # noqa: B006
        keyword: Texts = [],  # noqa: B006
        rating: Annotated[int | None, Query(ge=-1, le=5)] = None,
        where: Annotated[list[str], Query(description="NAME=VALUE, of the attributes")] = [],  # noqa: B006
    ) -> Response:
        """A page of the images that meet the conditions: the newest first, or by path."""
        asked = filters_of(under, after, before, file_dates, camera, near, tag, keyword, rating, where)
        conditions = service.where(asked)
        total, start, records, next_cursor = library.page(conditions, order, offset, limit, cursor)
        found = tuple(ImageInfo(**image_values(record, index.roots)) for record in records)
        return json_response(ImagesAnswer(total=total, offset=start, images=found, next_cursor=next_cursor))

    @router.get("/api/dates", response_model=None, **answers(DatesAnswer))
    def dates(
        under: Texts = [],  # noqa: B006
        after: str | None = None,
        before: str | None = None,
        file_dates: bool = False,
        camera: str | None = None,
        near: str | None = None,
        tag: Texts = [],  # noqa: B006
        keyword: Texts = [],  # noqa: B006
        rating: Annotated[int | None, Query(ge=-1, le=5)] = None,
        where: Annotated[list[str], Query(description="NAME=VALUE, of the attributes")] = [],  # noqa: B006
    ) -> Response:
        """Months with how many images they have, the newest first."""
        asked = filters_of(under, after, before, file_dates, camera, near, tag, keyword, rating, where)
        conditions = service.where(asked)
        months: list[Month] = []
        offset = 0
        for month, count in library.listing(conditions).months:
            months.append(Month(month=month, images=count, offset=offset))
            offset += count
        return json_response(DatesAnswer(months=tuple(months)))

    @router.get("/api/folders", response_model=None, **answers(FoldersAnswer))
    def folders() -> Response:
        """Every folder with images, with how many files are in it and below."""
        return json_response(FoldersAnswer(folders=tuple(_folders(library.folders(), index.roots))))

    @router.get("/api/tags", response_model=None, **answers(TagsAnswer))
    def tags() -> Response:
        """Every tag with how many images have it, the most frequent first."""
        return json_response(TagsAnswer(tags=tuple(TagCount(tag=tag, images=count) for tag, count in library.tags())))

    @router.get("/api/info", response_model=None, **answers(InfoAnswer))
    def info() -> Response:
        """What the index holds, what made it, and how it is served."""
        return json_response(service.info())

    @router.get("/api/skipped", response_model=None, **answers(SkippedAnswer))
    def skipped(offset: Offset = 0, limit: Limit = 200) -> Response:
        """Files that were read and gave no image, with the reason."""
        broken = [file for file in index.skipped() if file.reason is not None]
        some = tuple(
            Skipped(path=index.roots.path(file.key), reason=file.reason or "")
            for file in broken[offset : offset + limit]
        )
        return json_response(SkippedAnswer(total=len(broken), offset=offset, files=some))

    @router.get("/api/schema", response_model=None, **answers(SchemasAnswer))
    def schema() -> Response:
        """The JSON Schemas of all answers, by the name that they carry."""
        return json_response(SchemasAnswer(schemas=json_schemas(ALL)))

    @router.get("/api/images/{id}/info", response_model=None, **answers(ImageAnswer))
    def image_info(id: IdInPath) -> Response:
        """All that the index knows of an image."""
        return json_response(ImageAnswer(**image_values(service.record(id), index.roots)))

    @router.head("/api/images/{id}/thumbnail", include_in_schema=False)
    @router.get(
        "/api/images/{id}/thumbnail",
        response_model=None,
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}},
    )
    async def thumbnail(request: Request, id: IdInPath, size: Annotated[int, Query(ge=1, le=4096)] = 320) -> Response:
        """A JPEG of the image, upright; its longer side is `size` or the next larger one that is made."""
        etag = f'"{id}-{size}"'
        headers = {"Cache-Control": IMMUTABLE, "ETag": etag}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        data = await service.decoded(service.thumbnail, id, size)
        return Response(data, headers=headers, media_type="image/jpeg")

    @router.head("/api/images/{id}", include_in_schema=False)
    @router.get(
        "/api/images/{id}",
        response_model=None,
        response_class=Response,
        responses={200: {"content": {"image/*": {}}}, 206: {"content": {"image/*": {}}}},
    )
    def original(request: Request, id: IdInPath) -> Response:
        """The file's own bytes, or a range of them."""
        if request.headers.get("if-none-match") == f'"{id}"':
            return Response(status_code=304, headers={"Cache-Control": IMMUTABLE, "ETag": f'"{id}"'})
        file, source = open_original(index, service.record(id))
        try:
            return Original(file, source.path, id, request.headers.get("range"), request.headers.get("if-range"))
        except BaseException:
            file.close()
            raise

    @router.put("/api/images/{id}/tags", response_model=None, **answers(ImageTagsAnswer))
    def put_tags(id: IdInPath, body: Annotated[TagsBody, Body()]) -> Response:
        """Give an image these tags and no others."""
        return json_response(ImageTagsAnswer(id=id, tags=service.set_tags(id, lambda before: body.tags)))

    @router.delete("/api/images/{id}/tags", response_model=None, **answers(ImageTagsAnswer))
    def delete_tags(id: IdInPath, tag: Texts = []) -> Response:  # noqa: B006
        """Take tags off an image; all of them where none is named."""
        gone = set(tag)
        left = service.set_tags(id, lambda before: [one for one in before if gone and one not in gone])
        return json_response(ImageTagsAnswer(id=id, tags=left))

    return router


def _folders(counts: list[tuple[str, int]], roots: Roots) -> list[Folder]:
    found = []
    for key, count in counts:
        path = roots.path(key)
        parent = roots.path(key.rpartition("/")[0]) if "/" in key else None
        found.append(Folder(path=path, name=os.path.basename(path) or path, parent=parent, images=count))
    return found
