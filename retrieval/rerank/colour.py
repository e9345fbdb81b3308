"""By how much the matched patches of two images differ in colour, beyond what light explains.

Near twins, such as packets of one brand in two flavours, match patch by patch and differ in the colour of some of
them. Warm light or a camera's white balance moves all colours by about as much, so the median difference is taken out.
Vivid colours differ by more than dull ones where light or exposure change, so what is left is told in their terms.
"""

import numpy as np

FEWEST = 3  # inliers from which on there is a median to take out; not tuned
NOISE = 10.0  # of a* and b*: added to how far colours spread, which may be nothing; not tuned


def colour_difference(query: np.ndarray, candidate: np.ndarray) -> float | None:
    """Mean distance of paired patches' colours in CIELAB's a* and b*, in terms of how far these spread.

    query, candidate  (S, 2) int8, see `mean_colours`
    returns           0 where light explains all; some 1 for one thing, 2 for two; None where there are too few pairs

    mean over s of |query[s] - candidate[s] - median over s of (query[s] - candidate[s])| / sqrt(NOISE + spread)

    where spread is the geometric mean of the two sides' standard deviations. The square root, as for counts, is between
    the difference itself and one that only vivid colours can have: of right and wrong matches among paintings and
    groceries they tell .94 and .74 apart (AUC), the difference itself .91 and .71.
    """
    if len(query) < FEWEST:
        return None
    query, candidate = query.astype(np.float64), candidate.astype(np.float64)
    difference = query - candidate  # (S, 2)
    left = np.linalg.norm(difference - np.median(difference, axis=0), axis=1).mean()
    spread = (query.var(0).sum() * candidate.var(0).sum()) ** 0.25
    return float(left / np.sqrt(NOISE + spread))
