"""Saves that are written while training goes on: what they hold, whom they keep waiting, and what a kill or a full disk does to them."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

from losslens.errors import EnvironmentFailure
from losslens.families import PlannedRun, planned_runs
from losslens.results import Results
from losslens.specs import StudySpec, load_study
from losslens.training import checkpoint as checkpoints
from losslens.training import journal, leaving
from losslens.training.ahead import ahead
from losslens.training.checkpoint import run_directory, saved_step, saved_steps, state_directory
from losslens.training.saving import Background, Files
from losslens.training.snapshot import Buffers, state_of
from losslens.training.worker import make_trainer, train
from tests.held_out import ENGLISH, byte_level, packed

STEPS, EVERY, T = 40, 10, 32
SETTINGS = [
    f"corpus.seq_len={T}",
    "corpus.tokenizer={kind: bpe, vocab_size: 320}",
    f"family.sizes=[{{name: s, d_model: 16, d_ffn: 32, heads: 2, kv_heads: 1, layers: 1, tokens: {STEPS * 4 * T}}}]",
    "training.global_batch=4",
    "training.precision=float32",
    "training.schedule={name: constant, warmup_steps: 0, average: 0.9}",
    f"training.checkpoints={{spacing: even, count: {STEPS // EVERY}}}",
    "evaluation.cross_check=null",
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def spec() -> StudySpec:
    return load_study("demo", SETTINGS)


@pytest.fixture(scope="module")
def run(spec: StudySpec) -> PlannedRun:
    return planned_runs(spec)[0]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    return packed(folder / "packed", byte_level(folder / "tokenizer"), {"a": [ENGLISH * 30], "b": [ENGLISH.upper() * 20]}, seq_len=T).dir


def rows_of(step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(0, 300, (4, T + 1))


def feed(
    _corpus: Path, _seed: int, *, cursor: int, steps: int, global_batch: int, before: Callable[[int], None] = lambda step: None, **_: int
) -> Iterator[np.ndarray]:
    """Random rows that only the step decides; `before` is called with each step before its rows are given."""
    for step in range(cursor // global_batch, cursor // global_batch + steps):
        before(step)
        yield rows_of(step)


@pytest.fixture(scope="module")
def undisturbed(spec: StudySpec, run: PlannedRun) -> dict[int, dict[str, torch.Tensor]]:
    """The state after each step that is saved, of a loop that saves nothing."""
    trainer, found = make_trainer(spec, run, CPU, 0), dict[int, dict[str, torch.Tensor]]()
    for step in range(STEPS + 1):
        found[step] = state_of(trainer)
        if step < STEPS:
            trainer.update(torch.from_numpy(rows_of(step)))
    return found


def require_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def logged(results: Path) -> list[int]:
    return [int(step) for step in Results(results).query("SELECT step FROM train_log ORDER BY step, attempt").column("step").to_pylist()]


def test_what_is_saved_is_the_moment_of_the_save_though_training_went_on(
    spec: StudySpec,
    run: PlannedRun,
    corpus: Path,
    undisturbed: dict[int, dict[str, torch.Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each save begins to write only when training is five steps on."""
    reached, true, waited = threading.Condition(), Files.save, list[int]()
    newest = 0

    def before(step: int) -> None:
        nonlocal newest
        with reached:
            newest = step
            reached.notify_all()

    def save(files: Files, snapshot: Any, *rest: Any, **more: Any) -> None:
        with reached:
            assert reached.wait_for(lambda: newest >= min(snapshot.step + 5, STEPS - 1), 30), "training waited for the writer"
            waited.append(newest)
        true(files, snapshot, *rest, **more)

    monkeypatch.setattr(Files, "save", save)
    assert train(spec, run, tmp_path, corpus, partial(feed, before=before)).step == STEPS
    assert len(waited) == STEPS // EVERY + 1
    for step in saved_steps(tmp_path, run.run_id):
        require_equal(load_file(state_directory(tmp_path, run.run_id, step) / checkpoints.STATE), undisturbed[step])
    written = checkpoints.completed(tmp_path, run.run_id)
    assert [checkpoint.step for checkpoint in written] == list(range(0, STEPS + 1, EVERY))
    names = [name for name, _ in make_trainer(spec, run, CPU, 0).model.named_parameters()]
    for checkpoint in written:
        weights = load_file(checkpoint.path / "model.safetensors")
        require_equal(weights, {name: undisturbed[checkpoint.step][f"average.{i}"] for i, name in enumerate(names)})
        assert {loss.dataset for loss in checkpoint.losses} >= {"heldout", "heldout/a", "heldout/b"}
    assert logged(tmp_path) == list(range(1, STEPS + 1))


def test_one_save_at_a_time_and_the_next_one_waits() -> None:
    background, gate, done = Background(), threading.Event(), list[str]()

    def slow() -> None:
        gate.wait(30)
        done.append("slow")

    background.begin(slow)
    assert background.busy
    background.look()
    threading.Timer(0.05, gate.set).start()
    background.begin(partial(done.append, "next"))
    assert done[0] == "slow", "the second began before the first had ended"
    background.close()
    assert done == ["slow", "next"]


def test_what_a_save_raises_is_raised_once_by_whoever_looks_next(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise EnvironmentFailure("the disk is full", "make room")

    background = Background()
    for ask in (background.wait, partial(background.begin, fail)):
        background.begin(fail)
        with pytest.raises(EnvironmentFailure, match="the disk is full"):
            ask()
        background.look()
    background.begin(fail)
    background.close()
    assert "the disk is full" in caplog.text


def full_after(saves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """States after that many fail as on a full disk, half-way through the file."""
    true, left = save_file, [saves]

    def full(tensors: Any, path: Path) -> None:
        left[0] -= 1
        if left[0] >= 0:
            true(tensors, path)
            return
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)


def test_a_full_disk_ends_the_run_soon_with_its_sentence_and_room_lets_it_go_on(
    spec: StudySpec,
    run: PlannedRun,
    corpus: Path,
    undisturbed: dict[int, dict[str, torch.Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = list[int]()
    with monkeypatch.context() as patch:
        full_after(2, patch)  # the states of steps 0 and 10 fit
        with pytest.raises(EnvironmentFailure, match="No space left on device") as failure:
            train(spec, run, tmp_path, corpus, partial(feed, before=steps.append))
    assert "resumes" in failure.value.remedy
    assert 20 <= max(steps) <= 31, "it went on for longer than to the next save"
    assert saved_step(tmp_path, run.run_id) == 10
    assert not list(run_directory(tmp_path, run.run_id).rglob(".tmp-*"))
    assert train(spec, run, tmp_path, corpus, feed).step == STEPS
    require_equal(load_file(state_directory(tmp_path, run.run_id, STEPS) / checkpoints.STATE), undisturbed[STEPS])


def test_a_full_disk_at_the_last_save_is_no_success(
    spec: StudySpec, run: PlannedRun, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_after(STEPS // EVERY, monkeypatch)
    with pytest.raises(EnvironmentFailure, match="No space left on device"):
        train(spec, run, tmp_path, corpus, feed)


def killed_while_writing(part: str, results: Path, corpus: Path) -> None:
    """A process that SIGKILL ends in the middle of its third state, or checkpoint, while the next steps are computed."""
    spec = load_study("demo", SETTINGS)
    from losslens.models import export

    true, left = save_file, [2]

    def interrupted(tensors: Any, path: Path, **more: Any) -> None:
        left[0] -= 1
        if left[0] >= 0:
            true(tensors, path, **more)
            return
        path.write_bytes(b"half of it")
        time.sleep(0.2)  # training goes on
        os.kill(os.getpid(), signal.SIGKILL)

    module: Any = safetensors.torch if part == "state" else export
    module.save_file = interrupted
    train(spec, planned_runs(spec)[0], results, corpus, feed)


@pytest.mark.parametrize(("part", "complete"), [("state", [0, 10, 20]), ("checkpoint", [0, 10])])
def test_killed_while_the_writer_writes_nothing_is_half_and_the_run_goes_on(
    part: str, complete: list[int], spec: StudySpec, run: PlannedRun, corpus: Path, undisturbed: dict[int, Any], tmp_path: Path
) -> None:
    child = multiprocessing.get_context("spawn").Process(target=killed_while_writing, args=(part, tmp_path, corpus))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert [checkpoint.step for checkpoint in checkpoints.completed(tmp_path, run.run_id)] == complete
    assert saved_step(tmp_path, run.run_id) == 10
    outcome = train(spec, run, tmp_path, corpus, feed)
    assert (outcome.step, outcome.attempt) == (STEPS, 2)
    require_equal(load_file(state_directory(tmp_path, run.run_id, STEPS) / checkpoints.STATE), undisturbed[STEPS])
    assert sorted(set(logged(tmp_path))) == list(range(1, STEPS + 1))


@pytest.fixture
def slow_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every state takes a while to write."""
    true = checkpoints.write_state

    def write_state(*arguments: Any) -> None:
        time.sleep(0.1)
        true(*arguments)

    monkeypatch.setattr(checkpoints, "write_state", write_state)


@pytest.mark.usefixtures("slow_states")
def test_who_leaves_during_a_save_has_saved_the_step_at_which_it_leaves(
    spec: StudySpec, run: PlannedRun, corpus: Path, tmp_path: Path
) -> None:
    found = list[tuple[int, frozenset[int]]]()

    def before(step: int) -> None:
        if step == 12:  # the save of step 10 is under way
            leaving.ask(time.time() + 0.5)

    def left(step: int) -> None:
        found.append((step, saved_steps(tmp_path, run.run_id)))

    assert train(spec, run, tmp_path, corpus, partial(feed, before=before), left=left).step == STEPS  # nobody ended it: it went on
    ((step, saved),) = found
    assert 11 <= step <= 13
    assert {10, step} <= saved
    assert logged(tmp_path) == list(range(1, STEPS + 1))


@pytest.mark.usefixtures("slow_states")
def test_a_request_during_a_save_is_answered_by_a_later_state(
    spec: StudySpec, run: PlannedRun, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that was told to end loses nothing: what is being written began before it asked."""
    home, monitored, answered = run_directory(tmp_path, run.run_id), threading.Event(), list[int]()
    monkeypatch.setattr("losslens.training.worker.SHOW_EVERY_S", 0.0)
    true = leaving.answer_afar

    def before(step: int) -> None:
        if step == 12:
            leaving.ask_for_state_from_afar(home)
            monitored.set()
        if 12 < step < 30:
            time.sleep(0.02)

    def answer(where: Path) -> None:
        answered.append(saved_step(tmp_path, run.run_id))
        true(where)

    monkeypatch.setattr(leaving, "answer_afar", answer)
    train(spec, run, tmp_path, corpus, partial(feed, before=before))
    assert monitored.is_set()
    assert len(answered) == 1 and answered[0] >= 11
    assert not leaving.asked_from_afar(home)


@pytest.mark.usefixtures("slow_states")
def test_a_run_that_diverges_ends_after_its_save_and_logs_every_step(run: PlannedRun, corpus: Path, tmp_path: Path) -> None:
    wild = load_study("demo", [*SETTINGS, "training.optimizer={name: adamw, lr: 1e30, clip: null}", "training.most_skipped=0"])
    planned = planned_runs(wild)[0]
    outcome = train(wild, planned, tmp_path, corpus, feed)
    assert outcome.diverged
    assert logged(tmp_path) == list(range(1, outcome.step + 1))
    assert [event["step"] for event in journal.events(run_directory(tmp_path, planned.run_id)) if event["event"] == "saved"] == [0]


def test_buffers_are_used_again(spec: StudySpec, run: PlannedRun) -> None:
    trainer, buffers = make_trainer(spec, run, CPU, 0), Buffers(CPU)
    first = buffers.take(trainer, {})
    trainer.update(torch.from_numpy(rows_of(0)))
    second = buffers.take(trainer, {})
    assert first.state.keys() < second.state.keys()  # the optimizer's moments have come
    assert all(first.state[name] is second.state[name] for name in first.state)
    require_equal(second.state, state_of(trainer))
    assert (first.step, second.step) == (0, 1)


def test_one_batch_is_fetched_ahead_and_no_more() -> None:
    fetched = list[int]()

    def batches() -> Iterator[np.ndarray]:
        for number in range(5):
            fetched.append(number)
            yield np.full((1, 2), number)

    coming = ahead(batches(), CPU)
    for number in range(3):
        assert int(next(coming)[0, 0]) == number
    coming.close()
    assert fetched[:3] == [0, 1, 2] and len(fetched) <= 4
    assert [int(rows[0, 0]) for rows in ahead(batches(), CPU)] == list(range(5))


def test_an_error_of_the_feed_is_the_loops() -> None:
    def batches() -> Iterator[np.ndarray]:
        yield np.zeros((1, 2), np.int64)
        raise OSError("the shard is gone")

    coming = ahead(batches(), CPU)
    next(coming)
    with pytest.raises(OSError, match="the shard is gone"):
        next(coming)
