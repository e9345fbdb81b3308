"""A run as one HTML file: its curves and images, with nothing to fetch from anywhere.

`write_report(OUT)` reads what a run leaves behind: `metrics.jsonl` (one JSON object a line, `step` among its keys),
`images/*.png`, and `config.json` where there is one. It may be called while the run goes on.
"""

import base64
import html
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from indexer.errors import SeenitError, os_reason

WIDTH, HEIGHT, LEFT, BOTTOM = 420, 180, 64, 22  # pixels of a curve; margins for the numbers beside it
MAX_POINTS = 800  # of a curve; neighbours are averaged
MAX_STEPS_SHOWN = 6  # of images

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.curves { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .85rem; color: #555; }
img { max-width: 100%; } svg text { font: 11px system-ui, sans-serif; fill: #555; }
table { border-collapse: collapse; font-size: .85rem; } td { padding: .1rem .8rem .1rem 0; }
.notes { background: #fff4d6; padding: .5rem 1rem; }
"""


def write_report(out: str | Path, *, title: str = "", notes: Sequence[str] = ()) -> Path:
    """Write OUT/report.html, whole or not at all, and return its path.

    notes  sentences for the top of the page, such as what an alarm said or how scores changed
    """
    out = Path(out)
    rows = read_metrics(out / "metrics.jsonl")
    curves = [curve(name, points) for name, points in _series(rows).items()]
    text = "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title or out.name)}</title>',
            f"<style>{STYLE}</style></head><body>",
            f"<h1>{html.escape(title or out.name)}</h1>",
            *_notes(notes),
            _summary(rows),
            '<h2>Curves</h2><div class="curves">',
            *curves,
            "</div>",
            *_images(out / "images"),
            *_settings(out / "config.json"),
            "</body></html>",
        ]
    )
    path, temporary = out / "report.html", out / ".report.html.part"
    try:
        temporary.write_text(text, "utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise SeenitError(
            f"cannot write {path}: {os_reason(error)}; free space there or choose another --out"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


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


def curve(name: str, points: Sequence[tuple[int, float]]) -> str:
    """One number over the steps as an SVG figure; points that are not finite are left out and counted."""
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    label = html.escape(name)
    if not finite:
        return f"<figure><figcaption>{label}: no finite value</figcaption></figure>"
    drawn = _thinned(finite)
    first, last = drawn[0][0], drawn[-1][0]
    low, high = min(v for _, v in drawn), max(v for _, v in drawn)
    span = high - low or abs(high) or 1.0

    def place(step: int | float, value: float) -> str:
        x = LEFT + (step - first) / max(last - first, 1) * (WIDTH - LEFT - 8)
        y = 8 + (1 - (value - low) / span) * (HEIGHT - BOTTOM - 16)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(place(*point) for point in drawn)
    dot = place(*drawn[-1]).split(",")
    missing = f" ({len(points) - len(finite)} not finite)" if len(finite) < len(points) else ""
    base = HEIGHT - BOTTOM
    return (
        f"<figure><figcaption>{label}: {finite[-1][1]:.4g}{missing}</figcaption>"
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{label}">'
        f'<path d="M{LEFT} 4V{base}H{WIDTH}" fill="none" stroke="#bbb"/>'
        f'<polyline points="{line}" fill="none" stroke="#1f6feb" stroke-width="1.5"/>'
        f'<circle cx="{dot[0]}" cy="{dot[1]}" r="2.5" fill="#1f6feb"/>'
        f'<text x="{LEFT - 6}" y="14" text-anchor="end">{high:.4g}</text>'
        f'<text x="{LEFT - 6}" y="{base}" text-anchor="end">{low:.4g}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 6}">{first}</text>'
        f'<text x="{WIDTH - 8}" y="{HEIGHT - 6}" text-anchor="end">step {last}</text></svg></figure>'
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


def _summary(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return "<p>No step has been logged yet.</p>"
    return f"<p>Steps {rows[0]['step']} to {rows[-1]['step']}.</p>"


def _notes(notes: Sequence[str]) -> list[str]:
    return ['<div class="notes">', *(f"<p>{html.escape(note)}</p>" for note in notes), "</div>"] if notes else []


def _images(folder: Path) -> list[str]:
    """The images of some steps, evenly spread from the first to the last."""
    by_step: dict[int, list[Path]] = {}
    for path in sorted(folder.glob("step_*.png")):
        found = re.fullmatch(r"step_(\d+)_\w+", path.stem)
        if found:
            by_step.setdefault(int(found[1]), []).append(path)
    steps = sorted(by_step)
    if len(steps) > MAX_STEPS_SHOWN:
        steps = [steps[round(n * (len(steps) - 1) / (MAX_STEPS_SHOWN - 1))] for n in range(MAX_STEPS_SHOWN)]
    parts = ["<h2>Images</h2>"] if steps else []
    for step in steps:
        for path in by_step[step]:
            kind = path.stem.split("_", 2)[2]
            data = base64.b64encode(path.read_bytes()).decode()
            caption = html.escape(f"step {step}: {CAPTIONS.get(kind, kind)}")
            image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
            parts.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    return parts


CAPTIONS = {
    "features": "photos; their patches by principal components (equal colours are similar patches); attention of CLS",
    "neighbours": "fixed queries, and the photos nearest to each",
}


def _settings(path: Path) -> list[str]:
    if not path.is_file():
        return []
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return [f"<p>{html.escape(path.name)} cannot be read.</p>"]
    cells = [f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>" for k, v in values.items()]
    return ["<h2>Settings</h2><table>", *cells, "</table>"]
