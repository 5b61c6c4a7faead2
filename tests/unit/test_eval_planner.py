"""The planner: whatever it merges, every engine must give what scoring each request alone would give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval_service.fake import ByteEncoder, FakeEngine, batches_of, fake_logprob, path
from eval_service.forest import Batch, Grove, forest
from eval_service.planner import Piece, cut, length, pack, plan, prefills, require_known, unpack
from eval_service.plans import Plans, blocks, sizes
from losslens.errors import UserError
from losslens.tasks.requests import Generate, LogLikelihood, LogLikelihoodResult, Request

MAX_LEN = 12
TEXT = st.text(alphabet="ab ", max_size=20)
ASKED = st.builds(LogLikelihood, TEXT, st.text(alphabet="ab ", min_size=1, max_size=30))


class MergingEncoder:
    """Two equal letters are one token, and a space belongs to the letter after it: borders move, as in a BPE."""

    start: int | None = 0

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> list[int]:
        ids, at = [], 0
        while at < len(text):
            size = 2 if text[at : at + 2] in ("aa", "bb", " a", " b") else 1
            ids.append(int.from_bytes(text[at : at + size].encode(), "big"))
            at += size
        return ids

    def __hash__(self) -> int:
        return 1


def naive(tokens: list[int], border: int) -> tuple[float, int, bool]:
    """Each scored token on its own, with the whole window before it."""
    scored = [fake_logprob(0, np.array(tokens[max(0, at - MAX_LEN) : at]), tokens[at]) for at in range(border, len(tokens))]
    return sum(s for s, _ in scored), len(scored), all(g for _, g in scored)


@given(st.lists(ASKED, max_size=25), st.integers(1, 64))
@settings(max_examples=200, deadline=None)
def test_batches_give_what_each_request_alone_gives(asked: list[LogLikelihood], budget: int) -> None:
    engine = FakeEngine(max_len=MAX_LEN, batch_tokens=budget)
    for request, result in zip(asked, engine.run(asked), strict=True):
        assert isinstance(result, LogLikelihoodResult)
        tokens = [*(b"" if request.context else b"\0"), *request.context.encode(), *request.continuation.encode()]
        border = max(1, len(request.context))
        assert result.truncated == (len(tokens) - 1 > MAX_LEN)
        assert result.tokens == len(tokens) - border
        if not result.truncated:
            logprob, _, greedy = naive(tokens, border)
            assert result.logprob == pytest.approx(logprob, abs=1e-9)
            assert result.greedy == greedy


@given(st.lists(ASKED, min_size=1, max_size=25), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_prefills_and_choices_ask_for_the_same_tokens_as_batches(asked: list[LogLikelihood], ids_at_once: int) -> None:
    pieces = plan(asked, MergingEncoder(), MAX_LEN).pieces
    choices, whole = prefills(pieces, ids_at_once)
    found = [(owner, pack(list(unpack(c.tokens))), target) for c in choices for owner, target in zip(c.owners, c.targets, strict=True)]
    for sequence in whole:
        tokens = unpack(sequence.tokens)
        assert length(sequence.tokens) <= MAX_LEN + 1
        found += [(int(o), pack(tokens[:at].tolist()), int(tokens[at])) for o, at in zip(sequence.owner, sequence.position, strict=True)]
    assert sorted(found) == sorted(picks(forest(pieces, 40)))
    assert all(len(c.targets) <= ids_at_once for c in choices)


def picks(groves: Sequence[Grove]) -> list[tuple[int, bytes, int]]:
    """(owner, everything the scoring token sees, target) of each pick."""
    return [
        (int(owner), pack(path(grove, batch, int(batch.rows[row])).tolist()), int(target))
        for grove in groves
        for batch in batches_of(grove)
        for row, target, owner in zip(batch.row, batch.target, batch.owner, strict=True)
    ]


BEGINNINGS = [list(range(100 + 60 * i, 160 + 60 * i)) for i in range(2)]
SEQUENCES = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 60), st.lists(st.integers(0, 2), min_size=1, max_size=6), st.integers(1, 3)),
    min_size=1,
    max_size=60,
)


@given(SEQUENCES, st.integers(1, 200), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_forest_computes_what_each_sequence_alone_needs(drawn: list[tuple[int, int, list[int], int]], budget: int, share: bool) -> None:
    pieces = []
    for owner, (which, kept, rest, targets) in enumerate(drawn):
        tokens = [*(BEGINNINGS[which][:kept] if which < 2 else []), *rest]
        pieces.append(Piece(owner, pack(tokens), pack(range(min(targets, len(tokens))))))
    expected = [
        (p.owner, pack(unpack(p.inputs)[: row + 1].tolist()), int(target))
        for p in pieces
        for row, target in zip(p.rows, unpack(p.targets), strict=True)
    ]
    groves = forest(pieces, budget, share=share)
    assert sorted(picks(groves)) == sorted(expected)
    for batch in (batch for grove in groves for batch in grove.batches):
        assert batch.tokens.size <= budget or len(batch.tokens) == 1
        assert batch.causal == (not len(batch.stem) and all(_plain(end) for end in batch.end))


def _plain(end: np.ndarray) -> bool:
    """Whether a row's tokens are one sequence, then padding, which sees itself only."""
    used = int(end[0])
    return bool((end[:used] == used).all())


def test_few_shot_examples_are_computed_once() -> None:
    examples, questions = "e" * 200, [chr(40 + i) * 12 for i in range(50)]
    asked = [LogLikelihood(examples + question, option) for question in questions for option in ("yes", "no")]
    (grove,) = forest(plan(asked, ByteEncoder(), 512).pieces, 1000)
    assert grove.stem_length.tolist() == [200]
    assert all(batch.tokens.shape[1] == 12 + 2 + 1 for batch in grove.batches)  # a question and all but the last letter of its options
    assert sum(batch.tokens.size for batch in grove.batches) == 50 * 15


def test_options_share_their_context_and_words_do_not_tie_items_together() -> None:
    asked = [LogLikelihood(f"How to {i:02d}" + "x" * 40, o) for i in range(20) for o in ("abcd", "efgh", "ijkl")]
    (grove,) = forest(plan(asked, ByteEncoder(), 512).pieces, 1000)
    assert grove.stems is None
    assert {batch.tokens.shape[1] for batch in grove.batches} == {49 + 3 * 3}


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=20))
def test_no_sequence_that_begins_another_costs_anything(sequences: list[list[int]]) -> None:
    pieces = [Piece(i, pack(s), pack([1])) for i, s in enumerate(sequences)]
    whole = [batch.tokens[b] for grove in forest(pieces, 6, share=False) for batch in grove.batches for b in range(len(batch.tokens))]
    assert len(whole) == len({tuple(s) for s in sequences if not any(o[: len(s)] == s and o != s for o in sequences)})


def only(groves: Sequence[Grove]) -> Batch:
    ((batch,),) = [grove.batches for grove in groves]
    return batch


def test_single_token_options_share_one_row() -> None:
    batch = only(forest(plan([LogLikelihood("Answer:", letter) for letter in "ABCD"], ByteEncoder(), 64).pieces, 1000))
    assert batch.tokens.shape == (1, 7)
    assert len(batch.rows) == 1
    assert len(batch.target) == 4


def test_questions_of_one_row_cost_one_sequence() -> None:
    row = "3+4=7;2+2=4;5+1=6;"
    asked = [LogLikelihood(row[:at], row[at : at + 1]) for at in (4, 10, 16)]
    batch = only(forest(plan(asked, ByteEncoder(), 64).pieces, 1000))
    assert batch.tokens.shape == (1, 16)
    choices, whole = prefills(plan(asked, ByteEncoder(), 64).pieces)
    assert not choices
    assert [length(w.tokens) for w in whole] == [17]


def test_trailing_spaces_belong_to_the_continuation_unless_the_border_is_real() -> None:
    (moved,) = plan([LogLikelihood("x ", "a")], MergingEncoder(), 64).pieces
    assert unpack(moved.targets).tolist() == [int.from_bytes(b" a", "big")]
    (kept,) = plan([LogLikelihood("x ", "a")], ByteEncoder(), 64).pieces
    assert unpack(kept.targets).tolist() == [ord("a")]


def test_a_continuation_merged_into_the_context_is_scored_apart() -> None:
    (piece,) = plan([LogLikelihood("a", "a")], MergingEncoder(), 64).pieces
    assert (unpack(piece.inputs).tolist(), unpack(piece.targets).tolist()) == ([ord("a")], [ord("a")])


def test_an_empty_context_begins_with_the_start_token_or_gives_the_first() -> None:
    encoder = ByteEncoder()
    assert unpack(plan([LogLikelihood("", "ab")], encoder, 64).pieces[0].inputs).tolist() == [0, ord("a")]
    encoder.start = None
    (piece,) = plan([LogLikelihood("", "ab")], encoder, 64).pieces
    assert (unpack(piece.inputs).tolist(), unpack(piece.targets).tolist()) == ([ord("a")], [ord("b")])
    with pytest.raises(UserError, match="no token to score"):
        plan([LogLikelihood("", "a")], encoder, 64)
    with pytest.raises(UserError, match="no token to score"):
        plan([LogLikelihood("a", "")], encoder, 64)


def test_truncation_is_on_the_left_and_counted_per_request() -> None:
    made = plan([LogLikelihood("abcdefgh", "xy"), LogLikelihood("abc", "xy")], ByteEncoder(), 4)
    assert made.truncated == (True, False)
    assert bytes(unpack(made.pieces[0].inputs).tolist()) == b"fghx"


def test_a_continuation_longer_than_the_model_is_scored_whole() -> None:
    made = plan([LogLikelihood("ab", "c" * 19)], ByteEncoder(), 8)
    assert made.truncated == (True,)
    assert sum(length(p.targets) for p in made.pieces) == 19
    assert max(length(p.inputs) for p in made.pieces) == 8
    assert min(length(p.inputs) - length(p.targets) for p in made.pieces[1:]) >= 3  # each later piece sees what was before


def test_prompts_leave_room_for_the_answer() -> None:
    asked: list[Request] = [Generate("abcdefgh", (), 3), Generate("ab", (), 100), Generate("a" * 50, (), 100)]
    made = plan(asked, ByteEncoder(), 10)
    assert [(length(p.tokens), p.room) for p in made.prompts] == [(7, 3), (2, 5), (5, 5)]
    assert made.truncated == (True, False, True)


def test_tokens_that_the_model_does_not_know_are_refused() -> None:
    with pytest.raises(UserError, match="makes the token 122, but the model knows 100"):
        require_known(plan([LogLikelihood("a", "z")], ByteEncoder(), 8), 100)


def test_cut_takes_the_first_stop_string_in_the_text() -> None:
    assert cut("one two\nthree", ("three", "\n", "")) == "one two"
    assert cut("nothing", ("x",)) == "nothing"


def test_plans_are_made_once_per_task() -> None:
    engine = FakeEngine()
    asked = [LogLikelihood("a", "b")]
    engine.run(asked)
    engine.run([LogLikelihood("a", "b")])
    assert engine._plan.cache_info().hits == 1


@given(st.lists(ASKED, max_size=30), st.integers(1, 60))
def test_blocks_are_the_requests_in_order_and_bounded(asked: list[LogLikelihood], most: int) -> None:
    cut_up = list(blocks(asked, most))
    assert [request for block in cut_up for request in block] == asked
    assert all(len(block) == 1 or sum(sizes(block)) <= most + len(block[0].context) for block in cut_up)


def test_the_oldest_plans_go_when_the_text_they_are_for_is_too_much() -> None:
    plans: Plans[int] = Plans(kept=250)
    asked = [(LogLikelihood("x" * 99, str(i)),) for i in range(3)]
    made: list[int] = []
    for i in (0, 1, 0, 2, 0, 1):
        plans.of(asked[i], "encoder", make=lambda i=i: made.append(i) or i)  # type: ignore[misc, func-returns-value]
    assert made == [0, 1, 2, 1]
