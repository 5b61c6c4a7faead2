"""Pieces -> forward passes in which shared tokens are computed once. Pure: numpy only.

Sorted, sequences form a forest. Two things are shared. A **stem** is a beginning that many sequences have (the examples of
a subject): its keys and values are computed once and read by all of them. A **row** is several sequences behind one trunk
(an item's options), laid out depth first; a token sees exactly the tokens on its own path. Both are chosen by a cost:
tokens, each dearer by the keys it looks at, so a trunk of three words does not tie a hundred items together.

Legend: B rows of a batch, T padded length, S stems of a grove, R rows that reach the output head, K scored tokens ("picks").
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eval_service.planner import WIDTH, Ints, Packed, Piece, length, merge, unpack

KEYS = 256  # keys that a token's attention reads in the time of its matrix products: 200 at width 128, 900 at 384 (two cores)
LONGEST_ROW = 2048  # tokens of sequences laid out together; a single sequence may be longer
_STEP = 32  # tokens by which a stem must be longer than one that lies within it
_FEW = 8  # sequences that share too little to deserve a stem
_MANY = 64  # sequences that may still do without one, all in rows
_NOTHING = np.zeros((3, 0), np.int64)

Small = npt.NDArray[np.int32]  # of what is kept for every token of a task


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass over `tokens` [B, T], padded on the right by 0, at `position` [B, T].

    Token j is seen by the tokens j <= i < `end`[b, j] of its row, and row b also sees all of stem `stem`[b] of its grove
    (empty where there are no stems). `rows` [R] are flat indices b * T + t; pick k scores the token `target`[k] at
    `rows`[`row`[k]] for request `owner`[k]; picks are ordered by row.
    """

    tokens: Small
    position: Small
    end: Small
    stem: Ints
    rows: Ints
    row: Ints
    target: Ints
    owner: Ints
    causal: bool  # every row is one plain sequence: an ordinary causal forward does


@dataclass(frozen=True, slots=True)
class Grove:
    """Stems (`stem_length` [S] tokens each) and the batches that read them; without stems, batches that stand alone."""

    stems: Batch | None
    stem_length: Ints
    batches: tuple[Batch, ...]


@dataclass(frozen=True, slots=True)
class _Stem:
    """Sequences first <= i < stop begin with the same `depth` tokens, which are computed once."""

    first: int
    stop: int
    depth: int


@dataclass(frozen=True, slots=True)
class _Row:
    """One row before padding. `picks` [3, K]: index in the row, target, owner."""

    tokens: Ints
    position: Ints
    end: Ints
    picks: Ints
    stem: int = -1


def forest(pieces: Sequence[Piece], budget: int, *, share: bool = True) -> tuple[Grove, ...]:
    """What must be computed for all pieces, in batches of at most `budget` padded tokens (one row at least).

    Without `share` every sequence is a row of its own. Rows of similar length stand together, shortest first.
    """
    merged = merge([(p.inputs, p) for p in pieces])[::-1]
    if not merged:
        return ()
    common = _common([tokens for tokens, _ in merged]) if share else np.zeros(len(merged), np.int64)
    lengths = np.array([length(tokens) for tokens, _ in merged])
    stems = _stems(lengths, common, 0, len(merged))[1] if share else []
    alone, at = [], 0
    for stem in [*stems, _Stem(len(merged), len(merged), 0)]:
        alone += _rows(merged, lengths, common, _Stem(at, stem.first, 0), -1)[0]
        at = stem.stop
    groves = [Grove(None, np.zeros(0, np.int64), _batches(alone, budget))] if alone else []
    return (*groves, *_with_stems(merged, lengths, common, stems, budget))


def _with_stems(merged: list[tuple[Packed, list[Piece]]], lengths: Ints, common: Ints, stems: list[_Stem], budget: int) -> Iterator[Grove]:
    """Groves of stems of similar length, as many as one batch holds."""
    ordered = sorted(stems, key=lambda stem: stem.depth)
    while ordered:
        group = [ordered.pop()]
        while ordered and (len(group) + 1) * group[0].depth <= budget:
            group.append(ordered.pop())
        rows: list[_Row] = []
        trunks: list[_Row] = []
        for number, stem in enumerate(group):
            found, picks = _rows(merged, lengths, common, stem, number)
            rows += found
            tokens = unpack(merged[stem.first][0])[: stem.depth]
            trunks.append(_Row(tokens, np.arange(stem.depth), np.full(stem.depth, stem.depth), picks))
        yield Grove(_batch(trunks), np.array([stem.depth for stem in group]), _batches(rows, budget))


def _common(sequences: Sequence[Packed]) -> Ints:
    """[n]: tokens that each sequence shares with the one before; 0 for the first."""
    found = np.zeros(len(sequences), np.int64)
    for i in range(1, len(sequences)):
        before, tokens = sequences[i - 1], sequences[i]
        low, high = 0, min(len(before), len(tokens))
        while low < high:  # comparing slices is memcmp: a dozen of them beat a loop over tokens
            middle = (low + high + 1) // 2
            if before[low:middle] == tokens[low:middle]:
                low = middle
            else:
                high = middle - 1
        found[i] = low // WIDTH
    return found


def _cost(tokens: int, before: int) -> int:
    """Of a row of so many tokens behind a stem of `before`, in token-keys."""
    return tokens * (KEYS + before + tokens)


def _stems(lengths: Ints, common: Ints, first: int, stop: int) -> tuple[int, list[_Stem]]:
    """The cheapest stems for the sequences first <= i < stop, and what all of that costs."""
    if stop - first < _FEW:
        return _without(lengths, common, first, stop), []
    depth = int(common[first + 1 : stop].min())
    level = (depth // _STEP + 1) * _STEP
    borders = [first, *(first + 1 + np.flatnonzero(common[first + 1 : stop] < level)).tolist(), stop]
    parts = [_stems(lengths, common, a, b) for a, b in itertools.pairwise(borders)]
    choices = [(sum(cost for cost, _ in parts), [stem for _, stems in parts for stem in stems])]
    if depth >= _STEP:
        here = _Stem(first, stop, depth)
        rows = _row_lengths(lengths, common, here)[1]
        choices.append((_cost(depth, 0) + sum(_cost(tokens, depth) for tokens in rows), [here]))
    if stop - first <= _MANY:
        choices.append((_without(lengths, common, first, stop), []))
    return min(choices, key=lambda choice: choice[0])


def _without(lengths: Ints, common: Ints, first: int, stop: int) -> int:
    """What the sequences first <= i < stop cost with no stem."""
    return sum(_cost(tokens, 0) for tokens in _row_lengths(lengths, common, _Stem(first, stop, 0))[1])


def _row_lengths(lengths: Ints, common: Ints, stem: _Stem) -> tuple[list[int], list[int]]:
    """(where rows begin, tokens of each): a sequence joins the row before it when that is cheaper than one of its own."""
    begin: list[int] = []
    sizes: list[int] = []
    for i in range(stem.first, stop := stem.stop):
        alone = int(lengths[i]) - stem.depth
        if begin:
            joined = sizes[-1] + int(lengths[i]) - max(int(common[i]), stem.depth)
            apart = _cost(sizes[-1], stem.depth) + _cost(alone, stem.depth)
            if common[i] > stem.depth and joined <= LONGEST_ROW and _cost(joined, stem.depth) < apart:
                sizes[-1] = joined
                continue
        begin.append(i)
        sizes.append(alone)
    return [*begin, stop], sizes


def _rows(merged: list[tuple[Packed, list[Piece]]], lengths: Ints, common: Ints, stem: _Stem, number: int) -> tuple[list[_Row], Ints]:
    """The rows behind a stem, and the picks [3, K] in the stem itself."""
    rows: list[_Row] = []
    in_stem = [_NOTHING]
    begin, _ = _row_lengths(lengths, common, stem)
    for first, stop in itertools.pairwise(begin):
        row, picks = _row(merged, common, _Stem(first, stop, stem.depth), number)
        rows.append(row)
        in_stem.append(picks)
    return rows, np.concatenate(in_stem, 1)


def _row(merged: list[tuple[Packed, list[Piece]]], common: Ints, part: _Stem, number: int) -> tuple[_Row, Ints]:
    """Sequences first <= i < stop laid out depth first, without their first `depth` tokens; picks [3, K] that fall into those."""
    depth, size = part.depth, 0
    tokens: list[Ints] = []
    path = np.arange(-depth, 0)  # index in the row of each token of the present sequence; below 0 in the stem
    position: list[Ints] = []
    picks = [_NOTHING]
    closed: list[tuple[Ints, int]] = []
    for i in range(part.first, part.stop):
        sequence = unpack(merged[i][0])
        kept = int(common[i]) if i > part.first else depth
        closed.append((path[kept:], size))
        fresh = np.arange(size, size + len(sequence) - kept)
        path = np.concatenate([path[:kept], fresh])
        tokens.append(sequence[kept:])
        position.append(np.arange(kept, len(sequence)))
        size += len(fresh)
        for piece in merged[i][1]:
            at = path[piece.rows.start : piece.rows.stop]
            picks.append(np.stack([at, unpack(piece.targets), np.full(len(at), piece.owner)]))
    end = np.full(size, size)
    for gone, at_size in closed:
        end[gone[gone >= 0]] = at_size
    found = np.concatenate(picks, 1)
    inside = found[0] < 0
    below = found[:, inside] + np.array([[depth], [0], [0]])
    return _Row(np.concatenate(tokens), np.concatenate(position), end, found[:, ~inside], number), below


def _batches(rows: Iterable[_Row], budget: int) -> tuple[Batch, ...]:
    made: list[Batch] = []
    group: list[_Row] = []
    for row in sorted(rows, key=lambda row: len(row.tokens)):
        if group and (len(group) + 1) * len(row.tokens) > budget:
            made.append(_batch(group))
            group = []
        group.append(row)
    return (*made, _batch(group)) if group else tuple(made)


def _batch(group: Sequence[_Row]) -> Batch:
    B, T = len(group), max(len(row.tokens) for row in group)
    tokens, position = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    end = np.tile(np.arange(1, T + 1, dtype=np.int32), (B, 1))  # padding sees itself only: nothing at all has no softmax
    for b, row in enumerate(group):
        n = len(row.tokens)
        tokens[b, :n], position[b, :n], end[b, :n] = row.tokens, row.position, row.end
    place = np.concatenate([row.picks[0] + b * T for b, row in enumerate(group)])
    target, owner = np.concatenate([row.picks[1:] for row in group], 1)
    rows, at = np.unique(place, return_inverse=True)
    order = np.argsort(at, kind="stable")
    stem = np.array([row.stem for row in group if row.stem >= 0], np.int64)
    causal = not len(stem) and all((row.end == len(row.tokens)).all() for row in group)
    return Batch(tokens, position, end, stem, rows, at[order].astype(np.int64), target[order], owner[order], causal)
