"""How many sequences go through the device at once: as many as its memory holds, found out by trying.

A rank's share of the global batch is one pass until the device runs out of memory; then the share is computed anew in halves,
and in those from then on. The first step is thus the search, and whatever takes memory later (the optimizer's moments, a
neighbour) is met in the same way. The global batch stays what it is. Where micro-batches are part of a run's identity they are
not touched: the error says which would fit.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from losslens.errors import EnvironmentFailure
from losslens.training.resizing import PassTooLarge

logger = logging.getLogger(__name__)


def smaller(rows: int) -> int | None:
    """What to try when passes of `rows` sequences were too large; None when there is nothing smaller."""
    return -(-rows // 2) if rows > 1 else None


class Passes:
    """Cuts shares into passes. `fixed` is the run's micro-batch in sequences, None where passes may be of any size."""

    def __init__(self, fixed: int | None) -> None:
        self._fixed = fixed
        self.most = fixed  # sequences of a pass; None: a whole share

    def go(self, rows: Tensor, one_pass: Callable[[Tensor], None], forget: Callable[[], None]) -> None:
        """Call `one_pass` with each piece of `rows` [b, ...]. When memory is short, `forget` what was done, and go on smaller.

        Raises:
            EnvironmentFailure: one sequence does not fit, or the run's micro-batch does not.
        """
        while self._too_large(rows, self.most or len(rows), one_pass):
            forget()
            tried = min(self.most or len(rows), len(rows))
            if self._fixed:
                raise self._refusal(rows, one_pass, forget)
            fewer = smaller(tried)
            if fewer is None:
                raise _nothing_fits(rows)
            logger.warning("out of memory with %d sequences in one pass: going on with %d; the global batch stays", tried, fewer)
            self.most = fewer

    def _too_large(self, rows: Tensor, most: int, one_pass: Callable[[Tensor], None]) -> bool:
        try:
            for piece in torch.split(rows, most):
                one_pass(piece)
        except torch.OutOfMemoryError:
            too_large = True
        else:
            return False
        if rows.device.type == "cuda":  # outside of the handler: the error's frames hold what is to be freed
            torch.cuda.empty_cache()
        return too_large

    def limit(self, sequences: int | None) -> None:
        """Begin with passes of so many, if that was found out before."""
        if sequences and not self._fixed:
            self.most = sequences

    @contextlib.contextmanager
    def alone(self, most: int) -> Iterator[None]:
        """Passes of `most` sequences within the block, which the other ranks are in too: this one cannot go back and try again.

        Raises:
            PassTooLarge: memory was short; the group is to start anew with smaller passes.
            EnvironmentFailure: it was short for one sequence, or for the run's micro-batch.
        """
        try:
            yield
        except torch.OutOfMemoryError as error:
            fewer = smaller(most)
            if self._fixed:
                sentence = f"the device's memory does not hold a micro-batch of {self._fixed} sequences"
                remedy = f"set training.micro_batch to {fewer}, which makes another run of it" if fewer else "use more workers"
                raise EnvironmentFailure(sentence, f"{remedy}, or set cluster.recompute") from error
            if fewer is None:
                sentence = "the device's memory does not hold one sequence"
                raise EnvironmentFailure(sentence, "set cluster.recompute, use more workers or a device with more memory") from error
            raise PassTooLarge(fewer) from error

    def _refusal(self, rows: Tensor, one_pass: Callable[[Tensor], None], forget: Callable[[], None]) -> EnvironmentFailure:
        """The error that says which micro-batch fits, found by trying."""
        assert self._fixed
        fits = smaller(min(self._fixed, len(rows)))
        while fits and self._too_large(rows[:fits], fits, one_pass):
            forget()
            fits = smaller(fits)
        forget()
        if not fits:
            return _nothing_fits(rows)
        sentence = f"the device's memory does not hold a micro-batch of {self._fixed} sequences; {fits} fit"
        return EnvironmentFailure(
            sentence, f"set training.micro_batch to {fits}; it is part of a run's identity, so the run begins anew under another name"
        )


def _nothing_fits(rows: Tensor) -> EnvironmentFailure:
    sentence = f"the device's memory does not hold one sequence of {rows.shape[1] - 1} tokens"
    return EnvironmentFailure(sentence, "train a smaller size, shorten corpus.seq_len, or use a device with more memory")
