"""Which images the set has: every thing in several places, one view of it as the query, and distractors."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .things import KINDS, Thing, make_thing


@dataclass(frozen=True)
class Shot:
    """One image to be taken."""

    path: str
    role: str  # gallery, query or distractor
    thing: Thing
    place: str
    seed: tuple[int, ...]
    note: str
    shows_thing: bool = True


def plan(instances: int, views: int, distractors: int, seed: int) -> Iterator[Shot]:
    """Every shot of the set, in the order in which they are drawn."""
    kinds = list(KINDS)
    for number in range(instances):
        nth, which = divmod(number, len(kinds))
        kind = kinds[which]
        last = number + len(kinds) >= instances and nth > 0
        thing = make_thing(f"{kind}_{nth + 1:02}", kind, nth, (seed, 1, which), like_first=last)
        places = list(np.random.default_rng((seed, 2, number)).permutation(KINDS[kind].places))
        for view in range(views):
            role, folder = ("gallery", "photos") if view else ("query", "queries")
            again, at = divmod(view, len(places))
            name = f"{thing.name}_{places[at]}" + (f"_{again + 1}" if again else "")
            yield Shot(f"{folder}/{name}.jpg", role, thing, str(places[at]), (seed, 3, number, view), thing.note)
    for number in range(distractors):
        kind = kinds[number % len(kinds)]
        place = str(np.random.default_rng((seed, 4, number)).choice(KINDS[kind].places))
        stranger = make_thing("stranger", kind, -1 - number // len(kinds), (seed, 5, number))
        empty = number % 3 == 0  # every third shows a place without any such thing
        note = "empty place" if empty else f"another {kind}"
        path = f"photos/other_{number + 1:02}_{place}.jpg"
        yield Shot(path, "distractor", stranger, place, (seed, 6, number), note, shows_thing=not empty)
