"""Several kinds of evidence to one score."""

import numpy as np

# The share of the patches in a score was chosen on covers and paintings; descriptor_ablation.py prints what a score is
# worth without distinctiveness and without patches. Weights fitted on synthetic views were worse on photos.
INLIER_SCALE = 6.0  # weight of the inliers at which it has gone 63 % of its way from 0 to 1
DISTINCTIVENESS_SCALE = 3.0  # likewise of the distinctiveness


def fuse_scores(cosine: np.ndarray, inlier_weight: np.ndarray, distinctiveness: np.ndarray) -> np.ndarray:
    """Scores in [-1, 1] of candidates, each (B,): half their global cosine, half their consistency."""
    return (
        0.5 * cosine
        + 0.25 * saturate(inlier_weight, INLIER_SCALE)
        + 0.25 * saturate(distinctiveness, DISTINCTIVENESS_SCALE)
    )


def saturate(weight: np.ndarray, scale: float) -> np.ndarray:
    """Support as a number in [0, 1): what an image has in common beyond some ten patches adds little."""
    return 1 - np.exp(-weight / scale)
