"""Everything below an address of an object store."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import AwayError, SeenitError
from ..images.find import SKIPPED_FOLDERS
from ..web import printable_url
from .entry import Entry, UnreadableEntry, escape_key, stamp
from .place import ImageRef
from .remote import filesystem_of, reason_of, stat_of_info


class RemoteSource:
    """Every file below an address of an object store, a folder's listing at a time in memory."""

    def __init__(self, address: str) -> None:
        self.name = address

    def entries(self, *, stat: bool = True) -> Iterator[Entry | UnreadableEntry]:
        """Hidden files and folders, and those that systems make, are left out, as in folders."""
        filesystem, top = filesystem_of(self.name)
        scheme = self.name.partition("://")[0]
        top = top.rstrip("/")
        waiting, seen = [top], False
        while waiting:
            folder = waiting.pop()
            with _listing(self.name):
                filesystem.invalidate_cache(folder)
                listed = filesystem.ls(folder, detail=True)
                filesystem.invalidate_cache(folder)  # a listing that was read is of no more use
            folders = []
            for info in sorted(listed, key=lambda one: one["name"]):
                path = info["name"].rstrip("/")
                rest = path.removeprefix(top).lstrip("/")
                last = path.rpartition("/")[2]
                if not rest or last.startswith(".") or last.lower() in SKIPPED_FOLDERS or info.get("islink"):
                    continue
                if info["type"] == "directory":
                    folders.append(path)
                elif info["type"] == "file":
                    seen = True
                    found = stat_of_info(info)
                    place = ImageRef(f"{scheme}://{path}")
                    yield Entry(escape_key(rest), place, found.size, stamp(found.time_s, found.etag))
            waiting.extend(reversed(folders))
        if not seen:
            raise AwayError(f"nothing is below {self.name}; check the address and what you may read there")


@contextmanager
def _listing(address: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise AwayError(f"nothing is at {printable_url(address)}; check the address") from None
    except SeenitError:
        raise
    except Exception as error:
        raise AwayError(
            f"cannot list {printable_url(address)}: {reason_of(error)}; check the address, the"
            " credentials and what they may read"
        ) from None
