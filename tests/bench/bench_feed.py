"""What the feed costs training: step time with Ray Data windows against the direct reader, and CPU while training stands still.

Each demo size trains stretches of one whole window alternately from either reader, in one process connected to Ray, as a
training worker does; medians of the stretches. Then the feed is left waiting and the CPU time that this process and
Ray's workers use meanwhile is counted.

    python tests/bench/bench_feed.py [--sizes d48,d160] [--steps 2048] [--rounds 1] [--wait 10]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import torch

from losslens.cluster.connect import connected
from losslens.corpus.feed import direct, windows
from losslens.corpus.pack import build
from losslens.corpus.packed import PackedCorpus
from losslens.families import PlannedRun, planned_runs
from losslens.specs import StudySpec, load_study
from losslens.training.worker import Feed, make_trainer

FEEDS: dict[str, Feed] = {"direct": direct, "windows": windows}


def batches(feed: Feed, corpus: PackedCorpus, run: PlannedRun, steps: int) -> Iterator[np.ndarray]:
    return feed(corpus.dir, 0, cursor=0, steps=steps, global_batch=run.global_batch, rank=0, world=1)


def step_times(spec: StudySpec, run: PlannedRun, corpus: PackedCorpus, steps: int, rounds: int) -> dict[str, float]:
    """Seconds a step from each reader."""
    trainer = make_trainer(spec, run, torch.device("cpu"), corpus.eos)
    trainer.steps = (2 * rounds * steps + 20) * 2
    trainer.losses, trainer.grad_norms = torch.zeros(trainer.steps), torch.zeros(trainer.steps)
    for rows in batches(direct, corpus, run, 20):
        trainer.update(torch.from_numpy(rows))
    seconds: dict[str, list[float]] = {name: [] for name in FEEDS}
    for turn in range(rounds):
        for name in (list(FEEDS), list(FEEDS)[::-1])[turn % 2]:
            began = time.perf_counter()
            for rows in batches(FEEDS[name], corpus, run, steps):
                trainer.update(torch.from_numpy(rows))
            seconds[name].append((time.perf_counter() - began) / steps)
    return {name: statistics.median(each) for name, each in seconds.items()}


def cpu_seconds() -> float:
    """Used so far by this process and by Ray's workers below it, not by the raylet and its kin."""
    me = psutil.Process()
    workers = [process for process in me.children(recursive=True) if "ray::" in " ".join(process.cmdline())]
    return sum(sum(process.cpu_times()[:2]) for process in [me, *workers])


def idle(corpus: PackedCorpus, run: PlannedRun, seconds: float) -> float:
    """Cores used while a window is ahead and nobody takes rows."""
    feed = batches(windows, corpus, run, 100_000)
    for _ in range(200):
        next(feed)
        time.sleep(0.05)
    before = cpu_seconds()
    time.sleep(seconds)
    return (cpu_seconds() - before) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="d48,d160")
    parser.add_argument("--steps", type=int, default=2048, help="of one stretch; a window of the demo holds 2,048")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--wait", type=float, default=10.0, help="seconds")
    options = parser.parse_args()
    spec = load_study("demo", ["cluster.train_slots=1"])
    runs = {run.size: run for run in planned_runs(spec)}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, connected(spec.cluster):
        corpus = build(spec.corpus, seed=0, rows=20_000, root=Path(folder))
        print(f"{'size':6}{'direct ms':>11}{'windows ms':>12}{'overhead':>10}")
        for size in options.sizes.split(","):
            each = step_times(spec, runs[size], corpus, options.steps, options.rounds)
            overhead = each["windows"] / each["direct"] - 1
            print(f"{size:6}{each['direct'] * 1e3:>11.2f}{each['windows'] * 1e3:>12.2f}{overhead:>+10.1%}", flush=True)
        print(f"\nwaiting: {idle(corpus, runs['d64'], options.wait):.3f} cores")


if __name__ == "__main__":
    main()
