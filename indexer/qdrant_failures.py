"""What a failed request means: the reason in a few words, the next step, and whether to try again.

What is surprising: the client library lets through the errors of what it is made of (httpx, grpc, pydantic), and what
is no Qdrant server fails in its answers' parsing, as ValueError, TypeError or KeyError.
"""

from dataclasses import dataclass

import grpc
import httpx
import pydantic
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from .errors import first_line
from .qdrant_address import KEY_VARIABLES

FAILURES = (
    httpx.HTTPError,
    ResponseHandlingException,
    UnexpectedResponse,
    ResourceExhaustedResponse,
    grpc.RpcError,
    ValueError,  # pydantic's too
    TypeError,
    KeyError,
)


@dataclass(frozen=True)
class Failure:
    reason: str
    next_step: str
    passing: bool = False  # whether repeating may help
    wait_s: float = 0.0  # as the server asks


def failure_of(error: Exception) -> Failure:
    """error: one of FAILURES."""
    if isinstance(error, grpc.RpcError):
        return _grpc_failure(error)
    if isinstance(error, httpx.HTTPError | ResponseHandlingException | UnexpectedResponse | ResourceExhaustedResponse):
        return _http_failure(error)
    return Failure(f"unexpected answer: {first_line(error)}", "check that it is a Qdrant server")


def _http_failure(error: Exception) -> Failure:
    if isinstance(error, ResourceExhaustedResponse):
        return Failure("the server is busy (429)", "try again later", True, error.retry_after_s)
    if not isinstance(error, UnexpectedResponse):
        cause = error.source if isinstance(error, ResponseHandlingException) else error
        if isinstance(cause, pydantic.ValidationError):
            return Failure("it does not answer like a Qdrant server", "check the address")
        what = "no answer in time" if isinstance(cause, httpx.TimeoutException) else first_line(cause)
        return Failure(f"not reachable ({what})", "check the address and that the server runs", True)
    status = error.status_code or 0
    if status in (401, 403):
        return Failure(f"the server refuses the API key ({status})", f"set ${KEY_VARIABLES[0]} to a valid one")
    if status == 404:
        return Failure("the collection is gone (404)", "check the address, or index anew")
    said = first_line(error.content.decode("utf-8", "replace")) or error.reason_phrase
    if status == 429 or status >= 500:
        return Failure(f"the server failed ({status}: {said})", "look into the server's log", True)
    return Failure(f"the server refused the request ({status}: {said})", "check the versions of server and seenit")


def _grpc_failure(error: grpc.RpcError) -> Failure:
    code, said = error.code(), first_line(error.details() or "")
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return Failure("the server refuses the API key", f"set ${KEY_VARIABLES[0]} to a valid one")
    passing = code in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
    )
    return Failure(f"{code.name.lower().replace('_', ' ')} ({said})", "check the address and the server's log", passing)
