"""What a failed request means: the reason in a few words, the next step, and whether to try again.

What is surprising: the client library lets through the errors of what it is made of (httpx, grpc, pydantic), and what
is no Qdrant server fails in its answers' parsing, as ValueError, TypeError or KeyError. Why no connection came about
is told by the cause of an httpx error, and by gRPC only in words.
"""

import math
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import httpx
import pydantic
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from ..errors import first_line
from .qdrant_address import KEY_VARIABLES

FAILURES = (
    httpx.HTTPError,
    ResponseHandlingException,
    UnexpectedResponse,
    QdrantException,
    grpc.RpcError,
    ValueError,  # pydantic's too
    TypeError,
    KeyError,
)


# A server that is restarted refuses connections for some seconds. Where nothing has ever answered, a wrong port or a
# server that nobody started is as likely, and whoever typed it should not wait for minutes.
UNANSWERED_S = 10.0

_NO_SPACE = "no space left on device"  # as Qdrant and the systems below it say it
_LOOK = "check the address and that the server runs"


@dataclass(frozen=True)
class RequestFailure:
    reason: str
    next_step: str
    passing: bool = False  # whether repeating may help
    wait_s: float = 0.0  # as the server asks
    answered: bool = True  # by whatever is at the address, be it with a failure
    patience_s: float = math.inf  # repeated for so long at most where nothing has ever answered


def failure_of(error: Exception) -> RequestFailure:
    """error: one of FAILURES."""
    if isinstance(error, grpc.RpcError):
        return _grpc_failure(error)
    if isinstance(error, QdrantException):
        return _busy(error)
    if isinstance(error, httpx.HTTPError | ResponseHandlingException | UnexpectedResponse):
        return _http_failure(error)
    return RequestFailure(f"unexpected answer: {first_line(error)}", "check that it is a Qdrant server")


def _busy(error: QdrantException) -> RequestFailure:
    """429 and its like, with the pause that the server asks for, where that can be read."""
    wait_s = float(error.retry_after_s) if isinstance(error, ResourceExhaustedResponse) else 0.0
    asked = f" and asks to wait {wait_s:.0f} s" if wait_s else ""
    return RequestFailure(f"the server is busy (429){asked}", "try again later", True, max(0.0, wait_s))


def _http_failure(error: Exception) -> RequestFailure:
    if not isinstance(error, UnexpectedResponse):
        return _no_answer(error.source if isinstance(error, ResponseHandlingException) else error)
    status = error.status_code or 0
    if status == 401:
        return RequestFailure("the server refuses the API key (401)", f"set ${KEY_VARIABLES[0]} to a valid one")
    if status == 404:
        return RequestFailure("the collection is gone (404)", "check the address, or index again")
    said = first_line(error.content.decode("utf-8", "replace")) or error.reason_phrase
    if status == 403:
        return _forbidden(f"403: {said}")
    if _NO_SPACE in said.lower() or status == 507:
        return _full_disk(f"{status}: {said}")
    if status == 429 or status >= 500:
        after = error.headers.get("retry-after", "")
        wait_s = float(after) if after.isdecimal() else 0.0
        return RequestFailure(f"the server failed ({status}: {said})", "look into the server's log", True, wait_s)
    return RequestFailure(
        f"the server refused the request ({status}: {said})", "check the versions of server and seenit"
    )


def _no_answer(cause: Exception) -> RequestFailure:
    """Of a request over HTTP that got none, or none that can be read."""
    if isinstance(cause, pydantic.ValidationError):
        return RequestFailure("it does not answer like a Qdrant server", "check the address")
    what = "no answer in time" if isinstance(cause, httpx.TimeoutException) else first_line(cause)
    if not isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout):
        return _lost(what)
    roots = list(_causes(cause))
    if any(isinstance(root, socket.gaierror) for root in roots):
        return _unknown_host(what)
    if any(isinstance(root, ssl.SSLCertVerificationError) for root in roots):
        return RequestFailure(
            f"its certificate is not trusted ({what})", "check the address and the server's certificate"
        )
    return _unconnected(what)


def _grpc_failure(error: grpc.RpcError) -> RequestFailure:
    code, said = error.code(), first_line(error.details() or "")
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return RequestFailure("the server refuses the API key", f"set ${KEY_VARIABLES[0]} to a valid one")
    if code == grpc.StatusCode.PERMISSION_DENIED:
        return _forbidden(said)
    if _NO_SPACE in said.lower():
        return _full_disk(said)
    if code == grpc.StatusCode.UNAVAILABLE:
        if said.startswith(("errors resolving", "DNS resolution failed")):
            return _unknown_host(said)
        return _unconnected(said) if said.startswith("failed to connect") else _lost(said)
    passing = code in (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
    )
    return RequestFailure(
        f"{code.name.lower().replace('_', ' ')} ({said})", "check the address and the server's log", passing
    )


def _forbidden(said: str) -> RequestFailure:
    """The key's rights do not reach so far, or the server has a limit that is reached."""
    next_step = f"set ${KEY_VARIABLES[0]} to a key that may do this, or raise the server's limits"
    return RequestFailure(f"the server forbids it ({said})", next_step)


def _full_disk(said: str) -> RequestFailure:
    """Not passing: it stays full until somebody makes room, and what asks again writes to its log."""
    return RequestFailure(f"the server's disk is full ({said})", "make room on it and run this again")


def _lost(what: str) -> RequestFailure:
    """A connection was made, but broke off or brought nothing."""
    return RequestFailure(f"not reachable ({what})", _LOOK, True, answered=False)


def _unconnected(what: str) -> RequestFailure:
    return RequestFailure(f"not reachable ({what})", _LOOK, True, answered=False, patience_s=UNANSWERED_S)


def _unknown_host(what: str) -> RequestFailure:
    """Passing where the server has answered before: then names are not resolved for a moment, or the network is off."""
    return RequestFailure(f"no such host ({what})", "check the address", True, answered=False, patience_s=0.0)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
