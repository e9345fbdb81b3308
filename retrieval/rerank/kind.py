"""How alike in kind: other images of the same building, product or motif, which need not show the very same view.

Geometric verification finds the same thing seen alike. Images of one kind lie together in several small steps instead:
what the query is like, what those are like in turn. So each image is described by its stored vector and by one that is
whitened by how views of one image differ and by nothing else, which leaves in what a corpus of few kinds has in common.
Colours are looked at as well, which the network hardly knows. The query moves towards its best candidates (query
expansion; Chum et al., 2007), and each candidate's score is mixed with those of its nearest among the candidates, one
step of diffusion over their graph (Iscen et al., 2017).

It is arithmetic on what is at hand and knows no index.
"""

from collections.abc import Sequence

import numpy as np

# V crops of a query, B candidates, G numbers of a stored vector, D of a kind vector, C of both and colours together

# Chosen on every second query of covers, landmarks, paris, grocery and iconic; docs/log.md has what else was tried.
# Weights of the cosines of stored vector, kind vector and colours. mAP of paris, grocery and iconic as they are .945
# .622 .402; with 0, .06, .15 and .2 of colours .944 .554 .333, .951 .598 .394, .927 .631 .390, .906 .634 .443, since
# light differs between photos of a building; with equal weights of stored and kind vector .938 .620 .407
STORED, KIND, COLOURS = 0.3, 0.6, 0.1
NEIGHBOURS = 5  # of a candidate; among 8 that are each other's neighbours paris gains .01 and grocery loses .02 of mAP
NEIGHBOUR_WEIGHT = 0.5  # of each, beside the candidate's own 1, times their cosine
EXPANDED_BY = 6  # candidates that the query moves towards; flat between 5 and 8
ROUNDS = 2  # of expansion; flat
# Of the match probability, in the scores that are mixed with those of neighbours and expand the query, and once more
# beside them, on the same queries and paintings: mAP of covers, landmarks, paris, grocery and iconic .985 .673 .941
# .620 .441, with .2 in the scores and .3 beside them .985 .672 .942 .619 .442; with .5 beside them alone .985 .669 .941
# .612 .426. An unsure match must not stand before all that is alike: with matches first .948 .604 .942 .608 .419
MATCH_WEIGHT = 0.3


def joined(vectors: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Vectors whose cosine is the weighted mean of those of several.

    vectors  (B, any) float32 each, L2-normalised
    weights  of each, of which only the ratios matter
    returns  (B, C) float32
    """
    shares = np.sqrt(np.asarray(weights, np.float32) / np.float32(sum(weights)))
    return np.concatenate([share * rows for share, rows in zip(shares, vectors, strict=True)], axis=1)


def kind_scores(crops: np.ndarray, candidates: np.ndarray, by_patches: np.ndarray) -> np.ndarray:
    """How alike in kind each candidate is to a query; higher is more alike.

    crops       (V, C)  float32, kind vectors of the query
    candidates  (B, C)  float32, theirs
    by_patches  (B,)    what the patches of each add to its score, by inliers or by a match; 0 where not compared
    returns     (B,)    float64

    The cosine of the crop that a candidate is most like and the patches' part, mixed with those of its neighbours;
    again with crops that have moved towards the best by those scores.
    """
    neighbours, weights = _neighbours(candidates)

    def scored(moved: np.ndarray) -> np.ndarray:
        own = (moved @ candidates.T).max(0) + by_patches
        return (own + (weights * own[neighbours]).sum(1)) / (1 + weights.sum(1))

    scores = scored(crops)
    for _ in range(ROUNDS):
        scores = scored(_expanded(crops, candidates, scores))
    return scores


def _neighbours(candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other candidates of each and their weights, (B, K) each."""
    similar = candidates @ candidates.T
    np.fill_diagonal(similar, -np.inf)
    count = min(NEIGHBOURS, len(candidates) - 1)
    nearest = np.argpartition(-similar, count, axis=1)[:, :count]  # itself is the farthest, so count is in range
    cosines = np.take_along_axis(similar, nearest, 1).astype(np.float64)
    return nearest, NEIGHBOUR_WEIGHT * np.maximum(cosines, 0)


def _expanded(crops: np.ndarray, candidates: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The crops (V, C) moved towards the best candidates, by their scores."""
    best = np.argsort(-scores, kind="stable")[:EXPANDED_BY]
    weights = np.maximum(scores[best], 0)
    moved = crops + (weights / max(float(weights.max(initial=0)), 1e-9)) @ candidates[best]
    return (moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def matches_first(is_match: Sequence[bool], scores: np.ndarray) -> list[int]:
    """The order of candidates: matches as they stand, then the others by their scores, best first."""
    others = [int(n) for n in np.argsort(-scores, kind="stable") if not is_match[n]]
    return [n for n, one in enumerate(is_match) if one] + others


def kind_and_match(scores: np.ndarray, probabilities: np.ndarray) -> list[int]:
    """The order of candidates (B,) by likeness of kind and the probability that each is a match, best first."""
    order: list[int] = np.argsort(-(scores + MATCH_WEIGHT * probabilities), kind="stable").tolist()
    return order
