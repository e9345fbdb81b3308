"""Which weights a spec means: a name, a path, or `auto`.

What is surprising: `auto` prefers the official ViT-S/14 and must not keep anyone waiting. Where its address does not
answer within two seconds it takes the shipped backbone, remembers that, and never asks again by itself.
"""

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import DownloadError, SeenitError, on_one_line
from ..messages import Say, say_nothing
from .cache import SHIPPED, backbone_path, cache_folder, file_in, local_path, official_url, unknown_name
from .patience import Patience
from .vit import ARCHITECTURES

PREFERRED = "dinov2_vits14"  # what `auto` wants
WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")

PROBE_S = 2.0  # `auto`, to decide whether the official address can be reached
AUTO_PATIENCE = Patience(connect_s=3.0, stall_s=10.0, attempts=3)


@dataclass(frozen=True)
class Choice:
    path: Path
    name: str | None  # None for a path
    why: str


def choose_backbone(spec: str | Path, offline: bool, say: Say = say_nothing) -> Choice:
    """The weights file of a name or a path or of `auto`, fetched if need be; see `Backbone.load`."""
    text = str(spec)
    if text == "auto":
        return _choose_automatically(offline, say)
    here = local_path(text) is not None
    if isinstance(spec, str) and (text in ARCHITECTURES or here):
        path = backbone_path(text, offline=offline, say=say)
        return Choice(path, text, f"as asked, {'from' if here else 'fetched to'} {path}")
    path = Path(text).expanduser()
    looks_like_path = isinstance(spec, Path) or re.search(r"[/\\]", text) or text.endswith(WEIGHT_SUFFIXES)
    if not looks_like_path and not path.exists():
        raise unknown_name(text)
    path = file_in(path).resolve()
    return Choice(path, None, f"as asked, from {path}")


def would_be_fetched(spec: str | Path | None) -> bool:
    """Whether it is an official name whose file is not here."""
    return isinstance(spec, str) and spec in ARCHITECTURES and local_path(spec) is None


def probe(url: str, timeout_s: float = PROBE_S) -> None:
    """Raise DownloadError unless the server answers for `url` within `timeout_s`, name resolution included."""
    import httpx  # here, since a backbone that is on the disk needs no network

    from ..web import failure, http_client, refuse_web_page, within

    def ask() -> None:
        with http_client(timeout_s, timeout_s) as client:
            refuse_web_page(client.head(url).raise_for_status())

    try:
        within(timeout_s, ask)
        return
    except httpx.HTTPStatusError as error:
        wrong = f"the server answered {error.response.status_code}"
    except httpx.HTTPError as error:
        wrong = failure(error)
    except Exception as error:  # of any kind: it is no reason to have no backbone
        wrong = on_one_line(error)
    raise DownloadError(f"cannot reach {httpx.URL(url).host}: {wrong}")


def _choose_automatically(offline: bool, say: Say) -> Choice:
    """The official ViT-S/14 if it is here or can be fetched now, else the shipped backbone."""
    path = local_path(PREFERRED)
    if path is not None:
        return Choice(path, PREFERRED, "the official one, from the cache")
    if offline:
        why = "nothing may be fetched"
    elif (failed := _known_failure()) is not None:
        why = f"{failed} (not asked again; to fetch it: seenit backbone fetch {PREFERRED})"
    else:
        try:
            probe(official_url(PREFERRED), PROBE_S)
            path = backbone_path(PREFERRED, patience=AUTO_PATIENCE, say=say)
            return Choice(path, PREFERRED, "the official one, fetched")
        except DownloadError as error:
            why = str(error).split(";")[0]
            _remember_failure(why)
    path = local_path(SHIPPED)
    if path is None:
        raise SeenitError(f"no backbone is here: {why}, and the shipped {SHIPPED} is missing; install seenit again")
    return Choice(path, SHIPPED, f"it ships with seenit; the official {PREFERRED} is not here: {why}")


def _failure_note() -> Path:
    return cache_folder() / "unreachable.json"


def _known_failure() -> str | None:
    """Why the official address failed when it was asked, None if it was not asked yet."""
    try:
        note = json.loads(_failure_note().read_text("utf-8"))
        return str(note["why"]) if note["url"] == official_url(PREFERRED) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no note, or a damaged one: ask the network


def _remember_failure(why: str) -> None:
    with suppress(OSError):  # a cache that cannot be written costs the next run the probe again
        cache_folder().mkdir(parents=True, exist_ok=True)
        _failure_note().write_text(json.dumps({"url": official_url(PREFERRED), "why": why}), "utf-8")
