"""The order of training: a permutation each epoch, the mixture exact in every block, the same at any world size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from losslens.corpus.order import Mixture, Order, batch_positions, permute, rank_slice
from losslens.errors import UserError


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(size: int, key: int) -> None:
    found = permute(np.arange(size), size, np.full(size, key, dtype=np.uint64))
    assert sorted(found.tolist()) == list(range(size))


def test_permute_mixes() -> None:
    size = 10_000
    found = permute(np.arange(size), size, np.full(size, 7, dtype=np.uint64))
    assert abs(np.corrcoef(np.arange(size), found)[0, 1]) < 0.05
    assert (np.diff(found) == 1).mean() < 0.01


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.lists(st.integers(1, 90), min_size=5, max_size=5), st.integers(0, 2**32))
def test_every_block_holds_the_mixture_and_every_epoch_every_row_once(weights: list[int], sizes: list[int], seed: int) -> None:
    order = Order(Mixture.of(weights), tuple(sizes[: len(weights)]), seed)
    block = order.mixture.block
    source, row = order.locate(np.arange(3 * block))
    for start in range(0, 3 * block, block):
        counts = np.bincount(source[start : start + block], minlength=len(weights))
        assert tuple(counts) == order.mixture.counts
        assert np.all(np.abs(counts / block - np.array(weights) / sum(weights)) <= 0.01 * np.array(weights) / sum(weights))
    for s, size in enumerate(order.rows):
        drawn = np.bincount(row[source == s], minlength=size)
        epochs = len(row[source == s]) / size
        assert len(drawn) == size
        # The order within a block may begin the next epoch before the block's other rows end this one.
        assert drawn.min() >= np.floor(epochs) - 1
        assert drawn.max() <= np.ceil(epochs) + 1


def test_whole_epochs_are_exact() -> None:
    order = Order(Mixture.of([1]), (50,), 3)
    _, row = order.locate(np.arange(300))
    assert np.bincount(row).tolist() == [6] * 50
    first, second = row[:100], row[100:200]
    assert not np.array_equal(first, second)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 65), st.integers(0, 10**7), st.integers(1, 5), st.data())
def test_any_world_size_sees_the_same_samples(batch: int, cursor: int, steps: int, data: st.DataObject) -> None:
    unit = data.draw(st.integers(1, batch))
    world = data.draw(st.integers(1, -(-batch // unit)))
    alone = batch_positions(cursor, batch, range(steps), 0, 1).reshape(steps, batch)
    ranks = [batch_positions(cursor, batch, range(steps), rank, world, unit).reshape(steps, -1) for rank in range(world)]
    assert np.array_equal(np.concatenate(ranks, axis=1), alone)
    assert np.array_equal(alone.reshape(-1), cursor + np.arange(steps * batch))
    slices = [rank_slice(batch, rank, world, unit) for rank in range(world)]
    assert slices[-1][1] == batch
    assert all(start % unit == 0 and start < stop for start, stop in slices)


def test_locating_is_pointwise() -> None:
    order = Order(Mixture.of([4, 1]), (1000, 70), 9)
    positions = np.array([99_999, 0, 5, 12_345_678_901, 5])
    source, row = order.locate(positions)
    for i, position in enumerate(positions):
        assert (source[i], row[i]) == tuple(part[0] for part in order.locate(np.array([position])))
    other = Order(order.mixture, order.rows, 10).locate(positions)
    assert not np.array_equal(other[1], row)


def test_mixture_counts() -> None:
    assert Mixture.of([4, 1]) == Mixture(100, (80, 20))
    assert Mixture.of([0.4, 0.08, 0.08, 0.08, 0.08, 0.08, 0.14, 0.06]).counts == (40, 8, 8, 8, 8, 8, 14, 6)
    small = Mixture.of([64.16, 8.0, 3.04, 3.04, 1.28, 0.48, 20.0])
    assert small.block == 10_000
    assert sum(small.counts) == 10_000
    assert small.rows_within(25_000) == tuple(3 * count for count in small.counts)
    assert Mixture.of([1]).rows_within(7) == (7,)
    with pytest.raises(UserError, match="weight is only"):
        Mixture.of([1, 1e-9])
