"""How fast a corpus is packed, how little memory that takes at two sizes, and how fast both feeds give rows.

    python tests/bench/bench_corpus.py [--megabytes 8] [--vocabulary 4096]

Parquet is packed by two workers at once; jsonl.gz, which cannot be entered in the middle, is the hard case for memory: one
worker reads all of it. Peaks are resident sizes of single processes; the gap between the two sizes is what growth costs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from losslens.corpus import PackedCorpus
from losslens.corpus.feed import direct, windows
from losslens.corpus.pack import build
from losslens.specs import CorpusSpec, SourceSpec, TokenizerSpec

GROWTH = 4  # the second size over the first
DOCUMENT_WORDS = 700


def documents(megabytes: float) -> Iterator[str]:
    """Made-up English-like text: words of 2 to 9 letters, Zipf's frequencies."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwygpb"))
    words = np.array(["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(20_000)])
    left = megabytes * 1e6
    while left > 0:
        text = " ".join(words[np.minimum(rng.zipf(1.3, DOCUMENT_WORDS), len(words)) - 1])
        left -= len(text)
        yield text


def write(folder: Path, kind: str, megabytes: float) -> Path:
    """The text in four Parquet files or one jsonl.gz."""
    path = folder / f"{kind}-{megabytes:g}"
    path.mkdir()
    texts = list(documents(megabytes))
    if kind == "parquet":
        for i in range(4):
            pq.write_table(pa.table({"text": texts[i::4]}), path / f"{i}.parquet", row_group_size=1000)
    else:
        with gzip.open(path / "all.jsonl.gz", "wt", compresslevel=1) as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return path


class Peaks:
    """Largest resident size in MB seen of this process and of any Ray worker below it."""

    def __init__(self) -> None:
        self.driver = self.worker = 0.0

    def look(self) -> None:
        parents: dict[int, int] = {}
        resident: dict[int, tuple[str, float]] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                fields = dict(line.split(":\t", 1) for line in (entry / "status").read_text().splitlines() if ":\t" in line)
            except OSError:
                continue  # it has ended
            parents[int(entry.name)] = int(fields["PPid"])
            resident[int(entry.name)] = (fields["Name"], float(fields.get("VmRSS", "0").split()[0]) / 1000)
        self.driver = max(self.driver, resident[os.getpid()][1])
        for pid, (name, size) in resident.items():
            if name.startswith("ray::") and self._is_below(pid, parents):
                self.worker = max(self.worker, size)

    def _is_below(self, pid: int, parents: dict[int, int]) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()


@contextmanager
def watched() -> Iterator[Peaks]:
    """Peaks while the block runs, looked at twenty times a second."""
    peaks, stop = Peaks(), threading.Event()

    def look() -> None:
        while not stop.wait(0.05):
            peaks.look()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peaks
    finally:
        stop.set()
        thread.join()


def pack(folder: Path, kind: str, megabytes: float, vocabulary: int) -> PackedCorpus:
    """Packs one made-up corpus and prints a line of figures."""
    path = write(folder, kind, megabytes)
    spec = CorpusSpec(
        sources=(SourceSpec(name="text", path=str(path)),),
        tokenizer=TokenizerSpec(kind="bpe", vocab_size=vocabulary, training_bytes=2_000_000),
        seq_len=512,
    )
    reached: dict[str, float] = {}
    began = time.perf_counter()
    with watched() as peaks:
        corpus = build(
            spec, seed=0, rows=1, root=folder, progress=lambda stage, fraction: reached.__setitem__(stage, time.perf_counter() - began)
        )
    total, packing = time.perf_counter() - began, reached["pack"] - reached["tokenizer"]
    print(
        f"{kind:10}{megabytes:>8.0f}{total:>9.1f}{packing:>8.1f}{megabytes / packing:>8.2f}{peaks.driver:>11.0f}{peaks.worker:>11.0f}"
        f"{corpus.manifest.sources[0].tokens / 1e6:>9.2f}"
    )
    return corpus


def feed(corpus: PackedCorpus, name: str, read: Callable[..., Iterator[np.ndarray]], steps: int, global_batch: int) -> None:
    """Prints rows per second of one feed, and the CPU seconds it costs the process that trains."""
    arrays = read(corpus.dir, 0, cursor=0, steps=steps, global_batch=global_batch, rank=0, world=1)
    next(arrays)
    began, cpu = time.perf_counter(), time.process_time()
    count = sum(len(rows) for rows in arrays)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(f"{name:10}{global_batch:>8}{steps:>8}{count / seconds:>12,.0f}{cpu / count * 1e6:>14.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--megabytes", type=float, default=8.0)
    parser.add_argument("--vocabulary", type=int, default=4096)
    given = parser.parse_args()
    ray.init(address="local", num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'format':10}{'MB':>8}{'total s':>9}{'pack s':>8}{'MB/s':>8}{'driver MB':>11}{'worker MB':>11}{'Mtokens':>9}")
        for kind in ("parquet", "jsonl.gz"):
            for megabytes in (given.megabytes, given.megabytes * GROWTH):
                corpus = pack(Path(folder), kind, megabytes, given.vocabulary)
        print(f"\n{'feed':10}{'batch':>8}{'steps':>8}{'rows/s':>12}{'CPU us/row':>14}")
        for global_batch, steps in ((8, 4000), (64, 500)):
            feed(corpus, "direct", direct, steps, global_batch)
            feed(corpus, "windows", windows, steps, global_batch)
    ray.shutdown()


if __name__ == "__main__":
    main()
