"""The order of training: global position -> (source, row), a pure function that knows nothing of ranks or workers.

The state of a run's data is therefore one integer, the samples consumed. Positions come in blocks of `block` samples;
each block holds every source exactly as often as its weight says, shuffled anew. Within a source, rows come in a seeded
permutation, a new one every epoch. Both permutations are cycle-walking Feistel networks (Black and Rogaway 2002,
"Ciphers with arbitrary finite domains"): bijections on [0, n) computed on the fly, with no table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from losslens.errors import UserError

Integers = NDArray[np.int64]
_Words = NDArray[np.uint64]

_WORD = (1 << 64) - 1
_ROUNDS = 4  # Luby and Rackoff: four rounds make a strong pseudo-random permutation
_BLOCKS = (100, 1_000, 10_000, 100_000, 1_000_000)
_WEIGHT_TOLERANCE = 0.01  # the block grows until every source's share is within one per cent of its weight
_MIXTURE_STREAM = 0  # key of the shuffle within blocks; source s permutes its rows with key s + 1


@dataclass(frozen=True, slots=True)
class Mixture:
    """`counts[s]` of each `block` consecutive positions belong to source s."""

    block: int
    counts: tuple[int, ...]

    @classmethod
    def of(cls, weights: Sequence[float]) -> Mixture:
        """The smallest block that holds the weights to within one per cent, by largest remainders.

        Raises:
            UserError: a weight is too small for the largest block.
        """
        share = np.asarray(weights, dtype=np.float64) / sum(weights)
        for block in _BLOCKS:
            counts = _largest_remainder(share * block)
            if np.all(np.abs(counts / block - share) <= _WEIGHT_TOLERANCE * share):
                return cls(block, tuple(int(count) for count in counts))
        raise UserError(
            f"a source's weight is only {share.min():.1e} of the whole", "raise that weight or leave the source out of corpus.sources"
        )

    def rows_within(self, positions: int) -> tuple[int, ...]:
        """How many rows of each source the first `positions` samples use at most."""
        blocks = -(-positions // self.block)
        return tuple(min(blocks * count, positions) for count in self.counts)


@dataclass(frozen=True, slots=True)
class Order:
    """The order of one run over sources of `rows` rows each, mixed by `mixture`."""

    mixture: Mixture
    rows: tuple[int, ...]
    seed: int

    def locate(self, positions: Integers) -> tuple[Integers, Integers]:
        """(source, row) of every global position, any shape of int64 [n]; defined for all positions >= 0."""
        block, within = np.divmod(np.asarray(positions, dtype=np.int64), self.mixture.block)
        slot = permute(within, self.mixture.block, _keys(self.seed, _MIXTURE_STREAM, block))
        ends = np.cumsum(self.mixture.counts)
        source = np.searchsorted(ends, slot, side="right").astype(np.int64)
        counts = np.asarray(self.mixture.counts, dtype=np.int64)
        drawn = block * counts[source] + slot - (ends - counts)[source]  # how many of this source came before
        row = np.empty_like(drawn)
        for s, size in enumerate(self.rows):
            mine = source == s
            epoch, index = np.divmod(drawn[mine], size)
            row[mine] = permute(index, size, _keys(self.seed, s + 1, epoch))
        return source, row


def rank_slice(global_batch: int, rank: int, world: int, unit: int = 1) -> tuple[int, int]:
    """The part [start, stop) of each global batch that belongs to a rank; the parts tile it for any world size.

    Parts begin at multiples of `unit` sequences, so that a micro-batch of that many is never split between ranks.
    """
    units = -(-global_batch // unit)
    return units * rank // world * unit, min(units * (rank + 1) // world * unit, global_batch)


def batch_positions(cursor: int, global_batch: int, steps: range, rank: int, world: int, unit: int = 1) -> Integers:
    """Global positions [len(steps) * b] of a rank's samples in the given steps after `cursor` samples."""
    start, stop = rank_slice(global_batch, rank, world, unit)
    first = cursor + np.arange(steps.start, steps.stop, dtype=np.int64) * global_batch
    return (first[:, None] + np.arange(start, stop, dtype=np.int64)).reshape(-1)


def permute(index: Integers, size: int, keys: _Words) -> Integers:
    """A bijection on [0, size) for each key: `index` and `keys` have one shape [n], so has the result."""
    half = max(1, (int(size - 1).bit_length() + 1) // 2)
    word = np.asarray(index, dtype=np.uint64).copy()
    walking = np.arange(word.size)
    while walking.size:  # outside [0, size): walk the cycle on; the domain is at most four times too large
        word[walking] = _feistel(word[walking], half, keys[walking])
        walking = walking[word[walking] >= np.uint64(size)]
    return word.astype(np.int64)


def _feistel(word: _Words, half: int, keys: _Words) -> _Words:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = word >> shift, word & mask
    for round_key in range(_ROUNDS):
        left, right = right, left ^ (_scramble(right + keys + np.uint64(round_key * 0xD1B54A32D192ED03 & _WORD)) & mask)
    return (left << shift) | right


def _keys(seed: int, stream: int, epoch: Integers) -> _Words:
    base = _scramble(np.array([seed & _WORD], dtype=np.uint64))  # an array, for scalars warn where they wrap around
    base = _scramble(base + np.uint64(stream))
    return _scramble(base + epoch.astype(np.uint64))


def _scramble(word: _Words) -> _Words:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014); arrays wrap around silently, as it wants."""
    word = word + np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def _largest_remainder(ideal: NDArray[np.float64]) -> Integers:
    """Integers of the same sum, each within one of its ideal (Hamilton's method; ties go to the earlier source)."""
    counts = np.floor(ideal + 1e-9).astype(np.int64)
    missing = round(float(ideal.sum())) - int(counts.sum())
    order = np.argsort(-(ideal - counts), kind="stable")
    counts[order[:missing]] += 1
    return counts
