"""Tar files of images, as WebDataset has them: members are read where they lie, and nothing is unpacked beside them."""

import os
from collections.abc import Iterator

from ..errors import AwayError, SeenitError, os_reason
from ..images.find import SKIPPED_FOLDERS, stamp_ns
from .entry import Entry, UnreadableEntry, escape_key, stamp
from .place import ImageRef, is_address
from .shards import expand_braces, index_shard


class TarSource:
    """The members of one tar file, or of many that one name with braces stands for.

    A member's key is the tar file's own name and the member's.
    """

    def __init__(self, name: str, *, allow_private: bool = False) -> None:
        """`name`: an absolute path or an address; braces as `shards.expand_braces` has them."""
        self.name = name
        self._allow_private = allow_private

    def entries(self, *, stat: bool = True) -> Iterator[Entry | UnreadableEntry]:
        """SeenitError for a tar file that cannot be read: what its members are is not known."""
        for path in self.paths():
            yield from self._members(path)

    def paths(self) -> list[str]:
        """The tar files; AwayError where one is missing."""
        if is_address(self.name):
            return expand_braces(self.name)
        found = [self.name] if os.path.exists(self.name) else expand_braces(self.name)
        for path in found:
            if not os.path.exists(path):
                raise AwayError(f"there is nothing at {path}; give tar files that are there")
        return found

    def _members(self, path: str) -> Iterator[Entry]:
        try:
            shard = index_shard(path, allow_private=self._allow_private)
            state = shard.stat if is_address(path) else stamp_ns(os.stat(path))
        except OSError as error:
            raise SeenitError(f"cannot read the shard {path}: {os_reason(error)}; fetch it again") from None
        own_name = path.rpartition("/")[2] if is_address(path) else os.path.basename(path)
        for member in shard.members:
            parts = member.name.split("/")
            if any(part.startswith(".") and part not in (".", "..") for part in parts):
                continue  # hidden, as in folders; macOS lays such a file beside each image
            if any(part.lower() in SKIPPED_FOLDERS for part in parts) or "\0" in member.name:
                continue
            place = ImageRef(member.tar, member.start, member.size, member.name, self._allow_private)
            key = f"{escape_key(own_name)}/{escape_key(member.name)}"
            # the tar file's own state, too: one that was packed anew may keep a member's size and time
            yield Entry(key, place, member.size, stamp(member.mtime_s, state))
