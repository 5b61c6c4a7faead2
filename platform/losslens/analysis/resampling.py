"""Resamples of runs and of stretches of runs: what differs between trainings, and noise that neighbours in training share."""

from __future__ import annotations

import numpy as np

from losslens.analysis.curves import Floats, Ints


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
