"""Where a collection is, and the key that its server asks for.

What is surprising: a key is refused to a server that would get it unencrypted over the open network.
"""

import ipaddress
import os
import re
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from ..errors import SeenitError, StoreError

KEY_VARIABLES = ("SEENIT_API_KEY", "QDRANT_API_KEY")


@dataclass(frozen=True)
class Address:
    """Where a collection is: `http(s)://host[:port][/prefix]/collection[?grpc=PORT]`."""

    url: str  # of the server
    prefix: str | None  # path before the collection, of a server behind a proxy
    collection: str
    grpc_port: int | None  # vectors travel by gRPC where given

    @classmethod
    def parse(cls, location: str) -> "Address":
        """SeenitError where the location is not of that form or holds a password."""
        expected = "expected http(s)://host:port/collection"
        try:
            parts = urlsplit(location)
            port = parts.port or (443 if parts.scheme == "https" else 6333)
            grpc_ports = parse_qs(parts.query, strict_parsing=bool(parts.query)).pop("grpc", [])
            grpc_port = int(grpc_ports[0]) if grpc_ports else None
        except ValueError:
            raise SeenitError(f"cannot read the index's address; {expected}") from None
        if "@" in parts.netloc:
            raise SeenitError(f"an index's address holds no password; put the key into ${KEY_VARIABLES[0]}")
        *prefix, collection = parts.path.strip("/").split("/")
        if not parts.hostname or not re.fullmatch(r"[\w.-]{1,200}", collection):
            raise SeenitError(f"{location} names no collection; {expected}")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return cls(f"{parts.scheme}://{host}:{port}", "/".join(prefix) or None, collection, grpc_port)

    def api_key(self) -> str | None:
        """From $SEENIT_API_KEY or $QDRANT_API_KEY; StoreError where it would travel unencrypted."""
        key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)
        if key and self.url.startswith("http://") and not _is_near(urlsplit(self.url).hostname or ""):
            raise StoreError(f"{self.url} would get the API key unencrypted; use https:// or unset the key")
        return key


def _is_near(host: str) -> bool:
    """Whether a host is this machine or in its private network, as far as its name tells."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal"))
