"""Held-out loss of a loaded checkpoint on any text: nats/token, bits/byte and nats/token against a unigram model, per source and overall.

Document by document: every token is scored once, given the document's tokens before it. A document longer than the model's
window W is read in windows that move on by `stride`, so that every token has at least W - stride tokens of context where
they exist. Bytes are the UTF-8 bytes of exactly the text that is scored. Documents are streamed and a bounded number of
windows is held, whatever the size of the corpus.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from eval_service.checkpoints import read_config
from eval_service.encoder import HubEncoder, encoder_of
from eval_service.engine import Engine
from eval_service.loss_corpus import LossCorpus, PackedRows, made_by, packed_rows, texts, unpacked
from eval_service.planner import Ints, require_token
from losslens.corpus.unigram import unigram_nats
from losslens.errors import EnvironmentFailure, UserError
from losslens.results import Results

TOKENS_AT_ONCE = 2**19  # of windows that are held and handed to an engine together, to be sorted by length
_CHARS_AT_ONCE = 2**20  # of text that is tokenised together
_GIVEN_AT_MOST = 8  # tokens of a first character, where no start token is there to predict it


class TextEncoder(Protocol):
    """What is needed of a tokenizer; `HubEncoder` is one."""

    @property
    def start(self) -> int | None:
        """The token before a document, or None."""
        ...

    def literally(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, in which no special token is meant."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        ...


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens `ids[first:]` are to be scored. `bytes`: of its whole document, on the document's last window; else None."""

    ids: Ints
    first: int
    bytes: int | None


@dataclass(slots=True)
class Tally:
    """Sums over documents: of nats L, tokens N, bytes B, and of what their standard errors need; how often each token was scored."""

    documents: int = 0
    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0
    squares: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("LL", "LN", "NN", "LB", "BB"), 0.0))
    counts: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def count(self, ids: Ints) -> None:
        """Take in tokens that were scored."""
        self.counts = _added(self.counts, np.bincount(ids))

    def add(self, nats: float, tokens: int, size: int) -> None:
        """Take in one document."""
        self.documents += 1
        self.nats += nats
        self.tokens += tokens
        self.bytes += size
        for name, product in zip(self.squares, (nats**2, nats * tokens, tokens**2, nats * size, size**2), strict=True):
            self.squares[name] += product

    def join(self, other: Tally) -> None:
        """Take in all documents of another."""
        self.documents += other.documents
        self.nats += other.nats
        self.tokens += other.tokens
        self.bytes += other.bytes
        for name, value in other.squares.items():
            self.squares[name] += value
        self.counts = _added(self.counts, other.counts)

    @property
    def per_token(self) -> tuple[float, float | None]:
        """Nats per token and its standard error."""
        return self._ratio(self.tokens, self.squares["LN"], self.squares["NN"])

    @property
    def per_byte(self) -> tuple[float, float | None]:
        """Bits per byte and its standard error."""
        value, stderr = self._ratio(self.bytes, self.squares["LB"], self.squares["BB"])
        return value / math.log(2), None if stderr is None else stderr / math.log(2)

    def _ratio(self, size: int, cross: float, square: float) -> tuple[float, float | None]:
        """r = sum L / sum N over D documents, and sqrt(D / (D - 1) sum (L - r N)^2) / sum N (Cochran, Sampling Techniques, 2.11)."""
        ratio = self.nats / size
        if self.documents < 2:
            return ratio, None
        residual = self.squares["LL"] - 2 * ratio * cross + ratio**2 * square
        return ratio, math.sqrt(max(0.0, residual) * self.documents / (self.documents - 1)) / size


def measure_into(results: Results, checkpoint_id: str, engine: Engine, directory: Path, corpus: LossCorpus) -> list[dict[str, Any]]:
    """Measure the checkpoint that the engine has loaded from `directory`, and store its rows of `losses`; the rows.

    Raises:
        UserError: as `measure`; and where other checkpoints were measured by the other method of the corpus under its name.
    """
    encoder = encoder_of(directory)
    method = method_of(corpus, encoder)
    if others := set(stored_methods(results.root).get(corpus.name, {}).values()) - {method}:
        raise UserError(
            f"{checkpoint_id} would be measured by {method}, and the results hold {corpus.name!r} by {others.pop() or 'an unknown way'}",
            "models with another tokenizer than the corpus's need a name of their own for it: --loss NAME=PATH",
        )
    rows = measure(engine, encoder, corpus, read_config(directory).get("vocab_size"))
    results.write("losses", [{"checkpoint_id": checkpoint_id, **row} for row in rows])
    return rows


def method_of(corpus: LossCorpus, encoder: HubEncoder) -> str:
    """How a model with this tokenizer is measured."""
    return corpus.by_rows if corpus.packed and made_by(corpus, encoder) else corpus.by_documents


def measure(engine: Engine, encoder: HubEncoder, corpus: LossCorpus, vocab_size: int | None) -> list[dict[str, Any]]:
    """Rows of `losses`, without their checkpoint, of the model that the engine holds.

    A packed corpus is measured row by row, as training measures it, where the model has the corpus's own tokenizer;
    otherwise its text is tokenised anew and measured like any other.

    Raises:
        UserError: nothing to score, a stride longer than the model's window, a tokenizer that does not fit model or text.
        EnvironmentFailure: a log-probability that is not finite.
    """
    if corpus.stride is not None and corpus.stride > engine.window:
        raise UserError(f"a stride of {corpus.stride} tokens is longer than the model's window of {engine.window}", "lower --stride")
    stride = corpus.stride or max(1, engine.window // 2)
    method = method_of(corpus, encoder)
    tallies = [
        (name, weight, tallied(engine, found, vocab_size))
        for name, weight, found in _sources(corpus, method == corpus.by_rows, encoder, engine.window, stride)
    ]
    # Rows of a packed corpus are measured as training measures them, in its two units.
    vocabulary = None if method == corpus.by_rows else vocab_size or max(len(tally.counts) for _, _, tally in tallies)
    return [{**row, "method": method} for row in _rows(corpus.name, [tally for tally in tallies if tally[2].tokens], vocabulary)]


def _sources(
    corpus: LossCorpus, by_rows: bool, encoder: TextEncoder, window: int, stride: int
) -> Iterator[tuple[str, float | None, Iterator[Window]]]:
    """Name, weight (None: by its tokens) and windows of every source."""
    if by_rows:
        for rows in packed_rows(corpus):
            yield rows.name, rows.weight, _row_windows(rows, window, stride)
        return
    for source in map(partial(unpacked, corpus), packed_rows(corpus)) if corpus.packed else texts(corpus):
        yield source.name, source.weight, document_windows(source.documents, encoder, window, stride)


def stored_methods(results: Path) -> dict[str, dict[str, str | None]]:
    """Method by checkpoint_id, by dataset, of every loss in the results; that of training's own rows is `rows` of its corpus."""
    if not any((results / "parts" / "losses").glob("*.parquet")):
        return {}
    found: dict[str, dict[str, str | None]] = {}
    for row in Results(results).query(_STORED).to_pylist():
        found.setdefault(row["dataset"], {})[row["checkpoint_id"]] = row["method"]
    return found


_STORED = """
SELECT DISTINCT l.dataset, l.checkpoint_id, coalesce(l.method, CASE WHEN r.source = 'losslens' THEN 'rows ' || r.corpus END) AS method
FROM losses l LEFT JOIN checkpoints c USING (checkpoint_id) LEFT JOIN runs r USING (run_id)
"""


def document_windows(documents: Iterable[str], encoder: TextEncoder, window: int, stride: int) -> Iterator[Window]:
    """Windows over documents, in order."""
    for batch in _batches(documents):
        for text, ids in zip(batch, encoder.literally(batch), strict=True):
            size = len(text.encode())
            if encoder.start is not None:
                yield from windows(np.array([encoder.start, *ids], np.int64), 1, size, window, stride)
            elif ids:
                given, unscored = _given(text, ids, encoder)
                yield from windows(np.array(ids, np.int64), given, size - unscored, window, stride)


def windows(ids: Ints, given: int, size: int, window: int, stride: int) -> Iterator[Window]:
    """Windows over one document that score `ids[given:]` once each; a window reads at most `window` tokens."""
    done, end = given, len(ids)
    while done < end:
        begin = 0 if done == given <= window else done + stride - window - 1
        stop = min(end, begin + window + 1)
        yield Window(ids[begin:stop], done - begin, size if stop == end else None)
        done = stop


def tallied(engine: Engine, found: Iterable[Window], vocab_size: int | None) -> Tally:
    """Score all windows, a bounded number at a time, and sum over documents."""
    tally = Tally()
    nats, tokens = 0.0, 0
    for group in _groups(found):
        _require_known(group, vocab_size)
        tally.count(np.concatenate([window.ids[window.first :] for window in group]))
        for one, logprob in zip(group, engine.logprobs([w.ids for w in group], [w.first for w in group]), strict=True):
            nats -= math.fsum(logprob)
            tokens += len(logprob)
            if one.bytes is not None:
                if not math.isfinite(nats):
                    raise EnvironmentFailure(
                        f"the engine gave a log-probability that is not finite in a document of {tokens} tokens",
                        "check the checkpoint's weights for values that are not finite, or use another engine",
                    )
                tally.add(nats, tokens, one.bytes)
                nats, tokens = 0.0, 0
    return tally


def _rows(name: str, tallies: Sequence[tuple[str, float | None, Tally]], vocabulary: int | None) -> Iterator[dict[str, Any]]:
    """Rows of every source that has a name, and of the whole corpus; with a vocabulary against its unigram model too."""
    if not tallies:
        raise UserError(f"the held-out corpus {name!r} has nothing to score", "give it text: at least one document of two tokens")
    for source, _, tally in tallies:
        if source:
            yield from _units(f"{name}/{source}", *tally.per_token, *_bits(tally), tally)
            yield from _against_unigram(f"{name}/{source}", [(1.0, tally)], vocabulary)
    whole = Tally()
    for _, _, tally in tallies:
        whole.join(tally)
    weights = [weight for _, weight, _ in tallies]
    if any(weight is None for weight in weights):
        yield from _units(name, *whole.per_token, *_bits(whole), whole)
        yield from _against_unigram(name, [(1.0, whole)], vocabulary)
    else:
        weighted = [(weight or 0.0, tally) for _, weight, tally in tallies]
        yield from _units(name, *_mixed(weighted), whole)
        yield from _against_unigram(name, weighted, vocabulary)


def _units(
    dataset: str, nats: float, nats_stderr: float | None, bits: float | None, bits_stderr: float | None, over: Tally
) -> Iterator[dict[str, Any]]:
    sizes = {"tokens": over.tokens, "bytes": over.bytes or None}
    yield {"dataset": dataset, "unit": "nats/token", "value": nats, "stderr": nats_stderr, **sizes}
    if bits is not None:
        yield {"dataset": dataset, "unit": "bits/byte", "value": bits, "stderr": bits_stderr, **sizes}


def _against_unigram(dataset: str, weighted: Sequence[tuple[float, Tally]], vocabulary: int | None) -> Iterator[dict[str, Any]]:
    """Nats a token less those of the unigram model of each source's tokens. The standard error is the loss's: the text is what it is."""
    if vocabulary is None:
        return
    nats, stderr, *_ = _mixed(weighted)
    total = sum(weight for weight, _ in weighted)
    unigram = math.fsum(weight / total * unigram_nats(tally.counts, vocabulary) for weight, tally in weighted)
    sizes = {"tokens": sum(tally.tokens for _, tally in weighted), "bytes": sum(tally.bytes for _, tally in weighted) or None}
    yield {"dataset": dataset, "unit": "nats/token_vs_unigram", "value": nats - unigram, "stderr": stderr, **sizes}


def _added(some: Ints, more: Ints) -> Ints:
    """Counts by token, of whichever length is the longer."""
    long, short = (some, more) if len(some) >= len(more) else (more, some)
    total = long.copy()
    total[: len(short)] += short
    return total


def _bits(tally: Tally) -> tuple[float | None, float | None]:
    return tally.per_byte if tally.bytes else (None, None)


def _mixed(weighted: Sequence[tuple[float, Tally]]) -> tuple[float, float | None, float | None, float | None]:
    """Nats/token and bits/byte, each with its standard error, of sources mixed by weight, as training measures `heldout`."""
    total = sum(weight for weight, _ in weighted)
    shares = [(weight / total, tally) for weight, tally in weighted]
    nats = math.fsum(share * tally.per_token[0] for share, tally in shares)
    errors = [tally.per_token[1] for _, tally in shares]
    stderr = None
    if all(error is not None for error in errors):
        stderr = math.sqrt(math.fsum((share * (error or 0.0)) ** 2 for (share, _), error in zip(shares, errors, strict=True)))
    bytes_per_token = math.fsum(share * tally.bytes / tally.tokens for share, tally in shares)
    if not bytes_per_token:
        return nats, stderr, None, None
    scale = 1 / math.log(2) / bytes_per_token
    return nats, stderr, nats * scale, None if stderr is None else stderr * scale


def _row_windows(rows: PackedRows, window: int, stride: int) -> Iterator[Window]:
    for ids, size in zip(rows.tokens, rows.bytes.tolist(), strict=True):
        yield from windows(ids, 1, size, window, stride)


def _given(text: str, ids: list[int], encoder: TextEncoder) -> tuple[int, int]:
    """(tokens, bytes) that are not scored for want of a token before them: the first token, and those that share a character
    with it.

    Raises:
        UserError: the tokenizer does not give the text back, so that its bytes cannot be told.
    """
    for given in range(1, min(_GIVEN_AT_MOST, len(ids)) + 1):
        begun = encoder.decode(ids[:given])
        if begun and text.startswith(begun):
            return given, len(begun.encode())
    raise UserError(
        "the tokenizer has neither a start nor an end token and does not give text back, so the bytes that are scored cannot be told",
        "add a bos_token or an eos_token to the tokenizer",
    )


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents that are not empty, as many as are tokenised together."""
    batch: list[str] = []
    chars = 0
    for text in documents:
        if text:
            batch.append(text)
            chars += len(text)
        if chars >= _CHARS_AT_ONCE:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _groups(found: Iterable[Window]) -> Iterator[list[Window]]:
    group: list[Window] = []
    tokens = 0
    for window in found:
        group.append(window)
        tokens += len(window.ids)
        if tokens >= TOKENS_AT_ONCE:
            yield group
            group, tokens = [], 0
    if group:
        yield group


def _require_known(group: Sequence[Window], vocab_size: int | None) -> None:
    if vocab_size is not None:
        require_token(max(int(window.ids.max()) for window in group), vocab_size)
