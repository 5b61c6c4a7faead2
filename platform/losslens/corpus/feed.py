"""Rows into training: one rank's share of every global batch, from any cursor, at any world size.

Two readers behind one signature give the same arrays: `direct` reads the memory maps in this process; `windows` lets Ray
Data gather ahead on the rank's own node. A long Ray Data stream spins under back-pressure inside the training process
(0.5 to 0.97 of a core, measured), so it runs in windows: an executor reads a bounded stretch to its end and goes away, and
while that stretch is trained on the next one is fetched. Training never waits for a window: until one is there, as after
a restart or on a node that drains and takes no more tasks, its rows are read directly. The state is `cursor`, the samples
consumed so far. T = seq_len, b = the rank's rows of a global batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from losslens.corpus.order import Integers, Order, batch_positions, rank_slice
from losslens.corpus.packed import PackedCorpus

if TYPE_CHECKING:
    import ray.data

logger = logging.getLogger(__name__)

WINDOW_BYTES = 16 << 20  # of a rank's rows: two windows are held at once
MOST_STEPS = 2048
_DIRECT_STEPS = 16  # gathered at once: finding rows costs more than reading them where batches are small


@dataclass(frozen=True, slots=True)
class _Share:
    """What one rank reads: its slice of each global batch from `cursor` on."""

    corpus_dir: str
    seed: int
    cursor: int
    global_batch: int
    rank: int
    world: int
    unit: int

    @property
    def batch(self) -> int:
        """b."""
        start, stop = rank_slice(self.global_batch, self.rank, self.world, self.unit)
        return stop - start

    def rows(self, first: int, stop: int) -> Integers:
        """The rank's rows [stop - first, b, T + 1] of steps `first` to `stop`."""
        corpus, order = _opened(self.corpus_dir, self.seed)
        positions = batch_positions(self.cursor, self.global_batch, range(first, stop), self.rank, self.world, self.unit)
        return corpus.gather(order, positions).reshape(stop - first, self.batch, corpus.seq_len + 1)


def direct(
    corpus_dir: Path, seed: int, *, cursor: int, steps: int, global_batch: int, rank: int, world: int, unit: int = 1
) -> Iterator[Integers]:
    """For each of `steps` steps after `cursor` samples, the rank's rows: int64 [b, T + 1]. Needs no Ray.

    Ranks share each global batch of `global_batch` sequences in whole units of `unit` sequences (`order.rank_slice`).
    """
    share = _Share(str(corpus_dir), seed, cursor, global_batch, rank, world, unit)
    for first in range(0, steps, _DIRECT_STEPS):
        yield from share.rows(first, min(first + _DIRECT_STEPS, steps))


def windows(
    corpus_dir: Path, seed: int, *, cursor: int, steps: int, global_batch: int, rank: int, world: int, unit: int = 1
) -> Iterator[Integers]:
    """The arrays of `direct`, gathered by Ray Data one window ahead. The corpus must be on a disk that every node sees."""
    share = _Share(str(corpus_dir), seed, cursor, global_batch, rank, world, unit)
    length = _window_steps(share)
    pool = ThreadPoolExecutor(1, thread_name_prefix="corpus-window")
    done = first = stop = 0
    ahead: Future[list[NDArray[np.integer]]] | None = None  # the window of steps `first` to `stop`
    try:
        while done < steps:
            if ahead and ahead.done():
                window = _gathered(ahead)
                skip, following = done - first, max(done, stop) if window else done
            else:
                following = min(done + _DIRECT_STEPS, steps)
                window, skip = [share.rows(done, following)], 0
            if done and (not ahead or ahead.done()):  # not before the first steps: a restarted worker is in a hurry
                first, stop = following, min(following + length, steps)
                ahead = pool.submit(_fetch, share, first, stop) if first < stop else None
            for rows in islice(chain.from_iterable(window), skip, None):
                yield rows.astype(np.int64)
            done = following
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a window that never comes is not waited for


def _gathered(window: Future[list[NDArray[np.integer]]]) -> list[NDArray[np.integer]]:
    """A finished window's blocks; none where Ray failed to gather them."""
    if error := window.exception():
        logger.warning("Ray Data could not gather a window, which is read directly: %s", error)
        return []
    return window.result()


def _window_steps(share: _Share) -> int:
    corpus, _ = _opened(share.corpus_dir, share.seed)
    step_bytes = share.batch * (corpus.seq_len + 1) * corpus.dtype.itemsize
    return min(max(1, WINDOW_BYTES // step_bytes), MOST_STEPS)


def _fetch(share: _Share, first: int, stop: int) -> list[NDArray[np.integer]]:
    """The window's rows [steps, b, T + 1], gathered by one task: more would start more processes, which take seconds of CPU
    from the first steps. The executor has ended when they are here."""
    import ray.data  # half a second, which the first step need not wait for

    dataset = ray.data.from_items([{"first": first, "stop": stop}], override_num_blocks=1).map_batches(
        partial(_gather, share),
        batch_size=None,
        num_cpus=0,  # a CPU asked for here might be held by the very training that waits for these rows
        label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
    )
    return [block["rows"] for block in quiet(dataset).iter_batches(batch_size=None, batch_format="numpy")]


def quiet(dataset: ray.data.Dataset) -> ray.data.Dataset:
    """The dataset without Ray's progress bars, plan printouts and its notice that there are none."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    dataset.context.enable_progress_bars = False
    return dataset


def _gather(share: _Share, batch: dict[str, Any]) -> dict[str, Any]:
    corpus, _ = _opened(share.corpus_dir, share.seed)
    return {"rows": share.rows(int(batch["first"][0]), int(batch["stop"][0])).astype(corpus.dtype)}


@lru_cache(maxsize=4)
def _opened(corpus_dir: str, seed: int) -> tuple[PackedCorpus, Order]:
    corpus = PackedCorpus.open(Path(corpus_dir))
    return corpus, corpus.order(seed)
