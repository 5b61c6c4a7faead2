"""Building a corpus on a local Ray: a pure function of its input, whatever is killed, repeated or damaged on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from losslens.corpus import PackedCorpus, chunks
from losslens.corpus import feed as feeds
from losslens.corpus.feed import direct, windows
from losslens.corpus.pack import build
from losslens.errors import DataMismatch, UserError
from losslens.specs import CorpusSpec, HoldoutSpec, SourceSpec, TokenizerSpec

REAL = Path(__file__).resolve().parents[2].parent / "shared/data/corpus"
pytestmark = pytest.mark.usefixtures("local_ray")


def text_files(folder: Path, count: int, words: int = 400) -> SourceSpec:
    """Parquet and jsonl files of made-up text, the last document of each repeating its first."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        texts = [" ".join(rng.choice(["loss", "tokens", "中文", "step", "😀", "curve"], words)) + f" {i} {k}" for k in range(40)]
        texts.append(texts[0])
        if i % 2:
            pq.write_table(pa.table({"text": texts}), folder / f"{i:03d}.parquet", row_group_size=10)
        else:
            (folder / f"{i:03d}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return SourceSpec(name="words", path=str(folder))


def spec_of(*sources: SourceSpec, tokenizer: TokenizerSpec | None = None, seq_len: int = 64) -> CorpusSpec:
    return CorpusSpec(sources=sources, tokenizer=tokenizer or TokenizerSpec(), seq_len=seq_len, holdout=HoldoutSpec(fraction=0.1, rows=8))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def mixed(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> PackedCorpus:
    folder = tmp_path_factory.mktemp("mixed")
    spec = spec_of(
        text_files(folder / "in", 6),
        SourceSpec(generated="copy", weight=0.5),
        SourceSpec(generated="recall", weight=0.5),
        tokenizer=TokenizerSpec(vocab_size=257),
    )
    return build(spec, seed=0, rows=1000, root=folder / "out")


def test_what_is_in_a_corpus(mixed: PackedCorpus) -> None:
    mixed.verify()
    words, copy, recall = mixed.manifest.sources
    assert (words.duplicates, words.documents + words.heldout_documents) == (6, 240)
    assert copy.rows == recall.rows == 250
    assert [source.heldout_rows for source in mixed.manifest.sources] == [8, 8, 8]
    assert words.tokens == words.bytes + words.documents
    assert sum(shard.rows for shard in words.shards) == words.rows
    tokens, lengths = mixed.heldout("words")
    assert tokens.shape == (8, 65)
    assert lengths.tolist() == [int((row[1:] != mixed.eos).sum()) for row in tokens]
    assert not list(mixed.dir.rglob(".tmp-*"))
    assert not (mixed.dir / ".progress").exists()
    with pytest.raises(UserError, match="no source 'music'"):
        mixed.heldout("music")
    mixed.require(100)
    with pytest.raises(UserError, match="fewer than the 1,000,000 of one global batch"):
        mixed.require(1_000_000)


def test_gather_gives_the_row_that_the_order_names(mixed: PackedCorpus) -> None:
    order = mixed.order(3)
    positions = np.arange(5_000, 5_300)
    source, row = order.locate(positions)
    rows = mixed.gather(order, positions)
    for s, record in enumerate(mixed.manifest.sources):
        every = np.concatenate([np.load(mixed.dir / shard.file.path) for shard in record.shards])
        assert np.array_equal(rows[source == s], every[row[source == s]])


class AtOnce(ThreadPoolExecutor):
    """An executor that has done its work when `submit` returns."""

    def submit(self, work: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*arguments, **named))
        return done


@pytest.mark.parametrize(("world", "unit", "cursor"), [(1, 1, 0), (2, 3, 77), (3, 2, 77), (4, 2, 0)])
def test_the_two_feeds_are_equal(mixed: PackedCorpus, world: int, unit: int, cursor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "ThreadPoolExecutor", AtOnce)  # all but the first steps come through Ray Data
    monkeypatch.setattr(feeds, "MOST_STEPS", 7)
    monkeypatch.setattr(feeds, "_DIRECT_STEPS", 2)
    batch, steps = 7, 20
    by_rank = []
    for rank in range(world):
        share: dict[str, int] = {"cursor": cursor, "steps": steps, "global_batch": batch, "rank": rank, "world": world, "unit": unit}
        read = [np.stack(list(feed(mixed.dir, 1, **share))) for feed in (windows, direct)]
        assert np.array_equal(read[0], read[1])
        assert read[0].dtype == np.int64
        by_rank.append(read[0])
    everything = mixed.gather(mixed.order(1), np.arange(cursor, cursor + steps * batch)).reshape(steps, batch, -1)
    assert np.array_equal(np.concatenate(by_rank, axis=1), everything)


def test_a_feed_needs_no_free_cpu_and_may_be_left_early(mixed: PackedCorpus) -> None:
    @ray.remote(num_cpus=2)
    def everything_taken(directory: Path) -> int:
        feed = windows(directory, 1, cursor=0, steps=500, global_batch=8, rank=0, world=1)
        return sum(next(feed).shape[0] for _ in range(3))

    assert ray.get(everything_taken.remote(mixed.dir), timeout=60) == 24


def test_building_again_does_nothing_and_elsewhere_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 200_000)
    source = text_files(tmp_path / "in", 6)
    spec = spec_of(source, tokenizer=TokenizerSpec(kind="bpe", vocab_size=280))
    stages: list[tuple[str, float]] = []
    first = build(spec, seed=0, rows=100, root=tmp_path / "a", progress=lambda stage, fraction: stages.append((stage, fraction)))
    assert len(first.manifest.sources[0].shards) > 2
    assert {stage for stage, fraction in stages if fraction == 1.0} == {"read", "tokenizer", "pack"}
    before = {path: path.stat().st_mtime_ns for path in first.dir.rglob("*")}
    assert build(spec, seed=5, rows=900, root=tmp_path / "a").dir == first.dir
    assert {path: path.stat().st_mtime_ns for path in first.dir.rglob("*")} == before
    second = build(spec, seed=0, rows=100, root=tmp_path / "b")
    assert contents(second.dir) == contents(first.dir)
    shorter = msgspec.structs.replace(spec, seq_len=32)
    assert build(shorter, seed=0, rows=100, root=tmp_path / "a").fingerprint != first.fingerprint


DRIVER = """
import sys, ray
from pathlib import Path
from losslens.corpus import chunks
from losslens.corpus.pack import build
from losslens.specs import CorpusSpec, HoldoutSpec, SourceSpec, TokenizerSpec
ray.init(address=sys.argv[1], configure_logging=False, log_to_driver=False)
chunks.CHUNK_BYTES = 50_000
spec = CorpusSpec(sources=(SourceSpec(name="words", path=sys.argv[2]),), tokenizer=TokenizerSpec(kind="bpe", vocab_size=280), seq_len=64,
                  holdout=HoldoutSpec(fraction=0.1, rows=8))
build(spec, seed=0, rows=10, root=Path(sys.argv[3]), progress=lambda *at: print(*at, flush=True))
"""


def test_a_killed_build_resumes_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 50_000)
    source = text_files(tmp_path / "in", 24, words=800)
    arguments = [ray.get_runtime_context().gcs_address, str(source.path), str(tmp_path / "killed")]
    command = [sys.executable, "-c", DRIVER, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as driver:
        assert driver.stdout is not None
        assert any(line.startswith("pack") for line in driver.stdout), "the build ended before it packed anything"
        driver.send_signal(signal.SIGKILL)
    assert driver.returncode == -signal.SIGKILL
    (unfinished,) = (tmp_path / "killed").iterdir()
    assert not (unfinished / "manifest.json").exists()
    with pytest.raises(UserError, match="holds no finished corpus"):
        PackedCorpus.open(unfinished)
    time.sleep(1)  # Ray takes a moment to end the killed driver's workers
    packed = {path: path.stat().st_mtime_ns for path in (unfinished / "words").glob("train-*.npy")}
    assert packed
    spec = spec_of(source, tokenizer=TokenizerSpec(kind="bpe", vocab_size=280))
    resumed = build(spec, seed=0, rows=10, root=tmp_path / "killed")
    kept = [path for path, written in packed.items() if path.stat().st_mtime_ns == written]
    assert kept, "no shard survived the kill"
    undisturbed = build(spec, seed=0, rows=10, root=tmp_path / "undisturbed")
    assert contents(resumed.dir) == contents(undisturbed.dir)


def test_two_builders_at_once_make_one_corpus(tmp_path: Path) -> None:
    spec = spec_of(text_files(tmp_path / "in", 3))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: build(spec, seed=0, rows=10, root=tmp_path / "out"), range(2))
    assert first.dir == second.dir
    first.verify()


def test_damage_to_a_finished_corpus_is_found(tmp_path: Path) -> None:
    spec = spec_of(text_files(tmp_path / "in", 2))
    corpus = build(spec, seed=0, rows=10, root=tmp_path / "out")
    shard = corpus.dir / corpus.manifest.sources[0].shards[0].file.path
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataMismatch, match=r"train-00000\.npy has other content"):
        PackedCorpus.open(corpus.dir).verify()
    shard.write_bytes(content[:-1])
    with pytest.raises(DataMismatch, match=r"train-00000\.npy has .* bytes instead of"):
        build(spec, seed=0, rows=10, root=tmp_path / "out")
    shard.unlink()
    with pytest.raises(DataMismatch, match="is missing"):
        PackedCorpus.open(corpus.dir)
    (corpus.dir / "manifest.json").write_text('{"format": 1')
    with pytest.raises(DataMismatch, match=r"manifest\.json is damaged"):
        PackedCorpus.open(corpus.dir)


def test_input_that_makes_no_corpus(tmp_path: Path) -> None:
    def refused(source: SourceSpec, holdout: float = 0.1) -> UserError:
        spec = CorpusSpec(sources=(source,), seq_len=64, holdout=HoldoutSpec(fraction=holdout, rows=8))
        with pytest.raises(UserError) as caught:
            build(spec, seed=0, rows=10, root=tmp_path / "out")
        assert caught.value.remedy
        return caught.value

    (tmp_path / "empty.jsonl").write_text("")
    assert "the source empty is empty" in str(refused(SourceSpec(path=str(tmp_path / "empty.jsonl"))))
    (tmp_path / "blank.jsonl").write_text('{"text": "  "}\n')
    assert "the source blank is empty" in str(refused(SourceSpec(path=str(tmp_path / "blank.jsonl"))))
    (tmp_path / "tiny.jsonl").write_text('{"text": "a few words"}\n')
    assert "too small to fill one row" in str(refused(SourceSpec(path=str(tmp_path / "tiny.jsonl")), holdout=0.0))
    words = text_files(tmp_path / "words", 1)
    assert "hold-out of the source words fills not one row" in str(refused(words, holdout=0.0))
    assert "too small" in str(refused(words, holdout=1.0))
    broken = tmp_path / "words" / "broken.jsonl"
    broken.write_text('{"text": "fine"}\n{"text": \n')
    assert "broken.jsonl, line 2, is not a JSON object" in str(refused(words))


@pytest.mark.skipif(not REAL.is_dir(), reason="no real corpus beside the checkout (../shared/data/corpus)")
def test_real_english_and_chinese(tmp_path: Path) -> None:
    spec = CorpusSpec(
        sources=(
            SourceSpec(name="en", path=str(REAL / "en-peps-*.parquet"), where={"lang": "en"}, weight=4),
            SourceSpec(name="zh", path=str(REAL / "zh-laws-000-*.parquet"), where={"lang": "zh"}, weight=1),
        ),
        tokenizer=TokenizerSpec(kind="bpe", vocab_size=2048, training_bytes=2_000_000),
        seq_len=256,
        holdout=HoldoutSpec(fraction=0.05, rows=16),
    )
    corpus = build(spec, seed=0, rows=1000, root=tmp_path)
    english, chinese = corpus.manifest.sources
    assert (english.documents + english.heldout_documents + english.duplicates) == 751
    assert (chinese.documents + chinese.heldout_documents + chinese.duplicates) == 781
    assert english.heldout_rows == chinese.heldout_rows == 16
    assert 2.5 < english.bytes / english.tokens < 5
    assert 1.5 < chinese.bytes / chinese.tokens < 5
    source, _ = corpus.order(0).locate(np.arange(1000))
    assert np.bincount(source).tolist() == [800, 200]
