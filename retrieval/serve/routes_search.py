"""Routes that search and explain."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from indexer.errors import SeenitError
from indexer.images.metadata import ID_PATTERN

from ..show.schema import BatchAnswer, ErrorAnswer, Explanation, SearchAnswer
from .refusal import Refusal, json_response, refusal_of
from .requests import BatchBody, ExplainBody, Options, QueryBody, SearchBody, filters_of
from .service import Service

IdInPath = Annotated[str, Path(pattern=ID_PATTERN)]
QUERIES_AT_ONCE = 8  # of one batch, so that it leaves room for others
RETRY_S = 0.05  # after which a batch tries again where the queue is full
PARTS = ("image", "like", "not")


def search_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["search"])

    @router.post("/api/search", response_model=None, openapi_extra=body_of(SearchBody, PARTS), **answers(SearchAnswer))
    async def search(request: Request) -> Response:
        """Find the images of the same thing: uploads, indexed images by id or path, or a vector."""
        async with service.uploads.body(request, SearchBody, PARTS) as (body, uploads):
            return json_response(await service.search(body, body.filters, body.options, uploads))

    @router.post(
        "/api/search/batch", response_model=None, openapi_extra=body_of(BatchBody, ("image",)), **answers(BatchAnswer)
    )
    async def batch(request: Request) -> Response:
        """Search with many queries that are asked alike; one that fails costs only its own answer."""
        room = asyncio.Semaphore(QUERIES_AT_ONCE)

        async with service.uploads.body(request, BatchBody, ("image",)) as (body, uploads):
            if not uploads and not body.queries:
                raise Refusal(422, "nothing to search with: send queries, or images")

            async def one(query: QueryBody, some: Any) -> SearchAnswer | ErrorAnswer:
                async with room:
                    try:
                        return await _patiently(service, query, body, some)
                    except (Refusal, SeenitError) as error:
                        refusal = error if isinstance(error, Refusal) else refusal_of(error)
                        name = some[0].source.name if some else query.id or query.path
                        return ErrorAnswer(query=name, error=refusal.message, details=refusal.details)

            asked = [one(QueryBody(), [upload]) for upload in uploads] + [one(query, []) for query in body.queries]
            return json_response(BatchAnswer(answers=tuple(await asyncio.gather(*asked))))

    @router.post(
        "/api/explain",
        response_model=None,
        openapi_extra=body_of(ExplainBody, ("query", "image")),
        **answers(Explanation),
    )
    async def explain(request: Request) -> Response:
        """Why two images are believed to show the same thing, or not."""
        async with service.uploads.body(request, ExplainBody, ("query", "image")) as (body, uploads):
            return json_response(await service.explain(body, uploads))

    @router.get("/api/images/{id}/similar", response_model=None, **answers(SearchAnswer))
    async def similar(
        id: IdInPath,
        top: Annotated[int, Query(ge=1, le=1000)] = 10,
        rerank: bool = True,
        under: Annotated[list[str], Query()] = [],  # noqa: B006 - FastAPI makes a new one for each request
        after: str | None = None,
        before: str | None = None,
        file_dates: bool = False,
        camera: str | None = None,
        near: Annotated[str | None, Query(description="LATITUDE,LONGITUDE,KM")] = None,
        tag: Annotated[list[str], Query()] = [],  # noqa: B006
        keyword: Annotated[list[str], Query()] = [],  # noqa: B006
        rating: Annotated[int | None, Query(ge=-1, le=5)] = None,
        where: Annotated[list[str], Query(description="NAME=VALUE, of the attributes")] = [],  # noqa: B006
    ) -> Response:
        """Search with an image of the index."""
        filters = filters_of(under, after, before, file_dates, camera, near, tag, keyword, rating, where)
        return json_response(await service.search(QueryBody(id=id), filters, Options(top=top, rerank=rerank)))

    return router


async def _patiently(service: Service, query: QueryBody, body: BatchBody, uploads: Any) -> SearchAnswer:
    """One query of a batch; where the queue is full it waits, for the batch holds a connection and no more."""
    while True:
        try:
            return await service.search(query, body.filters, body.options, uploads)
        except Refusal as refusal:
            if refusal.status != 429 or service.stopping.is_set():
                raise
            await asyncio.sleep(RETRY_S)


def answers(model: Any, status: int = 200, *more: int) -> dict[str, Any]:
    """What the description of the API says that a route answers."""
    errors = {400, 401, 403, 404, 409, 422, 429, 503, *more}
    described = {code: {"model": ErrorAnswer} for code in sorted(errors)}
    return {"responses": {status: {"model": model}, **described}, "status_code": status}


def body_of(model: Any, parts: tuple[str, ...]) -> dict[str, Any]:
    """The body of a route that takes JSON, or images beside it."""
    images = {"type": "array", "items": {"type": "string", "format": "binary"}}
    properties = {part: images for part in parts} | {
        "request": {"type": "string", "contentMediaType": "application/json", "description": f"{model.__name__}"}
    }
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}},
                "multipart/form-data": {"schema": {"type": "object", "properties": properties}},
            },
        }
    }
