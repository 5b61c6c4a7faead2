"""Tokens per second of each demo size through the product (Ray Train, Ray Data, checkpoints) against a bare PyTorch loop.

Both train the same model from the same seed on the same batch size with one thread; the bare loop holds its batches in
memory, writes nothing and knows no Ray. `stepping` is the median stretch between two checkpoints, without the moment at which a
snapshot is taken; its writer works beside it. `whole run` counts everything. Rounds alternate between the two; medians.

Then seconds from `losslens pretrain` to its first step, on a cluster that is up and has packed the corpus: `driver` until Ray Train's
controller runs, `start` until a worker runs our code, `load` until weights, data and results are there, `step`; and the end.

    python tests/bench/bench_training.py [--steps 400] [--rounds 3] [--sizes d48,d160] [--starts 5]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import torch
import torch.nn.functional as F

from jobs.progress import Board
from jobs.training import Training
from losslens.cluster.connect import connected
from losslens.corpus.pack import build
from losslens.families import PlannedRun, planned_runs
from losslens.models import build as build_model
from losslens.results import Results
from losslens.specs import StudySpec, load_study
from losslens.training import journal
from losslens.training.checkpoint import run_directory
from losslens.training.optimizers import Optimizers
from losslens.training.schedules import averaging_decay, multiplier
from tests.bench.chaos import STUDY, Pretraining
from tests.nodes import machines, wait_for

STRETCHES = 8  # the first two are warm-up: allocator, caches, the first window of data
WARM_UP = 2 / STRETCHES
STAGES = ("driver", "start", "load", "step")


def planned(size: str, steps: int) -> tuple[StudySpec, PlannedRun]:
    """The demo's size with a budget of `steps` and a checkpoint after each stretch."""
    spec = load_study("demo", [f"training.checkpoints.count={STRETCHES}", "training.checkpoints.spacing=even", "cluster.train_slots=1"])
    sizes = tuple(msgspec.structs.replace(s, tokens=(steps * 1024,)) for s in spec.family.sizes if s.name == size)
    spec = msgspec.structs.replace(spec, family=msgspec.structs.replace(spec.family, sizes=sizes))
    return spec, planned_runs(spec)[0]


def bare(size: str, steps: int) -> float:
    """Tokens per second of a loop as one writes it by hand: same model, optimizer and weight average."""
    torch.set_num_threads(1)
    spec, run = planned(size, steps)
    model = build_model(run.shape, seed=0)
    optimizers = Optimizers(model, spec.training.optimizer, peak_lr=run.peak_lr, width=run.shape.d_model)
    parameters = list(model.parameters())
    average = [p.detach().clone() for p in parameters]
    batches = torch.randint(0, run.shape.vocab_size, (steps, run.global_batch, run.shape.seq_len + 1))
    moments: list[float] = []
    for step, tokens in enumerate(batches):
        if step >= steps * WARM_UP and step % (steps // STRETCHES) == 0:
            moments.append(time.perf_counter())
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizers.step(multiplier(spec.training.schedule, step, steps))
        for parameter in parameters:
            parameter.grad = None
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - averaging_decay(spec.training.schedule, step))
    moments.append(time.perf_counter())
    return steps // STRETCHES * run.batch_tokens / statistics.median(after - before for before, after in itertools.pairwise(moments))


def product(size: str, steps: int, root: Path) -> tuple[float, float]:
    """(stepping, whole run) tokens per second after the warm-up, as the training log has them."""
    spec, run = planned(size, steps)
    with Board() as board, connected(spec.cluster) as slots:
        corpus = build(spec.corpus, seed=0, rows=steps * run.global_batch, root=root / "corpus")
        Training(spec, [run], root, {run.variant: corpus.dir}, slots, board).wait()
    rows = Results(root).query("SELECT step, tokens_per_second AS rate, time FROM train_log ORDER BY step").to_pylist()
    ends = {row["time"]: row for row in rows}  # rows of one stretch between checkpoints share their time
    times = sorted(ends)
    times = times[1:]
    stepping = statistics.median(ends[moment]["rate"] for moment in times[1:])
    whole = (ends[times[-1]]["step"] - ends[times[0]]["step"]) * run.batch_tokens / (times[-1] - times[0]).total_seconds()
    return stepping, whole


def starts(count: int) -> None:
    """Print the seconds of each stage of so many starts, and their medians."""
    print(f"{'start':8}" + "".join(f"{stage:>8}" for stage in (*STAGES, "total", "end")) + "   seconds", flush=True)
    with machines(1, eval_slots=1) as cluster, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "study.yaml"
        file.write_text(STUDY.format(tokens=60 * 1024), encoding="utf-8")
        found = [started(file, Path(folder) / "results", cluster.address, number) for number in range(count + 1)][1:]  # the first packs
    for number, each in enumerate(found):
        print(f"{number:<8}" + "".join(f"{seconds:8.1f}" for seconds in each))
    print(f"{'median':8}" + "".join(f"{statistics.median(column):8.1f}" for column in zip(*found, strict=True)), flush=True)


def started(file: Path, results: Path, address: str, number: int) -> list[float]:
    """Seconds of each stage of a run of its own, from submission to the first step, and to the end of the command."""
    settings = [f"training.optimizer.lr={1e-3 + number * 1e-5}", "cluster.workers=[1, 1]"]
    (run,) = planned_runs(load_study(str(file), settings))
    training, began = Pretraining(file, results, address), time.time()
    training.start("--set", settings[0], "--set", settings[1])
    wait_for(training.over, 600, "the end of training")
    first: dict[str, float] = {}
    for event in journal.events(run_directory(results, run.run_id)):
        first.setdefault(event["event"], event["time"] - began)
    moments = [0.0, *(first[event] for event in ("state", "entered", "resumed", "stepping"))]
    return [after - before for before, after in itertools.pairwise(moments)] + [first["stepping"], time.time() - began]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", default="d48,d64,d96,d160")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--bare", action="store_true", help="run the bare loop only and print its rate")
    options = parser.parse_args()
    if options.bare:
        print(json.dumps(bare(options.sizes, options.steps)))
        return
    print(f"{'size':6} {'bare':>9} {'stepping':>9} {'ratio':>6} {'whole run':>10} {'ratio':>6}   tokens/s, median of {options.rounds}")
    for size in options.sizes.split(","):
        rates: list[tuple[float, float, float]] = []
        for _ in range(options.rounds):
            command = [sys.executable, __file__, "--bare", "--sizes", size, "--steps", str(options.steps)]
            alone = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            with tempfile.TemporaryDirectory() as folder:
                rates.append((alone, *product(size, options.steps, Path(folder))))
        alone, stepping, whole = (statistics.median(column) for column in zip(*rates, strict=True))
        print(f"{size:6} {alone:9,.0f} {stepping:9,.0f} {stepping / alone:6.2f} {whole:10,.0f} {whole / alone:6.2f}", flush=True)
    if options.starts:
        starts(options.starts)


if __name__ == "__main__":
    main()
