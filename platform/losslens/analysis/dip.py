"""Hartigan's dip: how far a sample is from having one mode (Hartigan and Hartigan 1985, Annals of Statistics 13:70).

The dip is the least, over distribution functions G with one mode, of the largest distance between G and the sample's own: G is convex
before its mode, concave after it, and may jump at it. Its p value is against samples of a uniform distribution, as in the paper: of
distributions with one mode that one has the largest dips in the limit, so others are called two-moded less often than the p value says.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from losslens.analysis.curves import Floats, Ints

DRAWS = 4000  # samples that a p value is read off: one of .05 is known to .0035


def dip(sample: Floats) -> float:
    """The dip of a sample of any size; ties allowed. 0 where all are equal, at most 1/4."""
    place, count = np.unique(sample, return_counts=True)
    above = np.cumsum(count)  # the distribution function at each place and, in `below`, just before it; in parts of the sample
    below = above - count
    first, last, distance = 0, len(place) - 1, 0.0
    while True:  # [first, last] holds the mode; each round narrows it, section 3 of the paper
        part = slice(first, last + 1)
        x = place[part]
        lower, upper = _convex(x, below[part]), _convex(x, -above[part])
        least, most = np.interp(x, x[lower], below[part][lower]), np.interp(x, x[upper], above[part][upper])
        widest_lower, widest_upper = (contacts[int((most - least)[contacts].argmax())] for contacts in (lower, upper))
        gap = max((most - least)[widest_lower], (most - least)[widest_upper])
        if (most - least)[widest_lower] > (most - least)[widest_upper]:
            begin, end = widest_lower, upper[np.searchsorted(upper, widest_lower)]
        else:
            begin, end = lower[np.searchsorted(lower, widest_upper, side="right") - 1], widest_upper
        if gap <= distance:
            break
        left, right = (above[part] - least)[:begin], (most - below[part])[end + 1 :]
        distance = max([distance, *left, *right])
        if (begin, end) == (0, len(x) - 1):
            break
        first, last = first + int(begin), first + int(end)
    return float(distance) / (2 * len(sample))


def p_value(found: float, size: int) -> float:
    """How often a uniform sample of this size dips at least as far."""
    drawn = _uniform_dips(size)
    return float((1 + (drawn >= found - 1e-12).sum()) / (1 + len(drawn)))


def _convex(x: Floats, y: Ints) -> Ints:
    """Which points the greatest convex function below them all touches."""
    kept: list[int] = []
    for i in range(len(x)):
        while len(kept) > 1:
            a, b = kept[-2:]
            if (y[b] - y[a]) * (x[i] - x[b]) < (y[i] - y[b]) * (x[b] - x[a]):
                break
            kept.pop()
        kept.append(i)
    return np.asarray(kept)


@lru_cache(maxsize=64)
def _uniform_dips(size: int) -> Floats:
    random = np.random.default_rng(size)
    return np.asarray([dip(random.random(size)) for _ in range(DRAWS)])
