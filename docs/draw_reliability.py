"""Draws how honest match probabilities are as one SVG, for `benchmarks.md`: of answers at 70 %, are 70 % right?

python docs/draw_reliability.py answers.json [MORE=answers.json ...] docs/reliability.svg

Each file is what `tests/benchmarks/match_probability.py` leaves in its folder; a caption may stand before it. The first
answers count, with the thing in the gallery and without. A point is a tenth of the range of probabilities, and its area
tells how many answers it stands for.
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from retrieval.evaluate.reliability import calibration_error, reliability

SIDE = 260  # pixels of a panel
GAP = 45
FULL_RADIUS = 22.0  # of a point that stands for all answers


def panel(number: int, caption: str, answers: Sequence[dict[str, object]]) -> str:
    """One diagram: probability to the right, share of right answers upwards, and the diagonal of honesty."""
    first = [one for one in answers if one["rank"] == 1]
    probabilities, right = [float(str(one["probability"])) for one in first], [bool(one["right"]) for one in first]
    error = calibration_error(probabilities, right)
    points = reliability(probabilities, right)
    marks = "".join(
        f'<circle cx="{SIDE * one.probability:.1f}" cy="{SIDE * (1 - one.share):.1f}"'
        f' r="{max(FULL_RADIUS * math.sqrt(one.count / len(first)), 2):.1f}" fill="#2a6fb0" fill-opacity=".65"/>'
        for one in points
    )
    line = " ".join(f"{SIDE * one.probability:.1f},{SIDE * (1 - one.share):.1f}" for one in points)
    ticks = "".join(
        f'<text x="{SIDE * share}" y="{SIDE + 16}" text-anchor="middle">{share:.0%}</text>'
        f'<text x="-6" y="{SIDE * (1 - share) + 4}" text-anchor="end">{share:.0%}</text>'
        for share in (0, 0.5, 1)
    )
    texts = (
        f'<text x="0" y="-8">{caption}: {len(first)} answers, calibration error {error:.3f}</text>{ticks}'
        f'<text x="{SIDE / 2}" y="{SIDE + 32}" text-anchor="middle">probability</text>'
    )
    axes = f'<path d="M0 0V{SIDE}H{SIDE}" fill="none" stroke="#888"/>'
    diagonal = f'<path d="M0 {SIDE}L{SIDE} 0" stroke="#bbb" stroke-dasharray="4"/>'
    drawn = f'<polyline points="{line}" fill="none" stroke="#2a6fb0"/>'
    return f'<g transform="translate({GAP + number * (SIDE + GAP)},{GAP})">{axes}{diagonal}{drawn}{marks}{texts}</g>'


def draw(sources: Sequence[str]) -> str:
    panels = []
    for number, source in enumerate(sources):
        caption, _, path = source.rpartition("=")
        panels.append(panel(number, caption or Path(path).stem, json.loads(Path(path).read_text("utf-8"))))
    width, height = GAP + len(panels) * (SIDE + GAP), SIDE + 2 * GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif"'
    background = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    return f'{head} font-size="11">{background}{"".join(panels)}</svg>\n'


if __name__ == "__main__":
    Path(sys.argv[-1]).write_text(draw(sys.argv[1:-1]), "utf-8")
