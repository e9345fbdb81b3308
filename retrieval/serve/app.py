"""The web application: routes, the layers around them, and what becomes of errors."""

from typing import Annotated, Any

from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from indexer.errors import SeenitError
from indexer.version import VERSION

from .answers import HealthAnswer
from .api_page import STYLE, api_page
from .pages import Pages
from .refusal import Refusal, details_of, error_response, invalid, json_response, refusal_of
from .requests import BatchBody, ExplainBody, SearchBody, SessionBody
from .routes_library import library_routes
from .routes_search import answers, search_routes
from .routes_work import work_routes
from .security import Access, BodyLimit, Guard
from .service import Service
from .uploads import MAX_BODY_BYTES, MAX_JSON_BYTES


def create_app(service: Service, access: Access, cookie: str = "seenit", pages: Pages | None = None) -> Guard:
    """The application of one served index, guarded; see `security` for who may ask.

    cookie  name of the cookie of a session
    pages   the page's files; default: those of the package
    """
    app = FastAPI(
        title="seenit",
        version=VERSION,
        description="Search an index of images by image; the same answers as `seenit search --json`.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.include_router(search_routes(service))
    app.include_router(library_routes(service))
    app.include_router(work_routes(service))
    _add_access(app, service, access, cookie)
    _add_description(app)
    _add_pages(app, pages or Pages())
    _add_errors(app)
    app.add_middleware(BodyLimit, max_json=MAX_JSON_BYTES, max_upload=MAX_BODY_BYTES)
    return Guard(app, access, cookie)


def _add_access(app: FastAPI, service: Service, access: Access, cookie: str) -> None:
    @app.get("/api/health", response_model=None, tags=["access"], **answers(HealthAnswer))
    def health(request: Request) -> Response:
        """Whether the server is there, and whether the request may ask it more."""
        return json_response(
            HealthAnswer(
                status="stopping" if service.stopping.is_set() else "ok",
                version=VERSION,
                token_required=access.token is not None,
                authorized=request.state.authorized,
            )
        )

    @app.post("/api/session", response_model=None, tags=["access"], status_code=204)
    def open_session(body: Annotated[SessionBody, Body()]) -> Response:
        """Give a browser a cookie for the token."""
        if not access.opens_session(body.token):
            raise Refusal(401, "the token is another one", headers={"WWW-Authenticate": "Bearer"})
        response = Response(status_code=204)
        response.set_cookie(cookie, access.session, httponly=True, samesite="strict", path="/")
        return response

    @app.delete("/api/session", response_model=None, tags=["access"], status_code=204)
    def close_session() -> Response:
        """Take the cookie away."""
        response = Response(status_code=204)
        response.delete_cookie(cookie, httponly=True, samesite="strict", path="/")
        return response


def _add_description(app: FastAPI) -> None:
    """`/openapi.json` with the bodies that routes read themselves, and `/docs`, which asks nobody else."""
    build = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = build()
            _, bodies = models_json_schema(
                [(model, "validation") for model in (SearchBody, BatchBody, ExplainBody)],
                ref_template="#/components/schemas/{model}",
            )
            known = schema.setdefault("components", {}).setdefault("schemas", {})
            for name, value in bodies["$defs"].items():
                known.setdefault(name, value)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]

    @app.get("/openapi.json", include_in_schema=False)
    def openapi() -> dict[str, Any]:
        return app.openapi()

    @app.get("/docs", include_in_schema=False)
    def docs() -> Response:
        return HTMLResponse(api_page(app.openapi()))

    @app.get("/docs.css", include_in_schema=False)
    def style() -> Response:
        return Response(STYLE, media_type="text/css")


def _add_pages(app: FastAPI, pages: Pages) -> None:
    @app.get("/", include_in_schema=False)
    def start(request: Request) -> Response:
        return pages.response(request, "index.html")

    @app.get("/{address:path}", include_in_schema=False)
    def page(request: Request, address: str) -> Response:
        if address == "api" or address.startswith("api/"):
            raise Refusal(404, f"there is no /{address[:200]}; see /docs")
        return pages.response(request, address)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return error_response(error)

    @app.exception_handler(SeenitError)
    async def mistaken(_: Request, error: Exception) -> Response:
        assert isinstance(error, SeenitError)
        return error_response(refusal_of(error))

    @app.exception_handler(ValidationError)
    async def not_as_described(_: Request, error: Exception) -> Response:
        assert isinstance(error, ValidationError)
        return error_response(invalid(error))

    @app.exception_handler(RequestValidationError)
    async def not_valid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        if any(one["type"] == "json_invalid" for one in error.errors()):
            return error_response(Refusal(400, "the body is no JSON"))
        details = details_of(error.errors())
        return error_response(Refusal(422, "the request is not as the API describes it; see /docs", details=details))

    @app.exception_handler(HTTPException)
    async def refused_by_the_framework(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if isinstance(error.__cause__, Refusal):  # raised while the body was read
            return error_response(error.__cause__)
        headers = dict(error.headers) if error.headers else None
        return error_response(Refusal(error.status_code, str(error.detail), headers=headers))

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return error_response(Refusal(500, f"internal error: {type(error).__name__}; please report it"))
