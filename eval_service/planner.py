"""Requests -> token sequences and what is scored in them. Pure: no torch, no tokenizer library.

A model's row t scores every token that may follow inputs[0..t]. So an option costs a forward pass only if its inputs
(context + continuation without the last token) are not the beginning of another's: single-token options of an item share
one row, and the questions of a generated row share one sequence. Plans depend on the requests, the tokenizer and the
model's length alone, never on weights: made once, used for every checkpoint.

Legend: B sequences of a batch, T padded length, R rows that reach the output head, K scored tokens ("picks").
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NewType, Protocol

import numpy as np
import numpy.typing as npt

from losslens.errors import UserError
from losslens.tasks.requests import Generate, LogLikelihood, LogLikelihoodResult, Request

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Scores = tuple[Floats, Bools]  # of K picks: log-probability in nats, whether it was the likeliest token

# Token ids as big-endian 32-bit numbers: a tenth of a tuple's memory, and bytes sort, hash and begin one another exactly
# as the token sequences do, at the speed of memcmp.
Packed = NewType("Packed", bytes)
WIDTH = 4  # bytes per token


def pack(tokens: Sequence[int] | Ints) -> Packed:
    """Token ids as `Packed`."""
    return Packed(np.asarray(tokens, ">u4").tobytes())


def unpack(packed: Packed) -> Ints:
    """Token ids as an array."""
    return np.frombuffer(packed, ">u4").astype(np.int64)


def length(packed: Packed) -> int:
    """How many tokens."""
    return len(packed) // WIDTH


def window(packed: Packed, first: int, last: int) -> Packed:
    """Tokens first <= i < last."""
    return Packed(packed[first * WIDTH : last * WIDTH])


class Encoder(Protocol):
    """What a plan needs of a tokenizer. Equal encoders (by hash) make equal plans."""

    @property
    def start(self) -> int | None:
        """The token before an empty context: beginning-of-text, else end-of-text, else None."""
        ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Piece:
    """`targets` are scored by the last len(targets) rows of `inputs`; their log-probabilities belong to request `owner`."""

    owner: int
    inputs: Packed
    targets: Packed

    @property
    def rows(self) -> range:
        """The rows that score the targets, counted in `inputs`."""
        return range(length(self.inputs) - length(self.targets), length(self.inputs))


@dataclass(frozen=True, slots=True)
class Prompt:
    """Generate up to `room` tokens after `tokens` for request `owner`."""

    owner: int
    tokens: Packed
    room: int
    stop: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything asked, in tokens; `truncated[i]`: request i lost context on the left (or does not fit in one window)."""

    pieces: tuple[Piece, ...]
    prompts: tuple[Prompt, ...]
    truncated: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Prefill:
    """For engines that score only the token that comes next: `tokens`, of which those at `position`[k] are scored."""

    tokens: Packed
    position: Ints
    owner: Ints


@dataclass(frozen=True, slots=True)
class Choice:
    """For the same engines: the single tokens `targets` right after `tokens`, all in one request."""

    tokens: Packed
    targets: tuple[int, ...]
    owners: tuple[int, ...]


def plan(requests: Sequence[Request], encoder: Encoder, max_len: int) -> Plan:
    """Tokenise and fit every request into a model that takes at most `max_len` input tokens.

    Context and continuation are split as lm-evaluation-harness does (`TemplateLM._encode_pair`): encode both together,
    cut after as many tokens as the context alone has, trailing whitespace of the context counting as continuation. The one
    difference: where the context's tokens, whitespace included, begin the whole's tokens, the border is theirs already and
    nothing moves (byte tokenizers; a task that asks for the next character must not be asked for the space before it).
    Too long inputs lose context on the left. A continuation longer than the model is scored in pieces of half a window.

    Raises:
        UserError: an empty continuation, or one of a single token with nothing before it.
    """
    asked = [(i, r) for i, r in enumerate(requests) if isinstance(r, LogLikelihood)]
    open_ = [(i, r) for i, r in enumerate(requests) if isinstance(r, Generate)]
    truncated = [False] * len(requests)
    pieces: list[Piece] = []
    for (owner, request), (tokens, border) in zip(asked, _split([r for _, r in asked], encoder), strict=True):
        if border >= length(tokens):
            raise UserError(
                f"the continuation {request.continuation!r} has no token to score",
                "give it text, or use a tokenizer with a beginning-of-text or end-of-text token",
            )
        truncated[owner] = length(tokens) - 1 > max_len
        pieces += _fit(owner, tokens, border, max_len)
    prompts: list[Prompt] = []
    for (owner, generate), tokens in zip(open_, _encode([r.context for _, r in open_], encoder), strict=True):
        prompt = _prompt(owner, generate, tokens, encoder, max_len)
        truncated[owner] = len(prompt.tokens) < len(tokens)
        prompts.append(prompt)
    return Plan(tuple(pieces), tuple(prompts), tuple(truncated))


def require_known(made: Plan, vocab_size: int) -> None:
    """Every token of the plan is one the model knows.

    Raises:
        UserError: naming the first one that is not.
    """
    for packed in (*(Packed(p.inputs + p.targets) for p in made.pieces), *(p.tokens for p in made.prompts)):
        require_token(int(np.frombuffer(packed, ">u4").max()), vocab_size)


def require_token(largest: int, vocab_size: int) -> None:
    """The largest token that a tokenizer makes is one the model knows.

    Raises:
        UserError: it is not.
    """
    if largest >= vocab_size:
        raise UserError(
            f"the tokenizer makes the token {largest}, but the model knows {vocab_size} tokens",
            "the tokenizer beside the model is not the one it was trained with",
        )


def prefills(pieces: Sequence[Piece], ids_at_once: int = 128) -> tuple[tuple[Choice, ...], tuple[Prefill, ...]]:
    """The same work for engines that score only the actual next token of a prompt, or given ids after its end.

    Single tokens asked after the same inputs become one `Choice` (of at most `ids_at_once` different ids); all else are
    whole sequences, merged when one begins another.
    """
    after: dict[Packed, list[Piece]] = defaultdict(list)
    for piece in pieces:
        if length(piece.targets) == 1:
            after[piece.inputs].append(piece)
    shared = {inputs: group for inputs, group in after.items() if len({p.targets for p in group}) > 1}
    choices = tuple(choice for inputs, group in shared.items() for choice in _choices(inputs, group, ids_at_once))
    rest = [p for p in pieces if length(p.targets) > 1 or p.inputs not in shared]
    whole = merge([(Packed(p.inputs + p.targets[-WIDTH:]), p) for p in rest])
    return choices, tuple(_prefill(tokens, members) for tokens, members in whole)


def merge(entries: list[tuple[Packed, Piece]]) -> list[tuple[Packed, list[Piece]]]:
    """Sequences that begin no other one, each with the pieces of all that begin it.

    In lexicographic order a sequence stands right before those it begins, so one backward pass suffices.
    """
    merged: list[tuple[Packed, list[Piece]]] = []
    for tokens, piece in sorted(entries, key=lambda entry: entry[0], reverse=True):
        if merged and merged[-1][0].startswith(tokens):
            merged[-1][1].append(piece)
        else:
            merged.append((tokens, [piece]))
    return merged


def assemble(truncated: Sequence[bool], owner: Ints, logprob: Floats, greedy: Bools) -> dict[int, LogLikelihoodResult]:
    """Picks [K] summed into one result for each request that owns some."""
    n = len(truncated)
    total = np.bincount(owner, weights=logprob, minlength=n)
    tokens = np.bincount(owner, minlength=n)
    missed = np.bincount(owner[~greedy], minlength=n)
    scored: list[int] = np.flatnonzero(tokens).tolist()
    return {i: LogLikelihoodResult(float(total[i]), int(tokens[i]), bool(missed[i] == 0), truncated[i]) for i in scored}


def by_owner(owner: Ints, logprob: Floats, owners: int) -> list[Floats]:
    """Picks [K] apart by owner, each in the order of its rows."""
    order = np.argsort(owner, kind="stable")
    return np.split(logprob[order], np.cumsum(np.bincount(owner, minlength=owners))[:-1])


def cut(text: str, stop: Iterable[str]) -> str:
    """`text` before the first of the stop strings in it."""
    found = [at for s in stop if s and (at := text.find(s)) >= 0]
    return text[: min(found)] if found else text


def _encode(texts: Sequence[str], encoder: Encoder) -> list[Packed]:
    """Each distinct text is tokenised once: the options of an item share their context."""
    distinct = list(dict.fromkeys(texts))
    known = dict(zip(distinct, map(pack, encoder.encode(distinct)), strict=True)) if distinct else {}
    return [known[text] for text in texts]


def _split(requests: Sequence[LogLikelihood], encoder: Encoder) -> Iterator[tuple[Packed, int]]:
    """(all tokens, index of the first scored one) for each request."""
    contexts = _encode([r.context for r in requests], encoder)
    wholes = _encode([r.context + r.continuation for r in requests], encoder)
    for request, context, whole in zip(requests, contexts, wholes, strict=True):
        border = length(context)
        if not whole.startswith(context):
            border = length(_encode([request.context.rstrip()], encoder)[0])
        if border >= length(whole):  # the tokenizer merged all of the continuation into the context's last token
            whole, border = Packed(context + _encode([request.continuation], encoder)[0]), length(context)
        if border == 0:
            start = pack([] if encoder.start is None else [encoder.start])
            whole, border = Packed(start + whole), 1
        yield whole, border


def _fit(owner: int, tokens: Packed, border: int, max_len: int) -> list[Piece]:
    """Pieces whose inputs fit `max_len`: one, unless the continuation alone is longer than the model."""
    end = length(tokens)
    step = end - border if end - border <= max_len else max(1, max_len // 2)
    made = []
    for first in range(border, end, step):
        last = min(first + step, end)
        made.append(Piece(owner, window(tokens, max(0, last - 1 - max_len), last - 1), window(tokens, first, last)))
    return made


def _prompt(owner: int, request: Generate, tokens: Packed, encoder: Encoder, max_len: int) -> Prompt:
    """Room for the answer first (at most half the model), then as much context as fits on its left.

    So prompts of equal room can be padded to one length and still fit the model when they are answered.
    """
    if not tokens:
        if encoder.start is None:
            raise UserError("an empty context cannot be continued by a tokenizer without a start token", "give the item a context")
        tokens = pack([encoder.start])
    room = min(request.max_tokens, max_len // 2)
    kept = window(tokens, max(0, length(tokens) - (max_len - room)), length(tokens))
    return Prompt(owner, kept, room, request.stop)


def _choices(inputs: Packed, group: list[Piece], ids_at_once: int) -> Iterator[Choice]:
    for first in range(0, len(group), ids_at_once):
        part = group[first : first + ids_at_once]
        yield Choice(inputs, tuple(int(unpack(p.targets)[0]) for p in part), tuple(p.owner for p in part))


def _prefill(tokens: Packed, pieces: list[Piece]) -> Prefill:
    position = [row + 1 for piece in pieces for row in piece.rows]
    owner = [piece.owner for piece in pieces for _ in piece.rows]
    return Prefill(tokens, np.array(position, np.int64), np.array(owner, np.int64))
