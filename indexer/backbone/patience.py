"""How long a download waits; apart from `download`, which brings an HTTP client with it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server before giving up."""

    connect_s: float = 10.0  # to connect, TLS included
    stall_s: float = 30.0  # without a byte, or at a crawl, before the connection counts as broken
    crawl: float = 512.0  # bytes per second below which a connection crawls
    attempts: int = 5  # failed tries in a row; a try that brought new bytes starts the count again
    backoff_s: float = 1.0  # before the second try, then doubled each time
    longest_backoff_s: float = 30.0  # also the bound of a server's Retry-After
    lock_s: float = 3600.0  # for another process that is fetching the same file
