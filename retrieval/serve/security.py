"""Who may ask: the Host header, the token, where a request comes from, how much it may send; and what pages may do.

A server on the loopback is within reach of every web page that its user opens. A page may send requests to it, and may
point a name of its own at 127.0.0.1, after which the browser takes the server for the page's own. So the Host header
must be an address or a name of this machine, requests that come from another site are refused, and every page forbids
scripts and requests to anywhere else.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import secrets
import socket
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from indexer.errors import SeenitError
from indexer.store.protocol import is_url

from .refusal import Refusal, error_response

CSP = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
OPEN_PATHS = ("/api/health", "/api/session")  # that need no token
LEAST_TOKEN = 12  # characters, where others can reach the server
CHUNK_TIMEOUT_S = 20.0  # that a client may take for its next bytes
BODY_TIMEOUT_S = 300.0  # and for a whole body


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server at `host`."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


@dataclass(frozen=True)
class Access:
    """Who may ask.

    host     the address that the server listens at
    token    what every request must carry; None: nothing, which is for the loopback only
    names    further names of this machine that requests may come by
    session  the cookie's value; it is worth as much as the token, and ends with the process; but see `access_to`
    SeenitError for a token that is missing or too short.
    """

    host: str
    token: str | None = field(default=None, repr=False)
    names: tuple[str, ...] = ()
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    one_time: list[str] = field(default_factory=list, repr=False)  # that open one session each

    def __post_init__(self) -> None:
        if self.token is None and not is_loopback(self.host):
            raise SeenitError(
                f"others can reach a server at {self.host}; give it a --token of {LEAST_TOKEN} characters or more, or"
                " leave --host out"
            )
        if self.token is not None and len(self.token) < LEAST_TOKEN:
            raise SeenitError(f"the token has {len(self.token)} characters; take {LEAST_TOKEN} or more")

    def allows_host(self, header: str | None) -> bool:
        """Whether a Host header names this machine: a foreign name that leads here is a trick."""
        name = _name_of(header or "")
        if name is None:
            return False
        address = _address(name)
        if address is not None:  # nobody else can give out an address; but one of the loopback means the loopback
            return address.is_loopback or not is_loopback(self.host)
        own = {"localhost", self.host, *self.names}
        if not is_loopback(self.host):
            own |= {socket.gethostname(), f"{socket.gethostname()}.local"}
        return name.lower().rstrip(".") in {one.lower() for one in own}

    def is_authorized(self, headers: Headers, cookie: str) -> bool:
        """Whether the request carries the token, or the cookie of a session; in constant time."""
        if self.token is None:
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _same(given.strip(), self.token):
            return True
        return _same(cookie, self.session)

    def opens_session(self, given: str) -> bool:
        """Whether what a page gives is the token, or a code that was not used yet."""
        if self.token is None or _same(given, self.token):
            return True
        for code in list(self.one_time):
            if _same(given, code):
                self.one_time.remove(code)
                return True
        return False

    def new_code(self) -> str:
        """A code that opens one session, to be shown where the token must not be."""
        self.one_time.append(secrets.token_urlsafe(24))
        return self.one_time[-1]


class Guard:
    """The outermost layer: refuses what must not get in, and gives every response its headers."""

    def __init__(self, app: ASGIApp, access: Access, cookie: str) -> None:
        self._app = app
        self._access = access
        self._cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            elif scope["method"] == "HEAD":
                message["body"] = b""
            await send(message)

        headers = Headers(scope=scope)
        refusal = self._why_not(scope, headers)
        if refusal is not None:
            await error_response(refusal)(scope, receive, with_headers)
            return
        scope.setdefault("state", {})["authorized"] = self._authorized(headers)
        await self._app(scope, receive, with_headers)

    def _why_not(self, scope: Scope, headers: Headers) -> Refusal | None:
        if len(headers.getlist("host")) != 1 or not self._access.allows_host(headers["host"]):
            return Refusal(403, "this server does not go by that name; use the address that it printed")
        is_api = scope["path"].startswith("/api/")
        is_change = scope["method"] not in SAFE_METHODS
        if (is_api or is_change) and not _same_site(headers, is_change):
            return Refusal(403, "the request comes from another site, which may not use this server")
        if is_api and scope["path"] not in OPEN_PATHS and not self._authorized(headers):
            return Refusal(
                401, "a token is needed: Authorization: Bearer TOKEN", headers={"WWW-Authenticate": "Bearer"}
            )
        return None

    def _authorized(self, headers: Headers) -> bool:
        return self._access.is_authorized(headers, _cookie_of(headers, self._cookie))


class BodyLimit:
    """Refuses bodies that are too large or come too slowly; wraps what an endpoint reads."""

    def __init__(self, app: ASGIApp, max_json: int, max_upload: int) -> None:
        self._app = app
        self._max_json = max_json
        self._max_upload = max_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        most = self._max_upload if headers.get("content-type", "").startswith("multipart/") else self._max_json
        too_large = Refusal(413, f"the body is larger than {most / 1e6:g} MB", headers={"Connection": "close"})
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > most:
            await error_response(too_large)(scope, receive, send)
            return
        taken = 0
        loop = asyncio.get_running_loop()
        until = loop.time() + BODY_TIMEOUT_S

        async def limited() -> Message:
            nonlocal taken
            try:
                wait = max(min(CHUNK_TIMEOUT_S, until - loop.time()), 0.0)
                message = await asyncio.wait_for(receive(), wait) if taken >= 0 else await receive()
            except TimeoutError:
                raise Refusal(408, "the body came too slowly", headers={"Connection": "close"}) from None
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > most:
                    raise too_large
                if not message.get("more_body", False):
                    taken = -1  # what is waited for now is the client's leaving
            return message

        await self._app(scope, limited, send)


def _same_site(headers: Headers, is_change: bool) -> bool:
    """Whether a request comes from this server's own page, or from no page at all."""
    site = headers.get("sec-fetch-site", "none")
    if site not in ("none", "same-origin"):
        return not is_change and headers.get("sec-fetch-mode") == "navigate"  # a link that somebody follows
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers["host"]


def _cookie_of(headers: Headers, name: str) -> str:
    for part in headers.get("cookie", "").split(";"):
        key, _, value = part.strip().partition("=")
        if key == name:
            return value
    return ""


def _name_of(header: str) -> str | None:
    """The name or address in a Host header, without port and brackets; None where there is none."""
    if header.startswith("["):
        name, found, rest = header[1:].partition("]")
        return name if found and (not rest or (rest[0] == ":" and rest[1:].isdecimal())) else None
    name, colon, port = header.partition(":")
    return name if name and (not colon or port.isdecimal()) else None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _same(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), secret.encode("utf-8", "surrogatepass"))


def printed_url(host: str, port: int) -> str:
    """The address that a browser takes."""
    shown = "127.0.0.1" if host in ("0.0.0.0", "") else "::1" if host == "::" else host
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/"


def access_to(index: str, host: str, token: str | None, names: tuple[str, ...] = ()) -> Access:
    """Who may ask a server of this index.

    Several servers of an index on a Qdrant server may stand behind one name, so a session that one of them opened is
    good for all that have its token: its value is made of that.
    """
    if token is None or not is_url(index):
        return Access(host, token, names)
    session = hmac.new(token.encode(), b"seenit session " + index.encode(), hashlib.sha256).hexdigest()
    return Access(host, token, names, session)


def cookie_name(index: str, port: int) -> str:
    """Browsers keep one set of cookies for all ports of a machine, and one for all servers behind one name."""
    if is_url(index):
        return f"seenit_{hashlib.sha256(index.encode()).hexdigest()[:12]}"
    return f"seenit_{port}"
