"""Groves -> log-probabilities: the forward passes of the torch engine.

Legend: B rows of a batch, T padded length, P longest stem, S stems, D hidden size, V vocabulary, R rows that reach the head,
K picks (see `forest`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from eval_service.forest import Batch, Grove
from eval_service.planner import Bools, Floats, Ints, Scores
from losslens.models.language_model import Cache
from losslens.models.scoring import ScoringModel

# Logits held at once. On a CPU what stays in its cache is half as fast again; on a GPU few large kernels are.
HEAD_NUMBERS = {"cpu": 2**19, "cuda": 2**26}


@torch.inference_mode()
def scored(model: ScoringModel, groves: Sequence[Grove], device: str) -> tuple[Ints, Floats, Bools]:
    """(owner, log-probability, greediness) of every pick [K] of the groves."""
    owners: list[Ints] = [np.zeros(0, np.int64)]
    parts: list[Scores] = [(np.zeros(0), np.zeros(0, np.bool_))]
    for grove in groves:
        for batch, hidden in _hidden(model, grove, device):
            owners.append(batch.owner)
            parts.append(_picked(model, hidden, batch, device))
    logprob, greedy = (np.concatenate(part) for part in zip(*parts, strict=True))
    return np.concatenate(owners), logprob, greedy


def _hidden(model: ScoringModel, grove: Grove, device: str) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch with its final hidden states [B, T, D]; stems first, whose keys and values the others read."""
    stems: Cache | None = None
    lengths = torch.from_numpy(grove.stem_length).to(device)
    if grove.stems is not None:
        hidden, stems = _branched(model, grove.stems, None, lengths, device)
        yield grove.stems, hidden
    for batch in grove.batches:
        if batch.causal:
            yield batch, model.features(torch.from_numpy(batch.tokens).to(device).long())
        else:
            yield batch, _branched(model, batch, stems, lengths, device)[0]


def _branched(model: ScoringModel, batch: Batch, stems: Cache | None, lengths: Tensor, device: str) -> tuple[Tensor, Cache]:
    tokens, position, end = (torch.from_numpy(array).to(device).long() for array in (batch.tokens, batch.position, batch.end))
    before: Cache | None = None
    mask = _own_mask(end)
    if len(batch.stem):
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


def _picked(model: ScoringModel, hidden: Tensor, batch: Batch, device: str) -> Scores:
    rows = hidden.flatten(0, 1)[torch.from_numpy(batch.rows).to(device)]
    return picked(model.head, rows, batch, max(1, HEAD_NUMBERS[device] // model.vocab_size))


def picked(head: Callable[[Tensor], Tensor], hidden: Tensor, batch: Batch, at_once: int) -> Scores:
    """Log-softmax in float32 of each pick [K] at its row of `hidden` [R, D], and whether argmax chooses it."""
    logprob, greedy = [], []
    for first in range(0, len(hidden), at_once):
        logits = head(hidden[first : first + at_once]).float()
        here = slice(*np.searchsorted(batch.row, (first, first + at_once)))  # picks are ordered by row
        row = torch.from_numpy(batch.row[here] - first).to(hidden.device)
        target = torch.from_numpy(batch.target[here]).to(hidden.device)
        logprob.append(logits.log_softmax(-1)[row, target])
        greedy.append(is_argmax(logits, row, target))
    if not logprob:
        return np.zeros(0), np.zeros(0, np.bool_)
    return torch.cat(logprob).double().cpu().numpy(), torch.cat(greedy).cpu().numpy()


def is_argmax(logits: Tensor, row: Tensor, target: Tensor) -> Tensor:
    """Whether argmax over V chooses `target` [K] at `row` [K]. Maxima are ten times as fast as argmax on a CPU; only ties need both."""
    if logits.device.type != "cpu":
        return logits.argmax(-1)[row] == target
    found = logits[row, target] == logits.amax(-1)[row]
    likely = torch.unique(row[found])
    best = torch.full((len(logits),), -1, dtype=torch.int64)
    best[likely] = logits[likely].argmax(-1)
    return best[row] == target
