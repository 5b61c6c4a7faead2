"""A fake engine that ships beside the protocol it fakes: a language model made of hashes.

Its log-probabilities depend on the whole prefix and on the checkpoint, as a model's do, and it computes them from the same
plans as the real engines; so it proves planning, storing and pooling without any weights. Tokens are UTF-8 bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from eval_service.forest import Batch, Grove, forest
from eval_service.planner import Floats, Ints, Plan, Prompt, assemble, cut, plan
from losslens.errors import UserError
from losslens.tasks.requests import GenerateResult, Request, Result

_LETTERS = b"abcdefgh .\n"


class ByteEncoder:
    """UTF-8 bytes; 0 begins a text."""

    start: int | None = 0

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The bytes of each text."""
        return [list(text.encode()) for text in texts]

    def __hash__(self) -> int:
        return hash("bytes")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByteEncoder)


def fake_logprob(seed: int, prefix: Ints, target: int) -> tuple[float, bool]:
    """Log-probability of `target` after the tokens `prefix`, and whether it is the likeliest (one in four is)."""
    code = zlib.crc32(prefix.astype(">u4").tobytes() + target.to_bytes(4, "big"), seed)
    return -(code % 4096) / 1024 - 1e-3, code % 4 == 0


class FakeEngine:
    """Deterministic results from (checkpoint's name, tokens)."""

    name = "fake"
    encoder = ByteEncoder()

    def __init__(self, max_len: int = 256, batch_tokens: int = 2048) -> None:
        self._seed, self._max_len = 0, max_len
        self._plan = lru_cache(lambda requests: _planned(requests, max_len, batch_tokens))

    def load(self, checkpoint: Path) -> None:
        """Any existing directory is a checkpoint; its name is its weights."""
        if not checkpoint.is_dir():
            raise UserError(f"{checkpoint} is not a directory", "give a checkpoint directory")
        self._seed = zlib.crc32(checkpoint.name.encode())

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in order."""
        made, groves = self._plan(tuple(requests))
        results: dict[int, Result] = {p.owner: GenerateResult(self._text(p), made.truncated[p.owner]) for p in made.prompts}
        found = [pick for grove in groves for batch in batches_of(grove) for pick in self._score(grove, batch)]
        owner, logprob, greedy = zip(*found, strict=True) if found else ((), (), ())
        results.update(assemble(made.truncated, np.array(owner, np.int64), np.array(logprob, np.float64), np.array(greedy, np.bool_)))
        return [results[i] for i in range(len(requests))]

    @property
    def window(self) -> int:
        """Input tokens at most."""
        return self._max_len

    def logprobs(self, sequences: Sequence[Sequence[int] | Ints], first: Sequence[int]) -> list[Floats]:
        """See `Engine.logprobs`."""
        return [
            np.array([fake_logprob(self._seed, np.array(s[:at]), int(s[at]))[0] for at in range(begin, len(s))])
            for s, begin in zip(sequences, first, strict=True)
        ]

    def close(self) -> None:
        """Nothing to free."""

    def _score(self, grove: Grove, batch: Batch) -> Iterator[tuple[int, float, bool]]:
        for at, target, owner in zip(batch.rows[batch.row], batch.target, batch.owner, strict=True):
            yield int(owner), *fake_logprob(self._seed, path(grove, batch, int(at)), int(target))

    def _text(self, prompt: Prompt) -> str:
        return cut("".join(self._letters(prompt)), prompt.stop)

    def _letters(self, prompt: Prompt) -> Iterator[str]:
        code = zlib.crc32(prompt.tokens, self._seed)
        for _ in range(prompt.room):
            code = zlib.crc32(b"next", code)
            yield chr(_LETTERS[code % len(_LETTERS)])


def batches_of(grove: Grove) -> Iterator[Batch]:
    """Stems first."""
    yield from () if grove.stems is None else (grove.stems,)
    yield from grove.batches


def path(grove: Grove, batch: Batch, at: int) -> Ints:
    """All tokens that the token at flat index `at` sees, itself last: what the rules of `forest.Batch` say."""
    b, i = divmod(at, batch.tokens.shape[1])
    seen: Ints = batch.tokens[b].astype(np.int64)[(np.arange(batch.tokens.shape[1]) <= i) & (i < batch.end[b])]
    if not len(batch.stem):
        return seen
    assert grove.stems is not None
    stem = batch.stem[b]
    return np.concatenate([grove.stems.tokens[stem, : grove.stem_length[stem]], seen])


def _planned(requests: tuple[Request, ...], max_len: int, batch_tokens: int) -> tuple[Plan, tuple[Grove, ...]]:
    made = plan(requests, ByteEncoder(), max_len)
    return made, forest(made.pieces, batch_tokens)
