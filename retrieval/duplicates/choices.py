"""Choices made on the page of `seenit duplicates --html`, as a file, and what they come to.

The file is not trusted: whoever made it may not be the user. It can name only what the index holds, by key, content id
and size, and everything else about a file is taken from the index. So all that it can do is have `move.move_spare`,
which reads every byte first, move unchanged indexed images; and where to is the user's to say, unless the file names a
hidden folder inside an indexed one.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from indexer.errors import SeenitError, os_reason
from indexer.images.find import open_regular
from indexer.images.metadata import ID_PATTERN
from indexer.index.index import Index
from indexer.index.keys import Roots, relative_parts
from indexer.printable import quoted
from indexer.store.protocol import Record

from ..show.schema import Text
from .options import DuplicateOptions
from .outcome import Duplicates, File, Group, GroupMember

FOLDER = ".seenit-moved"  # in an indexed folder: hidden, so that nothing in it is indexed
MAX_BYTES = 200_000_000  # of a file of choices; some 1.5 million files
RECORDS_AT_ONCE = 1000
NOT_SO = "the index does not hold it as it was when it was chosen; look for duplicates again"
NO_KEEPER = "the index holds nothing of what was to be kept of its group; look for duplicates again"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ChosenFile(_Model):
    """A file as the page knew it."""

    file: Text = Field(description="key in the index")
    id: str = Field(pattern=ID_PATTERN, description="content id")
    bytes: int


class ChosenGroup(_Model):
    """Files of one group: what stays, and what is to be moved."""

    keep: tuple[ChosenFile, ...] = Field(min_length=1)
    move: tuple[ChosenFile, ...] = Field(min_length=1)


class Choices(_Model):
    """The file.

    index    location of the index that was looked through
    move_to  folder that the page names; None where the user is to name it
    """

    schema_: Literal["seenit.choices/1"] = Field(alias="schema")
    index: Text
    move_to: Text | None = None
    groups: tuple[ChosenGroup, ...]


@dataclass(frozen=True)
class Chosen:
    """What choices come to in an index.

    found  a group for each that has something to move and something that stays
    left   one line for each file that is not moved because the index does not hold it so, with the reason
    """

    found: Duplicates
    left: tuple[str, ...]


def read_choices(path: str | Path) -> Choices:
    """The choices in a file; SeenitError where it cannot be read, is none, or contradicts itself."""
    try:
        with open_regular(str(path)) as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise SeenitError(f"{path} is larger than {MAX_BYTES / 1e6:.0f} MB; name a file that the page wrote")
        choices = Choices.model_validate(json.loads(data))
    except OSError as error:
        raise SeenitError(f"cannot read {path}: {os_reason(error)}; name a file that the page wrote") from None
    except (ValidationError, ValueError, RecursionError):
        raise SeenitError(
            f"{path} holds no choices on duplicates; name a file that the page of seenit duplicates --html wrote"
        ) from None
    kept = {file.file for group in choices.groups for file in group.keep}
    both = next((file.file for group in choices.groups for file in group.move if file.file in kept), None)
    if both is not None:
        raise SeenitError(f"{path} would both keep and move {quoted(both)[:300]}; choose again on the page")
    return choices


def chosen_duplicates(choices: Choices, index: Index) -> Chosen:
    """The groups as `find_duplicates` gives them, narrowed to what was chosen; nothing but the index is read.

    SeenitError where the index holds none of the files.
    """
    records = _records(index, choices)
    left: list[str] = []
    groups = []
    for group in choices.groups:
        keep = [file for one in group.keep if (file := _file(one, records, index.roots))]
        move = {one.file: _file(one, records, index.roots) for one in group.move}
        left += [f"{key}: {NOT_SO}" for key, file in move.items() if file is None]
        there = [file for file in move.values() if file]
        if not keep:
            left += [f"{file.path}: {NO_KEEPER}" for file in there]
        elif there:
            members = tuple(GroupMember(records[file.id], (file,), "near", 0.0, "chosen") for file in there)
            groups.append(Group(records[keep[0].id], keep[0], members))
    if choices.groups and not records:
        raise SeenitError(
            f"the index at {index.location} holds none of the files; the choices were made on"
            f" {quoted(choices.index)[:300]}: name that index"
        )
    return Chosen(Duplicates(index.location, DuplicateOptions(), tuple(groups), index.count, 0.0), tuple(left))


def target_of(choices: Choices, roots: Roots) -> str:
    """Where the choices themselves have the files moved; SeenitError where they name no place that they may name.

    A hidden folder inside an indexed one is: nothing in it is indexed, and nothing outside of the folders is written.
    """
    if choices.move_to is None:
        raise SeenitError("the choices name no folder to move to; name one with --move-to")
    named = os.path.abspath(choices.move_to)
    for folder in roots.folders.values() if "\0" not in named else ():
        inside = relative_parts(named, folder)
        really = relative_parts(os.path.realpath(named), os.path.realpath(folder))
        if inside and really and any(part.startswith(".") for part in inside):
            return named
    raise SeenitError(
        f"the choices name {quoted(choices.move_to)[:300]} to move to, which is no hidden folder inside an indexed one;"
        " if that is what you want, name it yourself with --move-to"
    )


def default_target(roots: Roots) -> str | None:
    """A hidden folder in the first indexed folder that is here; None where none is."""
    folder = next((folder for folder in roots.folders.values() if os.path.isdir(folder)), None)
    return None if folder is None else os.path.join(folder, FOLDER)


def _records(index: Index, choices: Choices) -> dict[str, Record]:
    """The records that are named, by id, without vectors."""
    named = list(dict.fromkeys(file.id for group in choices.groups for file in (*group.keep, *group.move)))
    pages = (named[start : start + RECORDS_AT_ONCE] for start in range(0, len(named), RECORDS_AT_ONCE))
    return {record.id: record for page in pages for record in index.store.retrieve(page)}


def _file(chosen: ChosenFile, records: dict[str, Record], roots: Roots) -> File | None:
    """The file as the index has it; None where it has another or none."""
    record = records.get(chosen.id)
    for stored in record.files if record else ():
        if stored.key == chosen.file and stored.size == chosen.bytes:
            return File(stored.key, roots.path(stored.key), stored.size, stored.mtime_ns, chosen.id)
    return None
