"""How sure a difference is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def bootstrap_interval(
    differences: NDArray[np.float64], sources: Sequence[str], *, samples: int, seed: int
) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of paired differences `[N]`, by resampling their sources.

    Windows of one clip overlap and resemble each other: resampling the windows would make a difference look surer than
    it is, so whole clips are drawn.

    Args:
        differences: one value a window.
        sources: the clip of each window.
        samples: resamplings.
        seed: seed of the resampling.
    """
    names, places = np.unique(np.asarray(sources), return_inverse=True)
    sums = np.bincount(places, weights=differences)
    counts = np.bincount(places)
    picks = np.random.default_rng(seed).integers(0, len(names), size=(samples, len(names)))
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
