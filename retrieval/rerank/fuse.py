"""Several kinds of evidence to one score."""

import numpy as np

INLIER_SCALE = 6.0  # support at which agreement has gone 63 % of its way from 0 to 1


DISTINCTIVENESS_SCALE = 3.0  # likewise of what is distinct


def fuse_scores(cosine: np.ndarray, support: np.ndarray, distinct: np.ndarray) -> np.ndarray:
    """Scores in [-1, 1] of candidates, each (B,): half their global cosine, half how far their patches agree."""
    return 0.5 * cosine + 0.25 * saturate(support, INLIER_SCALE) + 0.25 * saturate(distinct, DISTINCTIVENESS_SCALE)


def saturate(support: np.ndarray, scale: float) -> np.ndarray:
    """Support as a number in [0, 1): what an image has in common beyond some ten patches adds little."""
    return 1 - np.exp(-support / scale)
