"""Resamples of runs and of stretches of runs: what differs between trainings, and noise that neighbours in training share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from losslens.analysis.curves import Floats, Ints

_TAIL = 0.025


def ends_of(value: float, resampled: Sequence[float], name: str) -> dict[str, float | None]:
    """The value and its 95 % interval over resamples, as columns; None for infinite."""
    low, high = np.quantile(resampled, [_TAIL, 1 - _TAIL], method="nearest") if resampled else (np.nan, np.nan)
    given = {name: value, f"{name}_low": min(float(low), value), f"{name}_high": max(float(high), value)}
    return {key: number if np.isfinite(number) else None for key, number in given.items()}


def block_weights(run: Ints, *, count: int, seed: int) -> Floats:
    """How often each checkpoint appears in each of `count` resamples; shape [count, N].

    Runs are drawn with replacement; within a drawn run, circular blocks of n^(1/3) successive checkpoints, because
    neighbours in training share their noise. Checkpoints must be in the order of runs, then of training.
    """
    random = np.random.default_rng(seed)
    names, starts, sizes = np.unique(run, return_index=True, return_counts=True)
    drawn = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=count)
    weights = np.zeros((count, len(run)))
    for number, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        length = max(round(size ** (1 / 3)), 1)
        blocks = random.multinomial(drawn[:, number] * -(-size // length), np.full(size, 1 / size))
        weights[:, start : start + size] = sum(np.roll(blocks, shift, axis=1) for shift in range(length))
    return weights
