"""Random faults against a real elastic run: nodes and workers killed, frozen, joined and drained, the driver killed.

A cluster of several raylets on this machine trains one small float32 model through `losslens pretrain`; faults come from a
seed. The run's own journal tells when training stepped again. At the end the weights must be those of an undisturbed
run, to the last bit.

    python tests/bench/chaos.py [--faults 20] [--seed 0] [--kinds kill_node,join] [--keep DIR]     (make chaos N=20)

Columns: recovery = seconds from the fault to the first step after it; lost = steps done before the fault and again after it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from losslens.families import PlannedRun, planned_runs
from losslens.specs import load_study
from losslens.training import journal
from losslens.training.checkpoint import completed, run_directory
from tests.nodes import Machines, machines, wait_for

REPO = Path(__file__).parents[2]
STEPS_PER_FAULT = 140
MOST_NODES = 3
NOTICE_S = 30  # of a drain
PATIENCE_S = 180
STAGES = ("notice", "decide", "start", "load", "step")

STUDY = """
name: chaos
corpus:
  sources: [{{generated: copy}}, {{generated: sort}}]
  tokenizer: {{kind: byte, vocab_size: 128}}
  seq_len: 128
  holdout: {{rows: 8}}
family: {{rope_base: 100, sizes: [{{name: s, d_model: 48, d_ffn: 128, heads: 2, kv_heads: 1, layers: 3, tokens: {tokens}}}]}}
training:
  global_batch: 8
  optimizer: {{name: adamw, lr: 3e-3}}
  precision: float32
  checkpoints: {{spacing: even, count: 6}}
evaluation: {{tasks: [skill_copy], engine: torch, limit: 20}}
cluster: {{workers: [1, 3], save_every: 4}}
"""


@dataclass
class Pretraining:
    """`losslens pretrain` as a process, started again when its driver was killed."""

    study: Path
    results: Path
    address: str | None
    process: subprocess.Popen[bytes] | None = None
    log: list[Path] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    verb: str = "pretrain"

    @property
    def run(self) -> PlannedRun:
        """The one run that is trained."""
        return planned_runs(load_study(str(self.study)))[0]

    @property
    def home(self) -> Path:
        """Its directory."""
        return run_directory(self.results, self.run.run_id)

    def start(self, *settings: str, verb: str = "pretrain") -> None:
        """Start or resume, with the settings of the first time."""
        self.arguments = list(settings) or self.arguments
        self.verb = verb if settings else self.verb
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment |= {"PYTHONPATH": f"{REPO / 'platform'}{os.pathsep}{REPO}"} | ({"RAY_ADDRESS": self.address} if self.address else {})
        size = ["--size", "s"] if self.verb == "pretrain" else []
        command = [sys.executable, "-m", "jobs.cli", self.verb, str(self.study), *size, "--results", str(self.results), *self.arguments]
        self.log.append(self.results.with_suffix(f".{len(self.log)}.log"))
        with self.log[-1].open("w") as out:
            self.process = subprocess.Popen(command, cwd=REPO, env=environment, stdout=out, stderr=out)

    def kill(self) -> None:
        """SIGKILL the driver."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def over(self) -> bool:
        """Whether it has ended, well.

        Raises:
            RuntimeError: it has ended badly.
        """
        assert self.process
        if self.process.poll() not in (None, 0):
            raise RuntimeError(f"pretraining ended with {self.process.returncode}:\n{self.log[-1].read_text()}")
        return self.process.poll() == 0

    def step(self) -> int:
        """The newest step that it has shown."""
        return int(journal.state(self.home / "progress.json").get("step", 0))

    def since(self, moment: float, event: str) -> list[dict[str, Any]]:
        """Events of a kind after a moment."""
        return [e for e in journal.events(self.home) if e["event"] == event and e["time"] > moment]

    def weights(self) -> dict[str, Any]:
        """Of its last checkpoint."""
        return dict(load_file(completed(self.results, self.run.run_id)[-1].path / "model.safetensors"))


@dataclass
class Fault:
    """One thing that happened: when, and what it cost."""

    kind: str
    workers: tuple[int, int]
    recovery: float
    lost: int
    stages: dict[str, float]


class Chaos:
    """Faults by name, against a cluster and a run."""

    def __init__(self, cluster: Machines, training: Pretraining, seed: int) -> None:
        self.cluster, self.training, self.random = cluster, training, random.Random(seed)
        self.pause = (0.5, 2.0)  # seconds of training between two faults
        self.frozen: list[Any] = []

    def possible(self) -> list[str]:
        """What may happen now: at least one node stays, at most `MOST_NODES` are there."""
        several = len(self.cluster.nodes) > 1
        kinds = ["kill_worker", "kill_driver"] + ["kill_raylet", "kill_node", "freeze_node", "drain"] * several
        return kinds + ["join"] * 3 * (len(self.cluster.nodes) < MOST_NODES)

    def choose(self, wanted: str | None) -> str:
        """The wanted kind, or a join that makes it possible; any kind where none is wanted."""
        if wanted:
            return wanted if wanted in self.possible() else "join"
        return self.random.choice(self.possible())

    def happen(self, kind: str) -> Fault:
        """Let it happen, and wait until training steps again."""
        before = self.training.step()
        world = int(journal.state(self.training.home / "progress.json").get("world_size", 0))
        began = time.time()
        began = getattr(self, f"_{kind}")() or began
        (first, *_) = wait_for(lambda: self.training.since(began, "stepping") or self._ended(), PATIENCE_S, f"a step after {kind}")
        if first is None:
            return Fault(kind, (world, 0), float("nan"), 0, {})
        resumed = [e for e in self.training.since(began, "resumed") if e["time"] <= first["time"]][-1]
        planned = kind in ("join", "drain")
        left = [e["step"] for e in self.training.since(began, "saved") if e["time"] <= resumed["time"]][-1:] if planned else [before]
        lost = max(0, (left or [before])[0] - resumed["step"])
        return Fault(kind, (world, first["world_size"]), first["time"] - began, lost, self._stages(began, first["time"]))

    def tidy(self) -> None:
        """End what was frozen or drained."""
        for machine in self.frozen:
            self.cluster.bury(machine)
        self.frozen.clear()

    def _ended(self) -> list[None]:
        return [None] if self.training.over() else []

    def _stages(self, began: float, ended: float) -> dict[str, float]:
        """Seconds until it was noticed or asked for, until the group was let go, until workers ran our code, until the state
        was loaded, until the first step."""
        marks = [began]
        for events, pick in (
            (("failed", "ask"), min),
            (("starting", "resize", "state"), min),
            (("entered",), max),
            (("resumed",), max),
            (("stepping",), max),
        ):
            times = [e["time"] for event in events for e in self.training.since(began, event) if e["time"] <= ended]
            marks.append(pick(times, default=marks[-1]))
        return dict(zip(STAGES, (max(0.0, b - a) for a, b in itertools.pairwise(marks)), strict=True))

    def _one(self) -> Any:
        return self.random.choice(self.cluster.nodes)

    def _kill_worker(self) -> None:
        machine = self.random.choice([m for m in self.cluster.nodes if m.trainers()])
        machine.send(signal.SIGKILL, machine.trainers()[:1])

    def _kill_raylet(self) -> None:
        self.cluster.kill_raylet(self._one())

    def _kill_node(self) -> None:
        self.cluster.kill(self._one())

    def _freeze_node(self) -> None:
        machine = self._one()
        self.cluster.freeze(machine)
        self.frozen.append(machine)

    def _join(self) -> float:
        self.cluster.join()
        return time.time()  # the node is registered

    def _drain(self) -> None:
        machine = self._one()
        self.cluster.nodes.remove(machine)
        self.frozen.append(machine)
        self.cluster.drain(machine, NOTICE_S)

    def _kill_driver(self) -> None:
        self.training.kill()
        self.training.start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", help="only these, in turn, with a join whenever a node is missing")
    parser.add_argument("--keep", type=Path, help="keep results and logs there")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        study = folder / "chaos.yaml"
        study.write_text(STUDY.format(tokens=options.faults * STEPS_PER_FAULT * 8 * 128))
        faults, training = disturbed(study, folder, options)
        alone = Pretraining(study, folder / "undisturbed", None)
        alone.start("--set", "cluster.workers=[1, 1]")
        wait_for(alone.over, 60 + options.faults * 60, "the undisturbed run")
        report(faults, training, alone)


def disturbed(study: Path, folder: Path, options: argparse.Namespace) -> tuple[list[Fault], Pretraining]:
    """The run with its faults, printed as they happen."""
    print(f"{'fault':14}{'workers':>9}{'recovery s':>12}{'lost':>6}   {' '.join(f'{stage:>6}' for stage in STAGES)}")
    faults: list[Fault] = []
    with machines(2, eval_slots=1) as cluster:
        training = Pretraining(study, folder / "disturbed", cluster.address)
        training.start()
        kinds = options.kinds.split(",") if options.kinds else [None]
        wanted = [kinds[i % len(kinds)] for i in range(options.faults)]
        for fault in disturb(Chaos(cluster, training, options.seed), wanted):
            faults.append(fault)
            show(fault)
        wait_for(training.over, 60 + options.faults * 60, "the end of training")
    return faults, training


def disturb(chaos: Chaos, wanted: Sequence[str | None]) -> Iterator[Fault]:
    """One fault after the other, as long as training lasts; None: any kind that is possible."""
    training = chaos.training
    wait_for(lambda: training.home.exists() and training.since(0, "stepping"), PATIENCE_S, "the first step")
    for kind in wanted:
        pause(chaos, training)
        if training.over():
            return
        yield chaos.happen(chaos.choose(kind))
        chaos.tidy()


def pause(chaos: Chaos, training: Pretraining) -> None:
    """Some seconds of training, and no resize under way: faults are measured one at a time."""
    time.sleep(chaos.random.uniform(*chaos.pause))
    settled = lambda: journal.state(training.home / "workers.json").get("state") == "running" or training.over()  # noqa: E731
    wait_for(settled, PATIENCE_S, "a running group")
    expected = len(chaos.cluster.nodes)
    steady = lambda: int(journal.state(training.home / "progress.json").get("world_size", 0)) == expected or training.over()  # noqa: E731
    wait_for(steady, PATIENCE_S, f"a group of {expected}")


def show(fault: Fault) -> None:
    stages = " ".join(f"{seconds:6.1f}" for seconds in fault.stages.values())
    print(f"{fault.kind:14}{fault.workers[0]:>5} ->{fault.workers[1]:>2}{fault.recovery:12.1f}{fault.lost:6}   {stages}", flush=True)


def report(faults: list[Fault], training: Pretraining, alone: Pretraining) -> None:
    print(f"\n{'fault':14}{'times':>6}{'median s':>10}{'largest s':>11}{'lost, median':>14}{'largest':>9}")
    for kind in sorted({fault.kind for fault in faults}):
        of = [fault for fault in faults if fault.kind == kind and fault.recovery == fault.recovery]
        seconds, lost = [f.recovery for f in of], [f.lost for f in of]
        if of:
            print(
                f"{kind:14}{len(of):>6}{statistics.median(seconds):>10.1f}{max(seconds):>11.1f}{statistics.median(lost):>14.0f}{max(lost):>9}"
            )
    print(f"\n{'median s of':14}" + "".join(f"{stage:>8}" for stage in STAGES))
    for kind in sorted({fault.kind for fault in faults}):
        each = [[fault.stages[stage] for fault in faults if fault.kind == kind and fault.stages] for stage in STAGES]
        print(f"{kind:14}" + "".join(f"{statistics.median(seconds):>8.1f}" for seconds in each if seconds))
    mine, theirs = training.weights(), alone.weights()
    largest = max(float(abs(mine[name] - theirs[name]).max()) for name in theirs)
    attempts = len(training.since(0, "resumed"))
    print(f"\n{attempts} attempts; largest difference of a final weight from the undisturbed run: {largest:g}")
    if largest > 0 or mine.keys() != theirs.keys():
        raise SystemExit("the weights are not those of the undisturbed run")


if __name__ == "__main__":
    main()
