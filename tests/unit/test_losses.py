"""Held-out losses with an engine made of hashes: which tokens are scored after what, and which bytes are counted."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval_service import losses
from eval_service.backlog import pending
from eval_service.checkpoints import Checkpoint
from eval_service.encoder import HubEncoder, encoder_of
from eval_service.fake import FakeEngine, fake_logprob
from eval_service.loss_corpus import LossCorpus, PackedRows, loss_corpora, made_by, packed_rows, require_one_meaning, texts, unpacked
from eval_service.losses import Tally, document_windows, measure, stored_methods, tallied, windows
from eval_service.planner import Floats
from eval_service.questions import Asked
from losslens.corpus.tokenizer import make
from losslens.corpus.unigram import unigram_nats
from losslens.errors import DataMismatch, EnvironmentFailure, UserError
from losslens.results import Results
from losslens.specs import TokenizerSpec
from tests.held_out import BYTES, CHINESE, DOCUMENTS, ENGLISH, byte_level, packed, sentencepiece_like

WINDOW = 24


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HubEncoder]:
    folder = tmp_path_factory.mktemp("tokenizers")
    made = {
        "byte_level": byte_level(folder / "byte_level"),
        "sentencepiece": sentencepiece_like(folder / "sentencepiece"),
        "no_start": sentencepiece_like(folder / "no_start", start=False),
    }
    (folder / "byte_level_no_start").mkdir()
    for file in made["byte_level"].iterdir():
        text = file.read_text(encoding="utf-8")
        kept = {k: v for k, v in json.loads(text).items() if not k.endswith("os_token")} if file.name == "tokenizer_config.json" else None
        (folder / "byte_level_no_start" / file.name).write_text(json.dumps(kept) if kept else text, encoding="utf-8")
    return {name: encoder_of(folder / name) for name in (*made, "byte_level_no_start")}


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    fake = FakeEngine(max_len=WINDOW)
    fake.load(tmp_path)
    return fake


def raw(folder: Path, documents: Sequence[str] = DOCUMENTS, stride: int | None = None) -> LossCorpus:
    file = folder / "corpus.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    (corpus,) = loss_corpora([str(file)], stride)
    return corpus


def row(rows: Sequence[dict[str, Any]], dataset: str, unit: str = "nats/token") -> dict[str, Any]:
    (found,) = [row for row in rows if (row["dataset"], row["unit"]) == (dataset, unit)]
    return found


@given(st.integers(0, 90), st.integers(1, 5), st.integers(1, 20), st.data())
def test_every_token_is_scored_once_with_its_context(length: int, given: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    made = list(windows(np.arange(length), given, 7, window, stride))
    assert [int(i) for w in made for i in w.ids[w.first :]] == list(range(given, length))
    for one in made:
        assert 1 <= one.first < len(one.ids) <= window + 1
        assert one.first >= min(int(one.ids[one.first]), window - stride)  # of context
    assert [w.bytes for w in made] == [None] * (len(made) - 1) + [7] * bool(made)


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece"])
@pytest.mark.parametrize("stride", [1, 5, None])
def test_bytes_are_those_of_the_text(
    tmp_path: Path, encoders: dict[str, HubEncoder], engine: FakeEngine, name: str, stride: int | None
) -> None:
    rows = measure(engine, encoders[name], raw(tmp_path, stride=stride), None)
    found = row(rows, "corpus")
    assert found["bytes"] == BYTES
    assert found["tokens"] == sum(map(len, encoders[name].literally(DOCUMENTS)))
    assert row(rows, "corpus", "bits/byte")["value"] == pytest.approx(found["value"] * found["tokens"] / BYTES / math.log(2))


@pytest.mark.parametrize("name", ["no_start", "byte_level_no_start"])
def test_without_a_start_token_the_first_character_is_given(encoders: dict[str, HubEncoder], name: str) -> None:
    encoder = encoders[name]
    assert encoder.start is None
    for text in DOCUMENTS:
        made = list(document_windows([text], encoder, WINDOW, 5))
        scored = [int(i) for w in made for i in w.ids[w.first :]]
        ids = encoder.literally([text])[0]
        assert ids[len(ids) - len(scored) :] == scored
        given = encoder.decode(ids[: len(ids) - len(scored)])
        assert text.startswith(given)
        if made:
            assert made[-1].bytes == len(text.encode()) - len(given.encode())
            assert len(encoder.decode(ids[: len(ids) - len(scored)])) <= len(encoder.decode(ids[:1])) + 1


def test_a_tokenizer_that_gives_no_text_back_and_starts_nowhere_is_refused() -> None:
    class Deaf:
        start = None

        def literally(self, texts: Sequence[str]) -> list[list[int]]:
            return [[1, 2, 3] for _ in texts]

        def decode(self, ids: Sequence[int]) -> str:
            return "?" * len(ids)

    with pytest.raises(UserError, match="does not give text back"):
        list(document_windows(["text"], Deaf(), 8, 4))


def test_values_are_sums_over_windows(tmp_path: Path, encoders: dict[str, HubEncoder], engine: FakeEngine) -> None:
    """A short document: each token after all before it. A long one: after what its window holds."""
    encoder, seed = encoders["byte_level"], engine._seed
    short = np.array([encoder.start, *encoder.literally([ENGLISH])[0]])[: WINDOW + 1]
    text = encoder.decode(short[1:].tolist())
    expected = -sum(fake_logprob(seed, short[:i], int(short[i]))[0] for i in range(1, len(short)))
    assert row(measure(engine, encoder, raw(tmp_path, [text]), None), "corpus")["value"] == pytest.approx(expected / (len(short) - 1))
    whole = np.array([encoder.start, *encoder.literally([CHINESE * 3])[0]])
    expected, stride = 0.0, 7
    for i in range(1, len(whole)):
        begin = 0 if i <= WINDOW else (i - WINDOW - 1) // stride * stride + stride
        expected -= fake_logprob(seed, whole[begin:i], int(whole[i]))[0]
    found = row(measure(engine, encoder, raw(tmp_path, [CHINESE * 3], stride), None), "corpus")
    assert (found["value"], found["tokens"], found["stderr"]) == (pytest.approx(expected / (len(whole) - 1)), len(whole) - 1, None)


def test_standard_errors_are_over_documents() -> None:
    draw = np.random.default_rng(0)
    tokens, size = draw.integers(1, 90, 200), draw.integers(1, 300, 200)
    nats = tokens * draw.normal(3, 0.3, 200)
    tally = Tally()
    other = Tally()
    for i in range(200):
        (tally if i < 120 else other).add(float(nats[i]), int(tokens[i]), int(size[i]))
    tally.join(other)
    for over, found, scale in ((tokens, tally.per_token, 1), (size, tally.per_byte, math.log(2))):
        value = nats.sum() / over.sum()
        stderr = math.sqrt(((nats - value * over) ** 2).sum() * 200 / 199) / over.sum()
        assert list(found) == pytest.approx([value / scale, stderr / scale])
    equal = Tally()  # documents of one length: the standard error of a mean
    for value in nats:
        equal.add(float(value), 8, 8)
    assert equal.per_token[1] == pytest.approx(nats.std(ddof=1) / math.sqrt(200) / 8)


class _Watched(FakeEngine):
    """Remembers how much it was handed at a time."""

    def __init__(self) -> None:
        super().__init__(max_len=WINDOW)
        self.handed: list[int] = []

    def logprobs(self, sequences: Sequence[Any], first: Sequence[int]) -> list[Floats]:
        self.handed.append(sum(map(len, sequences)))
        return super().logprobs(sequences, first)


def test_a_stream_without_end_needs_no_memory(tmp_path: Path, encoders: dict[str, HubEncoder], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "TOKENS_AT_ONCE", 100)
    monkeypatch.setattr(losses, "_CHARS_AT_ONCE", 200)
    engine = _Watched()
    engine.load(tmp_path)
    read = 0

    def stream() -> Iterator[str]:
        nonlocal read
        for text in [ENGLISH, CHINESE * 5, "x"] * 30:
            assert read <= sum(engine.handed) / WINDOW + 20, "read ahead of what was scored"
            read += 1
            yield text

    tally = tallied(engine, document_windows(stream(), encoders["byte_level"], WINDOW, 6), None)
    assert max(engine.handed) <= 100 + WINDOW + 1
    assert tally.documents == 90
    once = raw(tmp_path, [ENGLISH, CHINESE * 5, "x"] * 30, 6)
    monkeypatch.undo()
    assert row(measure(engine, encoders["byte_level"], once, None), "corpus")["value"] == pytest.approx(tally.per_token[0], abs=1e-12)


def test_every_kind_of_file_and_a_folder_of_sources(tmp_path: Path, encoders: dict[str, HubEncoder], engine: FakeEngine) -> None:
    found = {}
    whole = tmp_path / "whole"
    (whole / "en").mkdir(parents=True)
    (whole / "zh").mkdir()
    for folder in (tmp_path, whole / "en"):
        (folder / "c.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": ENGLISH, "id": 3}).encode() + b"\n"))
        (folder / "c.txt").write_text(ENGLISH, encoding="utf-8")
    pq.write_table(pa.table({"text": [ENGLISH, None], "id": [1, 2]}), tmp_path / "c.parquet")
    for suffix in ("jsonl.gz", "txt", "parquet"):
        (corpus,) = loss_corpora([f"x={tmp_path}/c.{suffix}"], None)
        found[suffix] = measure(engine, encoders["byte_level"], corpus, None)
        assert row(found[suffix], "x", "bits/byte")["bytes"] == len(ENGLISH.encode())
    assert row(found["jsonl.gz"], "x")["value"] == row(found["txt"], "x")["value"] == row(found["parquet"], "x")["value"]
    (whole / "zh" / "c.txt").write_text(CHINESE, encoding="utf-8")
    (corpus,) = loss_corpora([str(whole)], None)
    rows = measure(engine, encoders["byte_level"], corpus, None)
    assert [r["dataset"] for r in rows] == [name for name in ("whole/en", "whole/zh", "whole") for _ in range(3)]
    parts = [row(rows, f"whole/{name}") for name in ("en", "zh")]
    assert row(rows, "whole")["tokens"] == sum(part["tokens"] for part in parts)
    pooled = sum(part["value"] * part["tokens"] for part in parts) / row(rows, "whole")["tokens"]
    assert row(rows, "whole")["value"] == pytest.approx(pooled)
    assert {r["method"] for r in rows} == {corpus.by_documents}


def test_what_makes_an_axis(tmp_path: Path) -> None:
    first = raw(tmp_path)
    (tmp_path / "moved").mkdir()
    assert raw(tmp_path / "moved").methods == first.methods
    assert raw(tmp_path, stride=8).methods != first.methods != raw(tmp_path, [ENGLISH]).methods
    require_one_meaning(first, [*first.methods])
    for method in (None, "documents 0123456789abcdef, stride of half a window"):
        with pytest.raises(UserError, match="measured on something else") as refused:
            require_one_meaning(first, [*first.methods, method])
        assert "--loss NAME=PATH" in refused.value.remedy


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["x=nowhere.jsonl"], "there is no held-out corpus nowhere.jsonl"),
        (["train={}/c.txt"], "'train' cannot be the name"),
        (["a/b={}/c.txt"], "'a/b' cannot be the name"),
        (["={}/c.txt"], "'' cannot be the name"),
        (["{}/c.txt", "c={}/c.txt"], "two held-out corpora are called 'c'"),
        (["{}/c.csv"], "is of no format that can be read"),
        (["{}"], None),
    ],
)
def test_what_cannot_be_a_corpus(tmp_path: Path, given: list[str], complaint: str | None) -> None:
    for name in ("c.txt", "c.csv"):
        (tmp_path / name).write_text("text", encoding="utf-8")
    asked = [one.format(tmp_path) for one in given]
    if complaint is None:
        assert loss_corpora(asked, None)[0].name == tmp_path.name
        return
    with pytest.raises(UserError) as refused:
        loss_corpora(asked, None)
    assert complaint in str(refused.value)
    assert refused.value.remedy


def test_what_cannot_be_measured(tmp_path: Path, encoders: dict[str, HubEncoder], engine: FakeEngine) -> None:
    encoder = encoders["byte_level"]
    with pytest.raises(UserError, match="a stride of 0"):
        loss_corpora([], 0)
    with pytest.raises(UserError, match="has nothing to score"):
        measure(engine, encoder, raw(tmp_path, ["", ""]), None)
    with pytest.raises(UserError, match=f"a stride of {WINDOW + 1} tokens is longer than the model's window"):
        measure(engine, encoder, raw(tmp_path, stride=WINDOW + 1), None)
    with pytest.raises(UserError, match="but the model knows 9 tokens"):
        measure(engine, encoder, raw(tmp_path), 9)
    (tmp_path / "corpus.jsonl").write_text('{"body": "x"}\n', encoding="utf-8")
    (corpus,) = loss_corpora([str(tmp_path / "corpus.jsonl")], None)
    with pytest.raises(UserError, match="has no column 'text'"):
        list(next(texts(corpus)).documents)


def test_numbers_that_are_none_are_refused(tmp_path: Path, encoders: dict[str, HubEncoder], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(max_len=WINDOW)
    engine.load(tmp_path)
    monkeypatch.setattr(engine, "logprobs", lambda sequences, first: [np.array([np.nan]) for _ in sequences])
    with pytest.raises(EnvironmentFailure, match="not finite"):
        measure(engine, encoders["byte_level"], raw(tmp_path), None)


def corpus_of(directory: Path, tokenizer: Path, sources: dict[str, Sequence[str]], seq_len: int = 32) -> LossCorpus:
    packed(directory, tokenizer, sources, seq_len)
    (corpus,) = loss_corpora([f"heldout={directory}"], None)
    return corpus


SOURCES: dict[str, Sequence[str]] = {"en": [ENGLISH * 3, ENGLISH], "zh": [CHINESE * 4, "", CHINESE]}


def test_a_packed_corpus_is_measured_by_rows_with_its_own_tokenizer(
    tmp_path: Path, encoders: dict[str, HubEncoder], engine: FakeEngine
) -> None:
    corpus = corpus_of(tmp_path / "packed", byte_level(tmp_path / "own"), SOURCES)
    assert made_by(corpus, encoders["byte_level"])
    assert not made_by(corpus, encoders["sentencepiece"])
    rows = measure(engine, encoders["byte_level"], corpus, None)
    assert {r["method"] for r in rows} == {corpus.by_rows}
    held = {source.name: source for source in packed_rows(corpus)}
    for name, source in held.items():
        found = row(rows, f"heldout/{name}")
        assert (found["tokens"], found["bytes"]) == (source.tokens[:, 1:].size, source.bytes.sum())
    mixed = (row(rows, "heldout/en")["value"] + 2 * row(rows, "heldout/zh")["value"]) / 3
    assert row(rows, "heldout")["value"] == pytest.approx(mixed)


def test_another_tokenizer_gets_the_text_of_a_packed_corpus(tmp_path: Path, encoders: dict[str, HubEncoder], engine: FakeEngine) -> None:
    corpus = corpus_of(tmp_path / "packed", byte_level(tmp_path / "own"), SOURCES)
    back = {source.name: unpacked(corpus, source) for source in packed_rows(corpus)}
    for name, packed_texts in SOURCES.items():
        documents = list(back[name].documents)
        whole = [text for text in packed_texts if text]
        assert documents[:-1] == whole[: len(documents) - 1]
        assert whole[len(documents) - 1].startswith(documents[-1])  # cut where the hold-out ends, at a character
    rows = measure(engine, encoders["sentencepiece"], corpus, None)
    assert {r["method"] for r in rows} == {corpus.by_documents}
    assert row(rows, "heldout/zh")["bytes"] == sum(len(text.encode()) for text in back["zh"].documents)


def test_a_corpus_that_has_lost_characters_or_files_is_refused(tmp_path: Path, encoders: dict[str, HubEncoder]) -> None:
    make(TokenizerSpec(kind="byte", vocab_size=128), (), tmp_path / "ascii")
    corpus = corpus_of(tmp_path / "packed", tmp_path / "ascii", {"zh": [CHINESE * 3]})
    with pytest.raises(UserError, match="has lost characters"):
        unpacked(corpus, packed_rows(corpus)[0])
    (tmp_path / "packed" / "zh" / "heldout.npy").unlink()
    with pytest.raises(DataMismatch, match="is missing"):
        loss_corpora([str(tmp_path / "packed")], None)


def test_rows_that_are_streams_of_their_own_are_told_apart(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "packed", byte_level(tmp_path / "own"), {"en": [ENGLISH * 3]}, seq_len=12)
    (rows,) = packed_rows(corpus)
    shuffled = PackedRows(rows.name, rows.weight, rows.tokens[::-1], rows.bytes[::-1])
    assert "".join(unpacked(corpus, rows).documents) in ENGLISH * 3
    assert len(list(unpacked(corpus, shuffled).documents)) >= len(rows.tokens)


def test_what_a_checkpoint_lacks(tmp_path: Path) -> None:
    corpus = raw(tmp_path)
    checkpoints = [Checkpoint("a", "a"), Checkpoint("b", "b")]
    asked = Asked("t", "text")
    assert pending(checkpoints, {("a", asked, 1)}, {asked: 1}, {("b", "corpus")}, [corpus])[0].losses == (corpus,)
    assert [(a.checkpoint.checkpoint_id, a.tasks, a.losses) for a in pending(checkpoints, set(), {}, {("b", "corpus")}, [corpus])] == [
        ("a", (), (corpus,))
    ]
    assert pending(checkpoints, set(), {}, {("a", "corpus"), ("b", "corpus")}, [corpus]) == []


def test_methods_of_what_is_stored(tmp_path: Path) -> None:
    assert stored_methods(tmp_path) == {}
    results = Results(tmp_path)
    results.write("runs", [{"run_id": "r", "source": "losslens", "corpus": "abc"}, {"run_id": "s", "source": "evaluate", "corpus": None}])
    results.write("checkpoints", [{"checkpoint_id": "r/1", "run_id": "r"}, {"checkpoint_id": "s/1", "run_id": "s"}])
    one: dict[str, Any] = {"dataset": "heldout", "unit": "nats/token", "value": 1.0}
    results.write("losses", [one | {"checkpoint_id": "r/1"}, one | {"checkpoint_id": "s/1"}, one | {"checkpoint_id": "t", "method": "m"}])
    assert stored_methods(tmp_path) == {"heldout": {"r/1": "rows abc", "s/1": None, "t": "m"}}


def test_loss_against_the_unigram_model(tmp_path: Path, encoders: dict[str, HubEncoder], engine: FakeEngine) -> None:
    """Of the tokens that are scored, whatever windows they are scored in, start tokens left out; source by source."""
    whole = tmp_path / "whole"
    for name, text in (("en", ENGLISH * 9), ("zh", CHINESE * 9)):
        (whole / name).mkdir(parents=True)
        (whole / name / "c.jsonl").write_text("".join(json.dumps({"text": text[:n]}) + "\n" for n in (40, 200)), encoding="utf-8")
    for encoder in (encoders["byte_level"], encoders["sentencepiece"]):
        (corpus,) = loss_corpora([str(whole)], 5)
        rows = measure(engine, encoder, corpus, 900)
        pooled = np.zeros(900, np.int64)
        for name, text in (("en", ENGLISH * 9), ("zh", CHINESE * 9)):
            ids = np.concatenate([encoder.literally([text[:n]])[0] for n in (40, 200)])
            counts = np.bincount(ids, minlength=900)
            pooled += counts
            plain, against = (row(rows, f"whole/{name}", unit) for unit in ("nats/token", "nats/token_vs_unigram"))
            assert against["value"] == pytest.approx(plain["value"] - unigram_nats(counts, 900))
            assert (against["tokens"], against["bytes"], against["stderr"]) == (plain["tokens"], plain["bytes"], plain["stderr"])
        plain, against = (row(rows, "whole", unit) for unit in ("nats/token", "nats/token_vs_unigram"))
        assert against["value"] == pytest.approx(plain["value"] - unigram_nats(pooled, 900))


def test_bytes_of_special_words_spaces_and_characters(tmp_path: Path, encoders: dict[str, HubEncoder], engine: FakeEngine) -> None:
    """Leading and double spaces, an emoji of several code points, a combining accent, and words that spell special tokens."""
    texts = ["  two leading, two  inside ", "\n\ttabs\n\n", "e\u0301 👩🏽‍🚀 ﬁ", "<s> </s> <|endoftext|> <unk>", "中文 and English混排"]
    for name in ("byte_level", "sentencepiece"):
        rows = measure(engine, encoders[name], raw(tmp_path, texts, 3), None)
        assert row(rows, "corpus", "bits/byte")["bytes"] == sum(len(text.encode()) for text in texts)
        assert row(rows, "corpus")["tokens"] == sum(map(len, encoders[name].literally(texts)))
