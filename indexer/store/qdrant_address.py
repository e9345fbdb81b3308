"""Where a collection is, and the key that its server asks for.

What is surprising: a key is refused to a server that would get it unencrypted over the open network.
"""

import ipaddress
import os
import re
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from ..errors import SeenitError, StoreError
from .qdrant_collection import SERVERS_OWN, Layout

KEY_VARIABLES = ("SEENIT_API_KEY", "QDRANT_API_KEY")
_EXTRAS = ("grpc=N", "shards=N", "replicas=N")


@dataclass(frozen=True)
class Address:
    """Where a collection is: `http(s)://host[:port][/prefix]/collection[?grpc=PORT&shards=N&replicas=N]`."""

    url: str  # of the server
    prefix: str | None  # path before the collection, of a server behind a proxy
    collection: str
    grpc_port: int | None  # vectors travel by gRPC where given
    layout: Layout = SERVERS_OWN  # of a collection that is made

    @classmethod
    def parse(cls, location: str) -> "Address":
        """SeenitError where the location is not of that form or holds a password."""
        expected = "expected http(s)://host:port/collection"
        try:
            parts = urlsplit(location)
            port = parts.port or (443 if parts.scheme == "https" else 6333)
            numbers = _numbers(parts.query)
        except ValueError:
            raise SeenitError(f"cannot read the index's address; {expected}[?{'&'.join(_EXTRAS)}]") from None
        if "@" in parts.netloc:
            raise SeenitError(f"an index's address holds no password; put the key into ${KEY_VARIABLES[0]}")
        *prefix, collection = parts.path.strip("/").split("/")
        if not parts.hostname or not re.fullmatch(r"[\w.-]{1,200}", collection):
            raise SeenitError(f"{location} names no collection; {expected}")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        layout = Layout(numbers.get("shards"), numbers.get("replicas"))
        return cls(f"{parts.scheme}://{host}:{port}", "/".join(prefix) or None, collection, numbers.get("grpc"), layout)

    def api_key(self) -> str | None:
        """From $SEENIT_API_KEY or $QDRANT_API_KEY; StoreError where it would travel unencrypted."""
        key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)
        if key and self.url.startswith("http://") and not _is_near(urlsplit(self.url).hostname or ""):
            raise StoreError(f"{self.url} would get the API key unencrypted; use https:// or unset the key")
        return key


def _numbers(query: str) -> dict[str, int]:
    """What follows the `?` of an address; ValueError for what is not known, given twice, no number or below 1."""
    given = parse_qs(query, strict_parsing=bool(query))
    numbers = {name: int(value) for name, (value,) in given.items()}
    if any(f"{name}=N" not in _EXTRAS or number < 1 for name, number in numbers.items()):
        raise ValueError(query)
    return numbers


def _is_near(host: str) -> bool:
    """Whether a host is this machine or in its private network, as far as its name tells."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal"))
