"""Building a packed corpus: Ray Data carries the chunks to workers, this file decides what is left to do and when all is done.

Stages: read (hash every document, find duplicates) -> tokenizer -> pack -> held-out rows -> manifest. Every stage leaves
files that the next start finds; the manifest comes last, so a directory that has one is whole. Ray must be running.
"""

from __future__ import annotations

import fcntl
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray.data
from numpy.typing import NDArray

from losslens.corpus import manifest, shards, tokenizer
from losslens.corpus.chunks import SkillChunk, SourcePlan, plan_sources
from losslens.corpus.feed import quiet
from losslens.corpus.manifest import FileRecord, Manifest, SourceRecord
from losslens.corpus.packed import PackedCorpus
from losslens.corpus.packing import PROGRESS, ChunkRecord, Job, heldout_rows, open_encoder, pack_chunk, scan_chunk, training_texts
from losslens.errors import LosslensError, UserError
from losslens.specs import CorpusSpec

Progress = Callable[[str, float], None]
_SAMPLE_READ = 4  # a BPE's sample is spread over chunks of up to this many times its size


@dataclass(frozen=True)
class _Build:
    """One corpus to be made in `directory`."""

    spec: CorpusSpec
    seed: int
    plans: list[SourcePlan]
    fingerprint: str
    directory: Path
    progress: Progress


def build(
    spec: CorpusSpec, *, seed: int, rows: int, root: Path, progress: Progress | None = None, train_seeds: Mapping[str, int] | None = None
) -> PackedCorpus:
    """The packed corpus of a spec, under `root / fingerprint`; made now unless it is there already.

    `rows` is the most training rows any run consumes in all: generated skills make only what their weight needs of it,
    everything else is packed whole. Training rows of a skill come from the seed in `train_seeds` by its source, if any; held-out ones
    from `seed`. `progress` is told the stage (`read`, `tokenizer`, `pack`) and its fraction done.

    Raises:
        UserError: a source that is missing, damaged or too small. EnvironmentFailure: no room on the disk.
        DataMismatch: a corpus that is there does not match its manifest.
    """
    plans = plan_sources(spec, seed, rows, train_seeds)
    fingerprint = manifest.corpus_fingerprint(spec, plans)
    directory = Path(root).resolve() / fingerprint
    if not (directory / manifest.FILE).is_file():
        with _only_builder(directory):
            if not (directory / manifest.FILE).is_file():  # another process may have built it while this one waited
                _make(_Build(spec, seed, plans, fingerprint, directory, progress or (lambda stage, fraction: None)))
    return PackedCorpus.open(directory)


def _make(build: _Build) -> None:
    shards.remove_unfinished(build.directory)
    jobs = _find_duplicates(build, _jobs(build))
    if not (build.directory / "tokenizer").is_dir():
        _make_tokenizer(build, jobs)
    every = [job for source in jobs for job in source]
    records = dict(_on_ray(pack_chunk, every, lambda fraction: build.progress("pack", fraction)))
    sources = tuple(_finish_source(build, s, jobs[s], [records[job.source, job.number] for job in jobs[s]]) for s in range(len(jobs)))
    encoder = open_encoder(str(build.directory), _byte_vocabulary(build.spec))
    manifest.write(
        Manifest(
            format=manifest.FORMAT,
            fingerprint=build.fingerprint,
            seed=build.seed,
            seq_len=build.spec.seq_len,
            vocab_size=encoder.vocab_size,
            eos=encoder.eos,
            sources=sources,
            tokenizer=tuple(
                FileRecord.of(path, build.directory) for path in sorted((build.directory / "tokenizer").rglob("*")) if path.is_file()
            ),
            spec=build.spec,
        ),
        build.directory,
    )
    shutil.rmtree(build.directory / PROGRESS, ignore_errors=True)


def _jobs(build: _Build) -> list[list[Job]]:
    """The jobs of each source."""
    spec = build.spec
    return [
        [
            Job(
                source=plan.name,
                number=number,
                chunk=chunk,
                directory=str(build.directory),
                seq_len=spec.seq_len,
                byte_vocabulary=_byte_vocabulary(spec),
                heldout_fraction=spec.holdout.fraction if plan.heldout is None else 0.0,
                heldout_rows=spec.holdout.rows,
            )
            for number, chunk in enumerate(plan.chunks)
        ]
        for plan in build.plans
    ]


def _byte_vocabulary(spec: CorpusSpec) -> int | None:
    return spec.tokenizer.vocab_size if spec.tokenizer.kind == "byte" else None


def _find_duplicates(build: _Build, jobs: list[list[Job]]) -> list[list[Job]]:
    """The jobs with the documents counted and every document named that an earlier one of its source repeats."""
    scanned = [job for source in jobs for job in source if not isinstance(job.chunk, SkillChunk)]
    for _ in _on_ray(scan_chunk, scanned, lambda fraction: build.progress("read", fraction)):
        pass
    return [_without_duplicates(plan.name, source) for plan, source in zip(build.plans, jobs, strict=True)]


def _without_duplicates(name: str, jobs: list[Job]) -> list[Job]:
    if any(isinstance(job.chunk, SkillChunk) for job in jobs):
        return jobs
    hashes = [_scanned(job)[:, 0] for job in jobs]
    every = np.concatenate([np.empty(0, np.uint64), *hashes])
    if len(every) == 0:
        raise UserError(f"the source {name} is empty: it has no document with text", "check its path, text_column and where")
    first = np.zeros(len(every), dtype=bool)
    first[np.unique(every, return_index=True)[1]] = True
    ends = np.cumsum([len(part) for part in hashes])
    return [
        replace(job, documents=len(part), duplicates=tuple(np.flatnonzero(~first[end - len(part) : end]).tolist()))
        for job, part, end in zip(jobs, hashes, ends, strict=True)
    ]


def _scanned(job: Job) -> NDArray[np.uint64]:
    found: NDArray[np.uint64] = np.load(job.progress("scan", ".npy"))
    return found


def _make_tokenizer(build: _Build, jobs: list[list[Job]]) -> None:
    build.progress("tokenizer", 0.0)
    temporary = build.directory / f"{shards.TEMPORARY}tokenizer"
    tokenizer.make(build.spec.tokenizer, _sample(build.spec, jobs), temporary)
    temporary.rename(build.directory / "tokenizer")
    build.progress("tokenizer", 1.0)


def _sample(spec: CorpusSpec, jobs: list[list[Job]]) -> Iterator[str]:
    """About `training_bytes` of training text in the proportion of the weights, spread evenly over every source.

    A source that has less gives all it has. Which documents are taken depends on their bytes only.
    """
    total = sum(source.weight for source in spec.sources)
    for source, chunks in zip(spec.sources, jobs, strict=True):
        budget = spec.tokenizer.training_bytes * source.weight / total
        sizes = [job.chunk.size if job.documents is None else int(_scanned(job)[:, 1].sum()) for job in chunks]
        every = max(1, int(sum(sizes) / (_SAMPLE_READ * budget)))
        read = range(0, len(chunks), every)
        share = budget / max(1, sum(sizes[i] for i in read))
        for i in read:
            yield from _spread(training_texts(chunks[i]), share, sizes[i])


def _spread(texts: Iterator[str], share: float, size: int) -> Iterator[str]:
    """Texts taken whenever those taken so far fall below `share` of the characters seen, until `size` were seen."""
    seen = taken = 0
    for text in texts:
        if seen >= size:
            return  # a generated source could go on
        seen += len(text)
        if taken < share * seen:
            taken += len(text)
            yield text


def _finish_source(build: _Build, index: int, jobs: Sequence[Job], records: Sequence[ChunkRecord]) -> SourceRecord:
    """Writes a source's held-out files and sums up what was packed.

    Raises:
        UserError: the source fills not one training row, or not one held-out row.
    """
    plan, spec = build.plans[index], build.spec
    encoder = open_encoder(str(build.directory), _byte_vocabulary(spec))
    packed = tuple(record.shard for record in records if record.shard)
    if not packed:
        raise UserError(
            f"the source {plan.name} is too small to fill one row of {spec.seq_len:,} tokens",
            "add text, shorten corpus.seq_len or lower corpus.holdout.fraction",
        )
    rows, documents = heldout_rows(jobs, plan.heldout, spec.seq_len, spec.holdout.rows, encoder)
    if len(rows) == 0:
        raise UserError(
            f"the hold-out of the source {plan.name} fills not one row of {spec.seq_len:,} tokens",
            f"raise corpus.holdout.fraction (now {spec.holdout.fraction}) or shorten corpus.seq_len",
        )
    folder = build.directory / plan.name
    shards.write_array(folder / "heldout-00000.npy", rows)
    shards.write_array(folder / "heldout-bytes.npy", encoder.byte_lengths()[rows[:, 1:].astype(np.int64)].sum(axis=1, dtype=np.int32))
    return SourceRecord(
        name=plan.name,
        weight=spec.sources[index].weight,
        documents=sum(record.documents for record in records),
        duplicates=sum(len(job.duplicates) for job in jobs),
        heldout_documents=documents or sum(record.heldout_documents for record in records),
        bytes=sum(record.bytes for record in records),
        tokens=sum(record.tokens for record in records),
        rows=sum(shard.rows for shard in packed),
        shards=packed,
        heldout_rows=len(rows),
        heldout=FileRecord.of(folder / "heldout-00000.npy", build.directory),
        heldout_bytes=FileRecord.of(folder / "heldout-bytes.npy", build.directory),
    )


def _on_ray(work: Callable[[Job], Any], jobs: Sequence[Job], progress: Callable[[float], None]) -> Iterator[tuple[tuple[str, int], Any]]:
    """((source, number), result) of every job, in the order they end. One job is one task of one CPU.

    A job's own errors travel as values, so that Ray does not bury them under its own.
    """
    if not jobs:
        return
    total, done = sum(job.chunk.size for job in jobs) or 1, 0
    dataset = ray.data.from_items([{"job": pickle.dumps(job)} for job in jobs], override_num_blocks=len(jobs))
    for row in quiet(dataset.map(partial(_attempt, work), num_cpus=1)).iter_rows():
        job, outcome = pickle.loads(row["outcome"])
        if isinstance(outcome, LosslensError):
            raise outcome
        done += job.chunk.size
        progress(done / total)
        yield (job.source, job.number), outcome


def _attempt(work: Callable[[Job], Any], row: dict[str, Any]) -> dict[str, Any]:
    job = pickle.loads(row["job"])
    try:
        outcome = work(job)
    except LosslensError as error:
        outcome = error
    return {"outcome": pickle.dumps((job, outcome))}


@contextmanager
def _only_builder(directory: Path) -> Iterator[None]:
    """Waits until no other process builds in the directory. The lock goes with its holder, however that ends."""
    with shards.room_for(directory):
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / ".lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
