"""The HTTP server: uvicorn, with what it lacks against clients that connect and say nothing, and a graceful end."""

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from indexer.errors import SeenitError, os_reason

from .app import create_app
from .pages import Pages
from .security import Access, cookie_name
from .service import Service

HEADERS_TIMEOUT_S = 15.0  # from a connection's start, or its last answer, to the end of the next request's headers
LOOK_S = 1.0  # between looks at a connection that has sent no whole request
KEEP_ALIVE_S = 15  # that a connection may be idle between requests
FINISH_S = 30  # that running requests may take at the end
BACKLOG = 2048
OPEN_FILES = 8192  # connections and files at once, where the system allows


class PatientProtocol(H11Protocol):
    """Ends connections whose request does not come; uvicorn waits for a first request for ever."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._waits_since: float | None = self.loop.time()
        self._look = self.loop.call_later(LOOK_S, self._look_at)

    def connection_lost(self, exc: Exception | None) -> None:
        self._look.cancel()
        super().connection_lost(exc)

    def _look_at(self) -> None:
        now = self.loop.time()
        if self.cycle is not None and not self.cycle.response_complete:
            self._waits_since = None
        elif self._waits_since is None:
            self._waits_since = now
        if self._waits_since is not None and now - self._waits_since > HEADERS_TIMEOUT_S:
            self.transport.close()
            return
        self._look = self.loop.call_later(LOOK_S, self._look_at)


class Server(uvicorn.Server):
    """A uvicorn server of one service. At the end running requests finish, and streams of events are ended first."""

    def __init__(self, service: Service, access: Access, port: int, pages: Pages | None = None) -> None:
        self._service = service
        logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it tells of every odd byte that is sent
        super().__init__(
            uvicorn.Config(
                create_app(service, access, cookie_name(service.index.location, port), pages),
                http=PatientProtocol,
                ws="none",
                lifespan="off",
                access_log=False,  # addresses of requests are nobody's business, and may name files
                log_level="error",
                server_header=False,
                date_header=True,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=FINISH_S,
                backlog=BACKLOG,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.stopping.set()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The first signal asks to finish, a second one to end at once; uvicorn's own would send it on to the process,
        which then ends before its index is closed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; SeenitError where it cannot."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise SeenitError(f"cannot listen at {host} port {port}: {os_reason(error)}; take another --port") from None


def allow_many_files(wanted: int = OPEN_FILES) -> None:
    """Raise the limit on open files, so that a thousand idle connections leave room for others."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
