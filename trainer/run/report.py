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

WIDTH, HEIGHT, TOP, RIGHT, BOTTOM = 420, 180, 12, 12, 24  # pixels of a curve and of the margins around it
CHARACTER_PX = 7  # at most, of a number's digits at 11 px; the left margin is as wide as its longest number
TICKS = 4  # at most, of an axis
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
    y_ticks: tuple[tuple[str, str], ...] = ()  # where it stands from the top, and its number
    x_ticks: tuple[tuple[str, str], ...] = ()  # where it stands from the left, and its step
    width: int = WIDTH
    height: int = HEIGHT
    left: int = 0
    top: int = TOP
    base: int = HEIGHT - BOTTOM
    right: int = WIDTH - RIGHT


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
    first, last = finite[0][0], finite[-1][0]
    low, high = min(v for _, v in drawn), max(v for _, v in drawn)
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    numbers = ticks(low, high)
    texts = _texts(numbers, high - low)
    left = 8 + CHARACTER_PX * max(map(len, texts))

    def place(step: float, value: float) -> tuple[str, str]:
        x = left + (step - first) / max(last - first, 1) * (WIDTH - RIGHT - left)
        y = TOP + (high - value) / (high - low) * (HEIGHT - BOTTOM - TOP)
        return f"{x:.1f}", f"{y:.1f}"

    missing = f" ({len(points) - len(finite)} not finite)" if len(finite) < len(points) else ""
    return Curve(
        name,
        f"{name}: {finite[-1][1]:.4g}{missing}",
        " ".join(",".join(place(*point)) for point in drawn),
        place(*drawn[-1]),
        tuple((place(first, number)[1], text) for number, text in zip(numbers, texts, strict=True)),
        tuple((place(step, low)[0], f"{step:,}") for step in _step_ticks(first, last)),
        left=left,
    )


def ticks(low: float, high: float) -> list[float]:
    """At most TICKS + 1 round numbers from low to high, evenly spaced: multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / TICKS
    if not 1e-300 < raw < 1e300:  # no power of ten to count in
        return [low, high]
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= raw * (1 - 1e-9))
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _texts(numbers: Sequence[float], span: float) -> list[str]:
    """Each number in as few digits as tell it exactly, for the axis' own scale."""
    for digits in range(3, 18):
        texts = [f"{number:.{digits}g}" for number in numbers]
        if all(abs(float(text) - number) <= 1e-6 * span for text, number in zip(texts, numbers, strict=True)):
            break
    return texts


def _step_ticks(first: int, last: int) -> list[int]:
    """Whole steps among them the first one; round ones behind it, none so near that their numbers touch."""
    if first == last:
        return [first]
    apart = (last - first) * 0.22  # as wide as "step 123,456"
    return [first, *(round(step) for step in ticks(first, last) if step == round(step) and step - first > apart)]


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
