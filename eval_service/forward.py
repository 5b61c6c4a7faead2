"""Groves -> log-probabilities: the forward passes of the torch engine.

On a CPU each thread computes batches of its own: kernels of the sizes that are scored there gain little from a second
thread, and wait for the slower of two wherever a core is shared.

Legend: B rows of a batch, T padded length, P longest stem, S stems, D hidden size, V vocabulary, R rows that reach the head,
K picks (see `forest`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval_service.forest import Batch, Grove
from eval_service.planner import Bools, Floats, Ints, Scores
from losslens.models.language_model import Cache
from losslens.models.scoring import ScoringModel

_Part = tuple[Ints, Scores]  # owner and score of the picks of a batch


def scored(models: Sequence[ScoringModel], groves: Sequence[Grove], device: str, *, greedy: bool = True) -> tuple[Ints, Floats, Bools]:
    """(owner, log-probability, whether argmax chooses it) of every pick [K] of the groves, by as many threads as there are `models`.

    Without `greedy` nobody looks, and the last says False.
    """
    owners: list[Ints] = [np.zeros(0, np.int64)]
    parts: list[Scores] = [(np.zeros(0), np.zeros(0, np.bool_))]
    with _kernels_in_one_thread(len(models) > 1):
        for owner, part in _in_order(_work(_Crew(models, device, greedy), groves), len(models)):
            owners.append(owner)
            parts.append(part)
    logprob, chosen = (np.concatenate(part) for part in zip(*parts, strict=True))
    return np.concatenate(owners), logprob, chosen


class _Crew:
    """Models around the same weights, of which each is used by one thread at a time."""

    def __init__(self, models: Sequence[ScoringModel], device: str, greedy: bool) -> None:
        self.device, self._greedy = device, greedy
        self._free: SimpleQueue[ScoringModel] = SimpleQueue()
        for model in models:
            self._free.put(model)

    @torch.inference_mode()  # which holds for the calling thread alone
    def part(self, batch: Batch, stems: Cache | None, lengths: Tensor) -> _Part:
        """The picks of a batch, which may read stems of so many tokens."""
        with self._lent() as model:
            if batch.causal:
                hidden = model.features(torch.from_numpy(batch.tokens).to(self.device).long())
            else:
                hidden = _branched(model, batch, stems, lengths, self.device)[0]
            return batch.owner, _picked(model, hidden, batch, self.device, self._greedy)

    @torch.inference_mode()
    def stems(self, batch: Batch, lengths: Tensor) -> tuple[_Part, Cache]:
        """The picks of a batch of stems, and their keys and values."""
        with self._lent() as model:
            hidden, kept = _branched(model, batch, None, lengths, self.device)
            return (batch.owner, _picked(model, hidden, batch, self.device, self._greedy)), kept

    @contextmanager
    def _lent(self) -> Iterator[ScoringModel]:
        model = self._free.get()
        try:
            yield model
        finally:
            self._free.put(model)


def _work(crew: _Crew, groves: Sequence[Grove]) -> Iterator[_Part | Callable[[], _Part]]:
    """One call per batch; stems, whose keys and values the others read, are computed on the way."""
    for grove in groves:
        stems: Cache | None = None
        lengths = torch.from_numpy(grove.stem_length).to(crew.device)
        if grove.stems is not None:
            part, stems = crew.stems(grove.stems, lengths)
            yield part
        for batch in grove.batches:
            yield partial(crew.part, batch, stems, lengths)


def _in_order(work: Iterable[_Part | Callable[[], _Part]], threads: int) -> Iterator[_Part]:
    """Every part, in order. Few calls run ahead of the one that is awaited, so few stems are held at once."""
    if threads == 1:
        yield from (part() if callable(part) else part for part in work)
        return
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        ahead: deque[Future[_Part]] = deque()
        for part in work:
            if not callable(part):
                yield part
                continue
            ahead.append(pool.submit(part))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        for future in ahead:
            yield future.result()


@contextmanager
def _kernels_in_one_thread(wanted: bool) -> Iterator[None]:
    """Torch's kernels run in the thread that calls them."""
    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _branched(model: ScoringModel, batch: Batch, stems: Cache | None, lengths: Tensor, device: str) -> tuple[Tensor, Cache]:
    tokens, position, end = (torch.from_numpy(array).to(device).long() for array in (batch.tokens, batch.position, batch.end))
    before: Cache | None = None
    mask = _own_mask(end)
    if len(batch.stem) and len(lengths) == 1:
        before = stems
    elif len(batch.stem):
        assert stems is not None
        chosen = torch.from_numpy(batch.stem).to(device)
        before = [(keys[chosen], values[chosen]) for keys, values in stems]
        mask = torch.cat([_stem_mask(lengths[chosen], stems[0][0].shape[2]).expand(-1, tokens.shape[1], -1), mask], 2)
    added = torch.zeros(mask.shape, device=device).masked_fill_(~mask, float("-inf"))
    return model.branched(tokens, position, added[:, None], before)


def _own_mask(end: Tensor) -> Tensor:
    """Who sees whom within a row, [B, T, T]: i sees j where j <= i < end[j]."""
    place = torch.arange(end.shape[1], device=end.device)
    return (place[:, None] >= place) & (place[:, None] < end[:, None, :])


def _stem_mask(lengths: Tensor, longest: int) -> Tensor:
    """Which keys of the stems are there, [B, 1, P]."""
    return (torch.arange(longest, device=lengths.device) < lengths[:, None])[:, None, :]


def _picked(model: ScoringModel, hidden: Tensor, batch: Batch, device: str, greedy: bool) -> Scores:
    """Log-softmax in float32 of each pick [K] at its row of `hidden` [B, T, D], and whether argmax chooses it (see `scored`)."""
    scored_rows = hidden.flatten(0, 1)[torch.from_numpy(batch.rows).to(device)]
    at_once = head_rows(device, model.vocab_size)
    logprob: list[Tensor] = []
    chosen: list[Tensor] = []
    for first in range(0, len(scored_rows), at_once):
        logits = model.head(scored_rows[first : first + at_once]).float()
        here = slice(*np.searchsorted(batch.row, (first, first + at_once)))  # picks are ordered by row
        row = torch.from_numpy(batch.row[here] - first).to(device)
        target = torch.from_numpy(batch.target[here]).to(device)
        logprob.append(logits.log_softmax(-1)[row, target])
        if greedy:
            chosen.append(is_argmax(logits, row, target))
    return _joined(logprob, np.float64), _joined(chosen, np.bool_) if greedy else np.zeros(len(batch.row), np.bool_)


def head_rows(device: str, vocab_size: int) -> int:
    """Rows that the output head is given at once: on a CPU as many as its cache likes, on a GPU up to 256 MB of logits."""
    return 256 if device == "cpu" else max(1, 2**26 // vocab_size)


def _joined(parts: Sequence[Tensor], kind: type[np.generic]) -> np.ndarray[Any, Any]:
    return torch.cat(list(parts)).cpu().numpy().astype(kind) if parts else np.zeros(0, kind)


def is_argmax(logits: Tensor, row: Tensor, target: Tensor) -> Tensor:
    """Whether argmax over V chooses `target` [K] at `row` [K]. Maxima are ten times as fast as argmax on a CPU; only ties need both."""
    if logits.device.type != "cpu":
        return logits.argmax(-1)[row] == target
    found = logits[row, target] == logits.amax(-1)[row]
    likely = torch.unique(row[found])
    best = torch.full((len(logits),), -1, dtype=torch.int64)
    best[likely] = logits[likely].argmax(-1)
    return best[row] == target
