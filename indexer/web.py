"""An HTTP client as everything here asks servers: bounded redirects, never from https to http, secrets not printed.

Surprising: resolving a name without a network can hang far beyond any timeout, so what has to end in time runs in a
thread of its own. And whether an address is private is asked of the address that is connected to, at every redirect: a
name may resolve to another one a moment later.
"""

import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Callable
from typing import TypeVar

import httpx

from .errors import DownloadError, on_one_line

T = TypeVar("T")
MAX_REDIRECTS = 5
_HOLDS_IPV4 = ipaddress.ip_network("64:ff9b::/96")  # NAT64: the last four bytes are an address of the other kind
_HEADERS = {"User-Agent": "seenit", "Accept-Encoding": "identity"}


def http_client(connect_s: float, read_s: float, transport: httpx.BaseTransport | None = None) -> httpx.Client:
    """A client that trusts the system's certificates and takes proxies from the environment.

    read_s     without a byte, before httpx.ReadTimeout
    transport  what connects instead of httpx's own; proxies are then not asked
    Raises DownloadError, besides httpx's own errors, for a redirect from https to http or to another kind of address.
    """
    try:
        return httpx.Client(
            timeout=httpx.Timeout(read_s, connect=connect_s),
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            verify=ssl.create_default_context(),
            headers=_HEADERS,
            event_hooks={"response": [_refuse_insecure_redirect]},
            transport=transport,
        )
    except (ImportError, ValueError) as error:  # a proxy of a kind that needs more packages, or that is no address
        reason = f"the proxy of the environment cannot be used: {on_one_line(error)}"
        raise DownloadError(f"{reason}; check https_proxy, http_proxy and all_proxy") from None


def within(timeout_s: float, ask: Callable[[], T]) -> T:
    """What `ask` returns or raises; TimeoutError where that takes longer, its thread is left behind then."""
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(ask())
        except Exception as error:  # handed to the caller below
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="seenit-web")
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {timeout_s:g} s")
    return results[0]


def public_only() -> httpx.BaseTransport:
    """Connects to addresses that can be reached from anywhere, and refuses all others with a DownloadError."""
    return _PublicOnly()


class _PublicOnly(httpx.BaseTransport):
    """Resolves each name itself, refuses what is not public, and connects to the very address that it looked at."""

    def __init__(self) -> None:
        self._inner = httpx.HTTPTransport(verify=ssl.create_default_context())

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        try:
            found = socket.getaddrinfo(host, request.url.port or 443, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpx.ConnectError(on_one_line(error.strerror or error), request=request) from error
        addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
        if not addresses or not all(is_public(address) for address in addresses):
            step = "to fetch it all the same: --allow-private"
            raise refused(str(request.url), f"{host} is an address of this machine or its own network", step)
        return self._inner.handle_request(
            httpx.Request(
                request.method,
                request.url.copy_with(host=addresses[0]),
                headers=request.headers,  # the Host header among them, which keeps the name
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": host},  # what the certificate is held against
            )
        )

    def close(self) -> None:
        self._inner.close()


def is_public(address: str) -> bool:
    """Whether an IP address can be reached from anywhere; what holds another one in itself is judged by that."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if ip in _HOLDS_IPV4:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def refused(url: str, reason: str, next_step: str = "open the address in a browser to see why") -> DownloadError:
    return DownloadError(f"cannot fetch {printable_url(url)}: {reason}; {next_step}")


def failure(error: httpx.HTTPError | httpx.InvalidURL) -> str:
    """What an error of httpx says, in words."""
    if "peer closed connection" in str(error):
        return "the connection broke off"
    if isinstance(error, httpx.ConnectTimeout):
        return "no connection within the time allowed"
    if isinstance(error, httpx.TimeoutException):
        return "nothing came for too long"
    return certificate_error(error) or on_one_line(error)


def is_lasting(error: httpx.HTTPError | httpx.InvalidURL) -> bool:
    """Whether asking again is of no use."""
    if not isinstance(error, httpx.TransportError) or isinstance(error, httpx.UnsupportedProtocol):
        return True
    return certificate_error(error) is not None


def retry_after_s(answer: httpx.Response) -> float:
    """How long the server asks to wait, in seconds; a date is taken for none."""
    after = answer.headers.get("Retry-After", "")
    return float(after) if after.isdigit() else 0.0


def certificate_error(error: BaseException | None) -> str | None:
    """Why a certificate is not trusted, where that is what lies behind an error."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({on_one_line(error.verify_message)})"
        error = error.__cause__ or error.__context__
    return None


def status_of(answer: httpx.Response) -> str:
    return f"the server answered {answer.status_code} {on_one_line(answer.reason_phrase)}".strip()


def validator_of(answer: httpx.Response) -> str | None:
    """A strong ETag, else the date of change; a weak ETag may not stand in If-Range (RFC 9110, 13.1.5)."""
    etag = answer.headers.get("ETag", "")
    return etag if etag.startswith('"') else answer.headers.get("Last-Modified")


def body_range(answer: httpx.Response) -> tuple[int | None, int | None]:
    """Where the body begins in the file, and how long the whole file is, as far as the server tells."""
    if answer.status_code in (206, 416):
        matched = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", answer.headers.get("Content-Range", "").strip())
        begin, total = matched.groups() if matched else (None, None)
        return int(begin) if begin else None, int(total) if total and total != "*" else None
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def refuse_other_than_a_file(answer: httpx.Response) -> None:
    """DownloadError unless the whole file comes as it is."""
    if answer.status_code != 200:
        raise refused(str(answer.url), status_of(answer))
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise refused(str(answer.url), "the server sends it compressed, which was not asked for")


def refuse_web_page(answer: httpx.Response, beginning: bytes = b"") -> None:
    """DownloadError where a page came instead of a file, as hotels and companies send it."""
    start = beginning[:64].lstrip().lower()
    if answer.headers.get("Content-Type", "").startswith("text/html") or start.startswith(
        (b"<!doctype html", b"<html")
    ):
        raise refused(
            str(answer.url),
            "a web page came instead of a file",
            "a proxy or a login page of the network may be in the way, open the address in a browser to see it",
        )


def printable_url(url: str) -> str:
    """The address without query and user, which may hold secrets."""
    try:
        return str(httpx.URL(url).copy_with(userinfo=b"", query=None, fragment=None))
    except httpx.InvalidURL:
        return "this address"


def _refuse_insecure_redirect(answer: httpx.Response) -> None:
    if not answer.has_redirect_location:
        return
    target = answer.url.join(answer.headers["Location"])
    if target.scheme not in ("http", "https") or (answer.url.scheme, target.scheme) == ("https", "http"):
        reason = f"it redirects to {printable_url(str(target))}, which is not secure"
        raise refused(str(answer.url), reason, "check the address")
