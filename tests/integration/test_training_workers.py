"""Ray Train for real: two workers train as one would, and a killed worker costs nothing but time."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
from ray.util.placement_group import placement_group, remove_placement_group

from losslens.cluster.connect import connected
from losslens.cluster.slots import TRAIN, Slots
from losslens.corpus.feed import direct
from losslens.corpus.pack import build
from losslens.families import PlannedRun, planned_runs
from losslens.results import Results
from losslens.specs import ClusterSpec, StudySpec, load_study
from losslens.training import journal
from losslens.training.checkpoint import run_directory, state_directory
from losslens.training.elastic import fit
from losslens.training.resizing import MOST_LATE
from losslens.training.worker import train

pytestmark = pytest.mark.timeout(300)

SETTINGS = [
    "family.sizes=[{name: s, d_model: 32, d_ffn: 96, heads: 2, kv_heads: 1, layers: 2, tokens: 200k}]",
    "corpus.sources=[{generated: copy}, {generated: sort}]",
    "training.precision=float32",
    "training.global_batch=5",  # two workers get 2 and 3 sequences: shares must weigh by tokens
    "training.optimizer={name: adamw, lr: 3e-3}",
    "training.checkpoints={spacing: even, count: 8}",
    "evaluation.cross_check=null",
]


@pytest.fixture(scope="module")
def spec() -> StudySpec:
    return load_study("demo", SETTINGS)


@pytest.fixture(scope="module")
def run(spec: StudySpec) -> PlannedRun:
    return planned_runs(spec)[0]


@pytest.fixture(scope="module")
def slots() -> Iterator[Slots]:
    with connected(ClusterSpec(workers=(1, 2), train_slots=2)) as found:
        yield found


@pytest.fixture(scope="module")
def corpus(slots: Slots, spec: StudySpec, run: PlannedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(spec.corpus, seed=0, rows=run.steps * run.global_batch, root=tmp_path_factory.mktemp("corpus")).dir


@pytest.fixture(scope="module")
def alone(spec: StudySpec, run: PlannedRun, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The loss curve of one process without Ray."""
    results = tmp_path_factory.mktemp("alone")
    assert train(spec, run, results, corpus, direct).step == run.steps
    return curve(results)


def curve(results: Path) -> np.ndarray:
    """Loss by step; a step that was done twice counts with its last attempt."""
    rows = Results(results).query("SELECT step, arg_max(loss, attempt) AS loss FROM train_log GROUP BY step ORDER BY step")
    assert rows.column("step").to_pylist() == list(range(1, rows.num_rows + 1))
    return np.array(rows.column("loss"))


def with_workers(spec: StudySpec, workers: int) -> StudySpec:
    return msgspec.structs.replace(spec, cluster=ClusterSpec(workers=(workers, workers), train_slots=2))


def test_two_workers_give_the_curve_of_one(
    spec: StudySpec, run: PlannedRun, corpus: Path, slots: Slots, alone: np.ndarray, tmp_path: Path
) -> None:
    outcome = fit(with_workers(spec, 2), run, tmp_path, corpus, slots)
    assert (outcome.step, outcome.world_size) == (run.steps, 2)
    assert np.array_equal(curve(tmp_path), alone), "float32 sums are exact: not one bit may differ"
    assert alone[-20:].mean() < 0.7 * alone[0]


def test_slots_that_something_else_holds_are_done_without(
    spec: StudySpec, run: PlannedRun, corpus: Path, slots: Slots, alone: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "8")
    foreign = placement_group([{TRAIN: 1}])
    assert foreign.wait(60)
    outcome = fit(msgspec.structs.replace(spec, cluster=ClusterSpec(workers=(1, 2), train_slots=2)), run, tmp_path, corpus, slots)
    remove_placement_group(foreign)
    assert (outcome.step, outcome.world_size) == (run.steps, 1)
    assert np.array_equal(curve(tmp_path), alone)
    noted = [note["fault"] for note in journal.events(run_directory(tmp_path, run.run_id)) if note["event"] == "failed"]
    assert noted == ["late"] * MOST_LATE


def test_a_killed_worker_is_replaced_and_the_curve_stays(
    spec: StudySpec, run: PlannedRun, corpus: Path, slots: Slots, alone: np.ndarray, tmp_path: Path
) -> None:
    killed = threading.Event()

    def kill_once() -> None:
        while len(list(tmp_path.glob("checkpoints/*/step-*/losslens.json"))) < 3:
            time.sleep(0.02)
        ours = psutil.Process().children(recursive=True)  # other clusters on this machine are not for us to kill
        workers = [
            process for process in ours if process.status() != psutil.STATUS_ZOMBIE and "RayTrainWorker" in " ".join(process.cmdline())
        ]
        workers[-1].send_signal(signal.SIGKILL)
        killed.set()

    killer = threading.Thread(target=kill_once, daemon=True)
    killer.start()
    outcome = fit(with_workers(spec, 1), run, tmp_path, corpus, slots)
    assert killed.is_set()
    assert (outcome.step, outcome.attempt) == (run.steps, 2)
    assert np.array_equal(curve(tmp_path), alone)


def test_a_worker_told_to_end_has_all_save_first(
    spec: StudySpec, run: PlannedRun, corpus: Path, slots: Slots, alone: np.ndarray, tmp_path: Path
) -> None:
    """SIGTERM to the rank that writes nothing: rank 0 saves at the step at which both leave, and no step is done twice."""
    home = run_directory(tmp_path, run.run_id)

    def tell_once() -> None:
        while not any(event["event"] == "stepping" for event in journal.events(home)):
            time.sleep(0.02)
        ours = psutil.Process().children(recursive=True)
        workers = [p for p in ours if p.status() != psutil.STATUS_ZOMBIE and "RayTrainWorker" in " ".join(p.cmdline())]
        workers[-1].send_signal(signal.SIGTERM)

    threading.Thread(target=tell_once, daemon=True).start()
    outcome = fit(with_workers(spec, 2), run, tmp_path, corpus, slots)
    assert (outcome.step, outcome.attempt) == (run.steps, 2)
    assert np.array_equal(curve(tmp_path), alone)
    again = Results(tmp_path).query("SELECT step FROM train_log GROUP BY step HAVING count(*) > 1")
    assert again.num_rows == 0
    assert any(event["event"] == "failed" and event["fault"] == "lost" for event in journal.events(home))


def test_a_damaged_state_is_left_out_and_said(spec: StudySpec, run: PlannedRun, corpus: Path, alone: np.ndarray, tmp_path: Path) -> None:
    train(spec, run, tmp_path, corpus, direct)
    newest, before = (state_directory(tmp_path, run.run_id, step) for step in reversed(run.checkpoints[-2:]))
    assert before.is_dir()
    cut = newest / "state.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    shutil.rmtree(run_directory(tmp_path, run.run_id) / newest.name)  # as if the kill had come just before
    outcome = train(spec, run, tmp_path, corpus, direct)
    assert (outcome.step, outcome.attempt) == (run.steps, 2)
    events = [(e["event"], e.get("step")) for e in journal.events(run_directory(tmp_path, run.run_id))]
    assert ("damaged", run.steps) in events
    assert events[events.index(("damaged", run.steps)) + 1] == ("resumed", run.checkpoints[-2])
    assert np.array_equal(curve(tmp_path), alone)
