"""What quarter turned crops add to a ranking: what they prove, and nothing else.

A turned crop of an upright photo is like no image more than chance has it, yet of a hundred candidates some are a
little like it, and would stand before right answers that are weak themselves. So a candidate rises by a turned crop
only where that makes it a match; all others keep their scores and their order.
"""

from .ranking import IsMatch, Ranked


def take_proven(upright: Ranked, turned: Ranked, is_match: IsMatch) -> Ranked:
    """The candidates of both, best first; those of turned crops only where they are matches, by the higher score.

    upright, turned  one query's candidates by its upright and by its turned crops
    """
    proven = {hit.id: n for n, hit in enumerate(turned.hits) if is_match(turned, n)}
    if not proven:
        return upright
    scores = {hit.id: hit.score for hit in upright.hits}
    rising = {id: n for id, n in proven.items() if turned.hits[n].score > scores.get(id, -2.0)}
    entries = [(hit, upright.compared[n]) for n, hit in enumerate(upright.hits) if hit.id not in rising]
    entries += [(turned.hits[n], turned.compared[n]) for n in rising.values()]
    entries.sort(key=lambda entry: -entry[0].score)
    return Ranked([hit for hit, _ in entries], [place for _, place in entries])
