"""A run as one HTML file: its curves and images, with nothing to fetch from anywhere.

`write_report(OUT)` reads what a run leaves behind: `metrics.jsonl` (one JSON object a line, `step` among its keys),
`images/*.png`, and `config.json` where there is one. It may be called while the run goes on.
"""

import base64
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexer.errors import SeenitError, os_reason
from indexer.pages.render import write_page

WIDTH, HEIGHT, LEFT, BOTTOM = 420, 180, 64, 22  # pixels of a curve; margins for the numbers beside it
MAX_POINTS = 800  # of a curve; neighbours are averaged
MAX_STEPS_SHOWN = 6  # of images

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Curve:
    """One number over the steps, in pixels of its drawing; without `points` there is nothing to draw."""

    name: str
    caption: str
    points: str = ""
    last: tuple[str, str] = ("", "")
    low: str = ""
    high: str = ""
    first_step: int = 0
    last_step: int = 0
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    base: int = HEIGHT - BOTTOM


def write_report(out: str | Path, *, title: str = "", notes: Sequence[str] = ()) -> Path:
    """Write OUT/report.html, whole or not at all, and return its path.

    notes  sentences for the top of the page, such as what an alarm said or how scores changed
    """
    out = Path(out)
    rows = read_metrics(out / "metrics.jsonl")
    write_page(
        out / "report.html",
        TEMPLATES,
        "report.html",
        title=title or out.name,
        made_by=[],
        notes=notes,
        summary=f"Steps {rows[0]['step']} to {rows[-1]['step']}." if rows else "No step has been logged yet.",
        curves=[curve(name, points) for name, points in _series(rows).items()],
        images=list(_images(out / "images")),
        settings=_settings(out / "config.json"),
    )
    return out / "report.html"


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file that have a step, in the order of the steps; the last of a step counts.

    A last line that is cut off, as a killed run leaves it, is passed over.
    """
    path = Path(path)
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError as error:
        raise SeenitError(f"cannot read {path}: {os_reason(error)}; give the folder that a run wrote to") from error
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines):
                continue
            raise SeenitError(f"{path} line {number} is no JSON; mend it or remove the line") from None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows[row["step"]] = {**rows.get(row["step"], {}), **row}
    return [rows[step] for step in sorted(rows)]


def curve(name: str, points: Sequence[tuple[int, float]]) -> Curve:
    """One number over the steps; points that are not finite are left out and counted."""
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    if not finite:
        return Curve(name, f"{name}: no finite value")
    drawn = _thinned(finite)
    first, last = drawn[0][0], drawn[-1][0]
    low, high = min(v for _, v in drawn), max(v for _, v in drawn)
    span = high - low or abs(high) or 1.0

    def place(step: float, value: float) -> tuple[str, str]:
        x = LEFT + (step - first) / max(last - first, 1) * (WIDTH - LEFT - 8)
        y = 8 + (1 - (value - low) / span) * (HEIGHT - BOTTOM - 16)
        return f"{x:.1f}", f"{y:.1f}"

    missing = f" ({len(points) - len(finite)} not finite)" if len(finite) < len(points) else ""
    return Curve(
        name,
        f"{name}: {finite[-1][1]:.4g}{missing}",
        " ".join(",".join(place(*point)) for point in drawn),
        place(*drawn[-1]),
        f"{low:.3g}",
        f"{high:.3g}",
        finite[0][0],
        finite[-1][0],
    )


def _series(rows: Sequence[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    series: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
                series.setdefault(name, []).append((row["step"], float(value)))
    return series


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS, each the mean of its neighbours."""
    size = math.ceil(len(points) / MAX_POINTS)
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    return [(sum(s for s, _ in group) / len(group), sum(v for _, v in group) / len(group)) for group in groups]


def _images(folder: Path) -> Iterator[dict[str, str]]:
    """The images of some steps, evenly spread from the first to the last."""
    by_step: dict[int, list[Path]] = {}
    for path in sorted(folder.glob("step_*.png")):
        found = re.fullmatch(r"step_(\d+)_\w+", path.stem)
        if found:
            by_step.setdefault(int(found[1]), []).append(path)
    steps = sorted(by_step)
    if len(steps) > MAX_STEPS_SHOWN:
        steps = [steps[round(n * (len(steps) - 1) / (MAX_STEPS_SHOWN - 1))] for n in range(MAX_STEPS_SHOWN)]
    for step in steps:
        for path in by_step[step]:
            kind = path.stem.split("_", 2)[2]
            data = base64.b64encode(path.read_bytes()).decode()
            yield {"caption": f"step {step}: {CAPTIONS.get(kind, kind)}", "uri": f"data:image/png;base64,{data}"}


CAPTIONS = {
    "features": "photos; their patches by principal components (equal colours are similar patches); attention of CLS",
    "neighbours": "fixed queries, and the photos nearest to each",
}


def _settings(path: Path) -> dict[str, Any] | None:
    """The run's settings; none where there is no file, None where it cannot be read."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
