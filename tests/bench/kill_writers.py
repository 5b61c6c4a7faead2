"""Kill -9 of many writers and a compactor at once, again and again: what was acknowledged is there, and nothing is half there.

    python -m tests.bench.kill_writers [--rounds 200] [--writers 8] [--results DIR]

A writer notes a step, in a file of its own that survives it, only after `write` returned. Each of its steps is one part of two rows.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from losslens.errors import LosslensError
from losslens.results import Results


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found after the last kill."""

    kills: int
    acknowledged: int
    stored: int
    lost: int
    half: int


def write_forever(root: str, writer: str, notes: str) -> None:
    """One writer."""
    descriptor = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for step in itertools.count():
        Results(root).write("train_log", [{"run_id": writer, "attempt": attempt, "step": step, "loss": 1.0} for attempt in (0, 1)])
        os.write(descriptor, b"x")


def compact_forever(root: str) -> None:
    """A compactor that keeps nothing for readers."""
    while True:
        try:
            Results(root).compact(grace=0)
        except LosslensError:  # nothing written yet
            time.sleep(0.01)


def kill_writers(root: Path, notes: Path, rounds: int, writers: int, seed: int = 0) -> Outcome:
    """Start `writers` and a compactor, kill them all within a second, `rounds` times; then count."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["losslens.results.store"])
    pause = random.Random(seed)
    kills = 0
    for number in range(rounds):
        names = [f"{number}-{writer}" for writer in range(writers)]
        begun = [context.Process(target=write_forever, args=(str(root), name, str(notes / name))) for name in names]
        begun.append(context.Process(target=compact_forever, args=(str(root),)))
        for process in begun:
            process.start()
        while not all((notes / name).exists() for name in names):
            time.sleep(0.01)
        time.sleep(pause.random() / 2)
        for process in begun:
            process.kill()
        for process in begun:
            process.join()
            process.close()
        kills += writers
    return counted(root, notes, kills)


def counted(root: Path, notes: Path, kills: int) -> Outcome:
    """What view `train_log` says, against the notes."""
    results = Results(root)
    rows = results.query("SELECT run_id, step, count(*) AS rows FROM train_log GROUP BY ALL").to_pylist()
    stored = {(row["run_id"], row["step"]) for row in rows if row["rows"] == 2}
    noted = {(note.name, step) for note in notes.iterdir() for step in range(note.stat().st_size)}
    half = sum(row["rows"] != 2 for row in rows)
    results.query("SELECT sum(hash(p)) FROM parts.train_log AS p")  # reads every column of every part, or says which it cannot
    return Outcome(kills, len(noted), len(stored), len(noted - stored), half)


def main() -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--results", type=Path, help="a directory on the storage to try (default: the temporary one)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.results) as folder:
        root, notes = Path(folder, "results"), Path(folder, "notes")
        notes.mkdir()
        began = time.perf_counter()
        found = kill_writers(root, notes, given.rounds, given.writers)
        print(f"{found.kills} kills, {given.writers} writers at once, in {time.perf_counter() - began:.0f} s: {found.acknowledged} parts "
              f"acknowledged, {found.stored} stored, {found.lost} lost, {found.half} half")  # fmt: skip


if __name__ == "__main__":
    main()
