"""From scores of frames, objects or expressions to the numbers of a table."""

import warnings
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rules = Literal["official", "corrected"]
"""official: what the benchmark's own tool prints, faults and all. corrected: the same measure, faults mended."""


class Statistics(NamedTuple):
    """Of one object's J or F through a video."""

    mean: float
    recall: float
    """Share of frames above 0.5; a frame without a score counts as not above."""
    decay: float
    """Mean of the first quarter of the frames minus mean of the last; positive if the object gets lost."""


class Interval(NamedTuple):
    """A mean, and the bounds that hold it with the asked confidence."""

    mean: float
    low: float
    high: float


def frame_statistics(values: ArrayLike, rules: Rules = "official") -> Statistics:
    """Mean, recall and decay of a series [T]; NaN marks a frame without a score and is left out of means.

    The official tool keeps the quarters' ends in 8 bits, so from 256 frames on its decay is undefined (NaN) or
    taken from wrong frames; "corrected" differs in nothing else. Raises ValueError unless [T] with T >= 1.
    """
    values_t = np.asarray(values, np.float64)
    if values_t.ndim != 1 or not len(values_t):
        raise ValueError(
            f"values: one score per frame, [T] with T >= 1, got shape {values_t.shape}"
        )
    # 1e-10: a quarter that ends exactly between two frames ends at the later one, also where the sum falls just short.
    ends = (np.round(np.linspace(1, len(values_t), 5) + 1e-10) - 1).astype(np.int64)
    stops = ends + 1
    if rules == "official":
        ends, stops = ends % 256, stops % 256
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # the mean of nothing is NaN, and that is the answer
        decay = np.nanmean(values_t[ends[0] : stops[1]]) - np.nanmean(values_t[ends[3] : stops[4]])
        return Statistics(float(np.nanmean(values_t)), float(np.mean(values_t > 0.5)), float(decay))


def bootstrap(
    values: ArrayLike,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """sum(values) / sum(weights) of n items, with percentile bounds; the same seed gives the same bounds.

    values, weights [n]: a plain mean without weights; matched and total phrases give a recall. groups [n]: the video
    of each item: whole videos are drawn, as expressions about one video are not independent.
    Raises ValueError on empty or unequal inputs, a level outside (0, 1), or weights without a positive sum.
    """
    values_n = np.asarray(values, np.float64)
    weights_n = np.ones_like(values_n) if weights is None else np.asarray(weights, np.float64)
    groups_n = np.arange(values_n.size) if groups is None else np.asarray(groups)
    if (
        values_n.ndim != 1
        or not values_n.size
        or not values_n.shape == weights_n.shape == groups_n.shape
    ):
        raise ValueError(
            f"values {values_n.shape}, weights {weights_n.shape} and groups {groups_n.shape}: "
            "all must be [n] with n >= 1"
        )
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(
            f"level {level} must lie in (0, 1), resamples {resamples} must be at least 1"
        )
    if (weights_n < 0).any() or not weights_n.sum() > 0:
        raise ValueError("weights: none may be negative, and their sum must be positive")
    group_of_n = np.unique(groups_n, return_inverse=True)[1]
    tops, bottoms = np.bincount(group_of_n, values_n), np.bincount(group_of_n, weights_n)
    means = _resampled(tops, bottoms, resamples, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(tops.sum() / bottoms.sum()), float(low), float(high))


def _resampled(
    tops: NDArray, bottoms: NDArray, resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    draws = rng.multinomial(len(tops), np.full(len(tops), 1 / len(tops)), size=resamples)
    sums = draws @ bottoms
    return (draws @ tops)[sums > 0] / sums[sums > 0]
