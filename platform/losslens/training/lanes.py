"""Several micro-batches at a time on a CPU: a thread each, with kernels that stay in it.

The kernels of models that are trained on a CPU are too small to gain from a second thread, and wait for the slower of two where a
core is shared; whole passes side by side do not. Each thread has a twin of the model around the same weights, with gradients
of its own, which are handed over in the order of the micro-batches: with exact sums the number of threads changes no bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from losslens.models import LanguageModel

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)


def lanes_of(threads: int, sequences: int, micro_batch: int | None) -> int:
    """How many passes of a share of so many sequences run side by side on so many threads."""
    return max(1, min(threads, -(-sequences // (micro_batch or 1))))


def share_threads(threads: int, lanes: int) -> None:
    """Leave each kernel its part of the threads, in the main thread too: OpenMP's others would spin beside the lanes."""
    torch.set_num_threads(max(1, threads // lanes))


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next pass, which needs the same again; otherwise large tensors go back to the system and
    their pages are made anew each time, a seventh of the time at 19M parameters. Elsewhere nothing happens."""
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    for parameter, value in ((_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, 1 << 30), (_TOP_PAD, 64 << 20)):
        if adjust is not None:
            adjust(parameter, value)


class Lanes:
    """`models[0]` is the model itself, the others are its twins."""

    def __init__(self, model: LanguageModel, count: int) -> None:
        self.models = [model, *(model.twin() for _ in range(count - 1))]
        self._parameters = [list(each.parameters()) for each in self.models]
        self._pool: ThreadPoolExecutor | None = None

    def pieces(self, rows: Tensor, micro_batch: int | None) -> Sequence[Tensor]:
        """A share [b, ...] cut into passes: micro-batches, or as many parts as there are lanes."""
        return torch.split(rows, micro_batch or -(-len(rows) // len(self.models)))

    def go(self, pieces: Sequence[Tensor], one_pass: Callable[[int, Tensor], Tensor], add: Callable[[Tensor], None]) -> None:
        """`one_pass` gets a lane's number and a piece, leaves gradients with that lane's model and returns the loss; `add` is called
        with each loss in the order of the pieces, when that piece's gradients are the model's."""
        if self._pool is None:
            each = torch.get_num_threads()  # those that `share_threads` left to every kernel
            self._pool = ThreadPoolExecutor(len(self.models), "lane", initializer=torch.set_num_threads, initargs=(each,))
        for first in range(0, len(pieces), len(self.models)):
            group = pieces[first : first + len(self.models)]
            for lane, loss in enumerate(list(self._pool.map(one_pass, range(len(group)), group))):
                self._hand_over(lane)
                add(loss)

    def _hand_over(self, lane: int) -> None:
        """Add a twin's gradients to the model's."""
        if not lane:
            return
        for parameter, twin in zip(self._parameters[0], self._parameters[lane], strict=True):
            parameter.grad = twin.grad if parameter.grad is None or twin.grad is None else parameter.grad.add_(twin.grad)
            twin.grad = None
