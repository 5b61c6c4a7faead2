"""What sums that do not depend on the world size cost one worker: a step in exact micro-batches against a step in one pass.

Each demo size takes float32 steps alternately with a quarter of the global batch at a time and integer sums (the default), and
with the whole share at once and floating-point sums; medians of the stretches.

    python tests/bench/bench_exact.py [--sizes d48,d64,d160] [--steps 60] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from losslens.families import PlannedRun, planned_runs
from losslens.specs import StudySpec, load_study
from losslens.training.loop import Trainer
from losslens.training.reduction import Plain
from losslens.training.worker import make_trainer


def trainers(spec: StudySpec, run: PlannedRun) -> dict[str, Trainer]:
    """The same run, summed in both ways."""
    exact, plain = (make_trainer(spec, run, torch.device("cpu"), 0) for _ in range(2))
    assert exact.micro_batch
    plain.micro_batch, plain.reduction = None, Plain(plain.parameters)
    return {"exact": exact, "plain": plain}


def step_times(spec: StudySpec, run: PlannedRun, steps: int, rounds: int) -> dict[str, float]:
    """Median seconds a step."""
    rows = torch.randint(0, run.shape.vocab_size, (run.global_batch, run.shape.seq_len + 1))
    seconds: dict[str, list[float]] = {"exact": [], "plain": []}
    made = trainers(spec, run)
    for turn in range(rounds + 1):  # the first warms up
        for name, trainer in made.items():
            began = time.perf_counter()
            for _ in range(steps):
                trainer.update(rows)
            if turn:
                seconds[name].append((time.perf_counter() - began) / steps)
    return {name: statistics.median(each) for name, each in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="d48,d64,d160")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    spec = load_study("demo", ["training.precision=float32"])
    torch.set_num_threads(spec.cluster.threads)
    print(f"{'size':6}{'exact':>10}{'plain':>10}{'ratio':>8}   ms a step, {spec.cluster.threads} thread(s)")
    for run in planned_runs(spec):
        if run.size in options.sizes.split(","):
            found = step_times(spec, run, options.steps, options.rounds)
            print(f"{run.size:6}{found['exact'] * 1e3:10.1f}{found['plain'] * 1e3:10.1f}{found['exact'] / found['plain']:8.2f}")


if __name__ == "__main__":
    main()
