"""Draws the curves of runs side by side as one SVG, for `training.md`.

python docs/draw_curves.py docs/training.svg RUN:NUMBER [RUN:NUMBER ...]     for instance scratch:loss scratch:knn
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.run.report import HEIGHT, WIDTH, Curve, curve, read_metrics

GAP = 20  # pixels around a panel
COLUMNS = 2


def panel(number: int, run: str, drawn: Curve) -> str:
    """One curve with its caption and axes, as in a run's report."""
    texts: list[tuple[float, float, str, str]] = [(drawn.left, -4, "start", f"{run}: {drawn.caption}")]
    texts += [(drawn.left - 6, float(y) + 4, "end", text) for y, text in drawn.y_ticks]
    texts += [(float(x), drawn.height - 6, "middle", text) for x, text in drawn.x_ticks]
    labels = "".join(f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>' for x, y, anchor, text in texts)
    axis = f'<path d="M{drawn.left} {drawn.top}V{drawn.base}H{drawn.right}" fill="none" stroke="#888"/>'
    line = f'<polyline points="{drawn.points}" fill="none" stroke="#2a6fb0" stroke-width="1.5"/>'
    x, y = GAP + number % COLUMNS * (drawn.width + GAP), 2 * GAP + number // COLUMNS * (drawn.height + 2 * GAP)
    return f'<g transform="translate({x},{y})">{axis}{line}{labels}</g>'


def draw(wanted: Sequence[str]) -> str:
    panels = []
    for number, one in enumerate(wanted):
        folder, name = one.rsplit(":", 1)
        rows = read_metrics(Path(folder) / "metrics.jsonl")
        points = [(row["step"], float(row[name])) for row in rows if row.get(name) is not None]
        panels.append(panel(number, Path(folder).name, curve(name, points)))
    width = GAP + COLUMNS * (WIDTH + GAP)
    height = GAP + -(-len(panels) // COLUMNS) * (HEIGHT + 2 * GAP)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif"'
    background = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    return f'{head} font-size="11">{background}{"".join(panels)}</svg>\n'


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(draw(sys.argv[2:]), "utf-8")
