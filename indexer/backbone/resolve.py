"""Which weights a spec means: a name, a path, or `auto`.

What is surprising: `auto` prefers the official ViT-S/14 and must not keep anyone waiting. Without a network it falls
back to the shipped backbone within seconds, and remembers that for a day.
"""

import json
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import DownloadError, SeenitError
from .cache import SHIPPED, backbone_path, cache_folder, file_in, local_path, official_url, unknown_name
from .http import Patience, probe
from .vit import ARCHITECTURES

PREFERRED = "dinov2_vits14"  # what `auto` wants
WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")

PROBE_S = 4.0  # `auto`, to decide whether the official address can be reached
AUTO_PATIENCE = Patience(connect_s=3.0, stall_s=10.0, attempts=3)
RETRY_AFTER_S = 24 * 3600  # `auto`, to forget that the address could not be reached


@dataclass(frozen=True)
class Choice:
    path: Path
    name: str | None  # None for a path
    why: str


def choose_backbone(spec: str | Path, offline: bool) -> Choice:
    """The weights file of a name or a path or of `auto`, fetched if need be; see `Backbone.load`."""
    text = str(spec)
    if text == "auto":
        return _choose_automatically(offline)
    here = local_path(text) is not None
    if isinstance(spec, str) and (text in ARCHITECTURES or here):
        path = backbone_path(text, offline=offline)
        return Choice(path, text, f"as asked, {'from' if here else 'fetched to'} {path}")
    path = Path(text).expanduser()
    looks_like_path = isinstance(spec, Path) or re.search(r"[/\\]", text) or text.endswith(WEIGHT_SUFFIXES)
    if not looks_like_path and not path.exists():
        raise unknown_name(text)
    path = file_in(path).resolve()
    return Choice(path, None, f"as asked, from {path}")


def _choose_automatically(offline: bool) -> Choice:
    """The official ViT-S/14 if it is here or can be fetched now, else the shipped backbone."""
    path = local_path(PREFERRED)
    if path is not None:
        return Choice(path, PREFERRED, "the official one, from the cache")
    if offline:
        why = "nothing may be fetched"
    else:
        failed = _recent_failure()
        try:
            if failed is None:
                probe(official_url(PREFERRED), PROBE_S)
                return Choice(backbone_path(PREFERRED, patience=AUTO_PATIENCE), PREFERRED, "the official one, fetched")
            why = f"{failed} (asked again after a day, or now by: seenit backbone path {PREFERRED})"
        except DownloadError as error:
            why = str(error).split(";")[0]
            _remember_failure(why)
    path = local_path(SHIPPED)
    if path is None:
        raise SeenitError(f"no backbone is here: {why}, and the shipped {SHIPPED} is missing; install seenit again")
    return Choice(path, SHIPPED, f"it ships with seenit; the official {PREFERRED} is not here: {why}")


def _failure_note() -> Path:
    return cache_folder() / "unreachable.json"


def _recent_failure() -> str | None:
    """Why the official address failed within the last day, None if it did not."""
    try:
        note = json.loads(_failure_note().read_text("utf-8"))
        recent = 0 <= time.time() - float(note["at"]) < RETRY_AFTER_S
        return str(note["why"]) if recent and note["url"] == official_url(PREFERRED) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no note, or a damaged one: ask the network


def _remember_failure(why: str) -> None:
    note = {"url": official_url(PREFERRED), "at": time.time(), "why": why}
    with suppress(OSError):  # a cache that cannot be written costs the next run a few seconds, no more
        cache_folder().mkdir(parents=True, exist_ok=True)
        _failure_note().write_text(json.dumps(note), "utf-8")
