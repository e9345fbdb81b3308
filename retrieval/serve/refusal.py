"""Why a request gets no answer: what every layer raises, and the one place that makes a response of it."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from indexer.errors import ImageError, LockedError, SeenitError, StoreError

from ..show.schema import ErrorAnswer, ErrorDetail, dumps

RETRY_AFTER_S = 1  # what a busy server asks for; a search takes a fraction of it


class Refusal(Exception):
    """A request that is not answered: an HTTP status, one line, and what is at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        details: Sequence[ErrorDetail] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.details = tuple(details)
        self.headers = headers or {}


def busy(what: str) -> Refusal:
    """The queue is full."""
    return Refusal(429, f"{what}; try again in a moment", headers={"Retry-After": str(RETRY_AFTER_S)})


def invalid(error: ValidationError) -> Refusal:
    """A body that is not what the schema says."""
    return Refusal(422, "the request is not as the API describes it; see /docs", details=details_of(error.errors()))


def details_of(errors: Sequence[Any]) -> list[ErrorDetail]:
    """pydantic's errors as ours; the values themselves are not repeated, since they may be anything."""
    return [
        ErrorDetail(
            where=".".join(str(part) for part in error["loc"] if part != "body"), message=_one_line(str(error["msg"]))
        )
        for error in errors
    ]


def refusal_of(error: SeenitError) -> Refusal:
    """What a user's mistake or the world's accident is over HTTP."""
    if isinstance(error, LockedError):
        return Refusal(409, str(error), headers={"Retry-After": str(RETRY_AFTER_S)})
    if isinstance(error, StoreError):
        return Refusal(503, str(error), headers={"Retry-After": str(RETRY_AFTER_S)})
    if isinstance(error, ImageError):
        return Refusal(422, f"cannot read {error.path}: {error.reason}")
    return Refusal(422, str(error))


def json_response(answer: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """ASCII, whatever bytes a file's name has; never kept by a cache."""
    return Response(
        dumps(answer), status, {"Cache-Control": "no-store", **(headers or {})}, media_type="application/json"
    )


def error_response(refusal: Refusal) -> Response:
    answer = ErrorAnswer(error=_one_line(refusal.message), details=refusal.details)
    return json_response(answer, refusal.status, refusal.headers)


def _one_line(text: str) -> str:
    return " ".join(text.split())
