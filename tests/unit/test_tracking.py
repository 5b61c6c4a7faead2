"""Curves in TensorBoard, W&B and MLflow: each tool itself reads back exactly what the results hold, once, whatever was killed between."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import tracked as tracked_module
from jobs.log import log
from jobs.progress import Board
from jobs.tracked import tracked
from losslens.errors import DataMismatch, UserError
from losslens.results import Results
from losslens.tracking import Run, send
from losslens.tracking.points import folder_name
from losslens.tracking.to_tensorboard import crc32c, event, record
from tests.conftest import REPO, Process

Losslens = Callable[..., Process]
BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BATCH = 64
Series = dict[str, Any]


def logged(run: str, steps: range, attempt: int = 1, loss: float | None = None) -> list[dict[str, Any]]:
    return [
        {
            "run_id": run, "attempt": attempt, "step": step, "tokens": step * BATCH, "loss": 5 - step / 100 if loss is None else loss,
            "lr": 1e-3, "grad_norm": None if step == 3 else 0.5, "tokens_per_second": 1e6, "time": BEGAN + timedelta(seconds=step),
        }
        for step in steps
    ]  # fmt: skip


def checkpoint(results: Results, run: str, step: int, *scores: dict[str, Any], tokens: int | None = None) -> None:
    """A checkpoint with a held-out loss of 4 - step / 100, and scores."""
    key = f"{run}/{step}"
    results.write(
        "checkpoints", [{"checkpoint_id": key, "run_id": run, "step": step, "tokens": tokens or step * BATCH, "created_at": BEGAN}]
    )
    results.write("losses", [{"checkpoint_id": key, "dataset": "heldout/web", "unit": "nats/token", "value": 4 - step / 100}])
    score(results, run, step, *scores)


def score(results: Results, run: str, step: int, *scores: dict[str, Any]) -> None:
    base = {
        "checkpoint_id": f"{run}/{step}",
        "task": "mmlu",
        "format": "letter",
        "shots": 5,
        "metric": "acc",
        "value": 0.25,
        "engine": "torch",
    }
    known = {"stderr": 0.1, "n": 10, "chance": 0.25, "higher_is_better": True, "task_version": 1, "scored_at": BEGAN}
    results.write("scores", [base | known | values for values in scores])


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Two runs, one of which has a checkpoint with scores."""
    made = Results(tmp_path / "results")
    described = {"study": "s", "size": "d48", "params": 114_000, "optimizer": "muon", "created_at": BEGAN, "spec": "long"}
    made.write("runs", [described | {"run_id": run, "seed": seed} for seed, run in enumerate(("s-a", "s-b"))])
    made.write("train_log", logged("s-a", range(1, 11)))
    made.write("train_log", logged("s-b", range(1, 6)))
    checkpoint(made, "s-a", 10, {}, {"metric": "brier", "value": 0.7}, {"task": "next_word", "format": "open", "shots": 0, "value": 0.5})
    return made


def shown(results: Results, run: str) -> Series:
    """What TensorBoard itself makes of the run's folder: (step, value) by tag, in the order of the file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulated = EventAccumulator(str(results.root / "tensorboard" / run), size_guidance={"scalars": 0})
    accumulated.Reload()
    return {tag: [(e.step, e.value) for e in accumulated.Scalars(tag)] for tag in accumulated.Tags()["scalars"]}


def test_tensorboard_shows_log_losses_and_scores_by_step_and_by_tokens(results: Results) -> None:
    assert log(results.root, "tensorboard", "") == [{"run": "s-a", "points": 11}, {"run": "s-b", "points": 5}]
    found = shown(results, "s-a")
    assert found["train/loss"] == [(step, pytest.approx(5 - step / 100)) for step in range(1, 11)]
    assert found["by_tokens/train/loss"] == [(step * BATCH, pytest.approx(5 - step / 100)) for step in range(1, 11)]
    assert [step for step, _ in found["train/grad_norm"]] == [1, 2, *range(4, 11)], "an update without a norm has no point"
    assert found["loss/heldout/web/nats/token"] == [(10, pytest.approx(3.9))]
    assert found["score/mmlu/letter-5shot/acc"] == [(10, 0.25)]
    assert found["score/mmlu/letter-5shot/brier"] == [(10, pytest.approx(0.7))]
    assert found["score/next_word/open/acc"] == [(10, 0.5)]
    by_step = {name for name in found if not name.startswith("by_tokens/")}
    step_only = {"train/lr", "train/grad_norm", "train/tokens_per_second"}
    assert {f"by_tokens/{name}" for name in by_step - step_only} == found.keys() - by_step
    assert {name for name in shown(results, "s-b") if "/loss" in name} == {"train/loss", "by_tokens/train/loss"}


def test_times_are_those_of_the_rows(results: Results) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log(results.root, "tensorboard", "")
    accumulated = EventAccumulator(str(results.root / "tensorboard" / "s-a"))
    accumulated.Reload()
    assert [e.wall_time for e in accumulated.Scalars("train/loss")] == [BEGAN.timestamp() + step for step in range(1, 11)]
    assert [e.wall_time for e in accumulated.Scalars("score/next_word/open/acc")] == [BEGAN.timestamp()]


def test_only_what_is_new_is_sent_in_whatever_order_it_comes(results: Results) -> None:
    log(results.root, "tensorboard", "")
    before = {path: path.read_bytes() for path in (results.root / "tensorboard").rglob("*") if path.is_file()}
    assert log(results.root, "tensorboard", "") == []
    assert {path: path.read_bytes() for path in before} == before
    checkpoint(results, "s-a", 20, {"value": 0.5})
    assert log(results.root, "tensorboard", "") == [{"run": "s-a", "points": 1}]
    checkpoint(results, "s-a", 5, {"value": 0.3})  # was scored late
    score(results, "s-a", 10, {"task": "new"}, {"value": 0.9, "engine": "vllm", "scored_at": BEGAN + timedelta(days=1)})
    results.write("train_log", logged("s-a", range(8, 13), attempt=2, loss=1.0))  # the attempt before was killed after it had logged
    assert log(results.root, "tensorboard", "") == [{"run": "s-a", "points": 4}]
    found = shown(results, "s-a")
    assert sorted(found["score/mmlu/letter-5shot/acc"]) == [(5, pytest.approx(0.3)), (10, 0.25), (20, 0.5)]
    assert found["score/new/letter-5shot/acc"] == [(10, 0.25)]
    assert [step for step, _ in found["train/loss"]] == list(range(1, 13))
    assert found["train/loss"][-2:] == [(11, 1.0), (12, 1.0)]


def test_of_attempts_that_logged_a_step_the_last_one_tells_it(results: Results) -> None:
    results.write("train_log", logged("s-c", range(1, 6), attempt=1, loss=2.0))
    results.write("train_log", logged("s-c", range(4, 8), attempt=2, loss=1.0))
    log(results.root, "tensorboard", "")
    assert [value for _, value in shown(results, "s-c")["train/loss"]] == [2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0]


def test_compaction_sends_nothing_again(results: Results) -> None:
    log(results.root, "tensorboard", "")
    results.write("train_log", logged("s-a", range(1, 11)))
    results.compact(grace=0)
    results.compact(grace=0)
    assert not log(results.root, "tensorboard", "")


def test_a_long_log_goes_in_pieces(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send, "AT_ONCE", 3)
    assert log(results.root, "tensorboard", "")[0] == {"run": "s-a", "points": 11}
    assert [step for step, _ in shown(results, "s-a")["train/loss"]] == list(range(1, 11))


def test_one_study_of_several(results: Results) -> None:
    results.write("runs", [{"run_id": "t-a", "study": "t", "created_at": BEGAN}])
    results.write("train_log", logged("t-a", range(1, 3)))
    assert log(results.root, "tensorboard", "", "t") == [{"run": "t-a", "points": 2}]


def test_imported_runs_without_steps_are_drawn_by_tokens(results: Results) -> None:
    results.write(
        "checkpoints", [{"checkpoint_id": "x", "run_id": "Org/model-1b", "tokens": 10**12}, {"checkpoint_id": "y", "run_id": "no"}]
    )
    results.write("losses", [{"checkpoint_id": key, "dataset": "pile", "unit": "bits/byte", "value": 0.8} for key in "xy"])
    sent = log(results.root, "tensorboard", "")
    assert {row["run"]: row["points"] for row in sent} == {"Org/model-1b": 1, "s-a": 11, "s-b": 5}
    assert shown(results, folder_name("Org/model-1b")) == {"by_tokens/loss/pile/bits/byte": [(10**12, pytest.approx(0.8))]}
    assert not log(results.root, "tensorboard", "")


@given(st.lists(st.text(min_size=1, max_size=150), min_size=2, max_size=2, unique=True))
def test_every_run_has_a_folder_of_its_own(run_ids: list[str]) -> None:
    names = [Run(run_id).name for run_id in run_ids]
    assert len(set(names)) == 2
    assert all(name not in (".", "..") and "/" not in name and "\0" not in name and len(name.encode()) <= 255 for name in names)


def test_a_sender_killed_before_it_could_note_what_it_sent(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(send, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            log(results.root, "tensorboard", "")
    file = next((results.root / "tensorboard" / "s-a").iterdir())
    file.write_bytes(file.read_bytes()[:-7])  # and in the middle of a record
    log(results.root, "tensorboard", "")
    assert [step for step, _ in shown(results, "s-a")["train/loss"]] == list(range(1, 11))


FOLLOWER = "import sys; from jobs.cli import main; sys.argv[1:] = ['log', '--follow', '--results', sys.argv[1]]; main()"


def follower(results: Results, environment: dict[str, str]) -> subprocess.Popen[str]:
    """`losslens log --follow` as a process, which looks twenty times a second."""
    script = f"import jobs.log; jobs.log.EVERY_S = 0.05; {FOLLOWER}"
    command = [sys.executable, "-c", script, str(results.root)]
    return subprocess.Popen(command, cwd=REPO, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_follower_is_killed_at_any_moment_and_each_row_is_there_once(results: Results, environment: dict[str, str]) -> None:
    file = results.root / "tensorboard" / "s-a" / "sent.json"
    for number in range(2):
        results.write("train_log", logged("s-a", range(11 + 40 * number, 51 + 40 * number)))
        with follower(results, environment) as process:
            wait_for(lambda: file.is_file())
            for step in range(100 * number + 20, 100 * number + 50):
                checkpoint(results, "s-a", step, {})
            process.send_signal(signal.SIGKILL)
            process.communicate()
    log(results.root, "tensorboard", "")
    found = shown(results, "s-a")
    assert [step for step, _ in found["train/loss"]] == list(range(1, 91))
    assert sorted(step for step, _ in found["score/mmlu/letter-5shot/acc"]) == [10, *(100 * n + s for n in range(2) for s in range(20, 50))]


def test_following_ends_with_what_was_sent(results: Results, environment: dict[str, str]) -> None:
    sent = results.root / "tensorboard" / "s-b" / "sent.json"
    with follower(results, environment) as process:
        wait_for(sent.is_file)
        with pytest.raises(UserError, match=rf"process {process.pid}\) is writing"):
            log(results.root, "tensorboard", "")
        results.write("train_log", logged("s-b", range(6, 8)))
        assert process.stderr
        lines = list(iter(process.stderr.readline, "s-b: 2 new points\n"))
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    assert "tensorboard --logdir" in lines[0]
    assert re.findall(r"s-[ab]|\d+", out) == ["s-a", "11", "s-b", "7"]


def test_a_job_writes_while_it_runs_and_at_its_end(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracked_module, "EVERY_S", 0.02)
    with Board() as board, tracked(results.root, board):
        wait_for(lambda: (results.root / "tensorboard" / "s-b" / "sent.json").is_file())
        results.write("train_log", logged("s-b", range(6, 9)))
    assert [step for step, _ in shown(results, "s-b")["train/loss"]] == list(range(1, 9))


def test_a_job_without_results_yet_and_one_whose_tool_fails_go_on(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracked_module, "EVERY_S", 0.01)
    with Board() as board, tracked(tmp_path / "none", board):
        time.sleep(0.05)
    assert not list((tmp_path / "none").rglob("*tfevents*"))
    (results.root / "tensorboard").write_text("a file")
    with Board() as board, tracked(results.root, board):
        time.sleep(0.05)
    assert "TensorBoard gets no more: " in capsys.readouterr().err
    assert threading.active_count() == 1 or all(thread.name != "tracked" for thread in threading.enumerate())


def test_what_was_sent_and_is_gone_or_damaged_is_told(results: Results) -> None:
    log(results.root, "tensorboard", "")
    folder = results.root / "tensorboard" / "s-a"
    results.write("train_log", logged("s-a", range(11, 12)))
    event_file = next(folder.glob("*tfevents*"))
    whole = event_file.read_bytes()
    event_file.write_bytes(whole[:100])
    with pytest.raises(DataMismatch, match="is shorter than what was written") as caught:
        log(results.root, "tensorboard", "")
    assert f"delete {folder}" in caught.value.remedy
    (folder / "sent.json").write_text('{"mark": "1"}')
    with pytest.raises(DataMismatch, match=r"sent\.json cannot be read"):
        log(results.root, "tensorboard", "")
    for path in folder.iterdir():
        path.unlink()
    log(results.root, "tensorboard", "")
    assert len(shown(results, "s-a")["train/loss"]) == 11


def test_a_full_disk_is_a_sentence_and_room_lets_it_go_on(results: Results, environment: dict[str, str]) -> None:
    limited = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))\n"
        f"{FOLLOWER.replace(chr(39) + '--follow' + chr(39) + ', ', '')}"
    )
    command = [sys.executable, "-c", limited, str(results.root)]
    failed = subprocess.run(
        command, cwd=REPO, env=environment | {"PYTHONDONTWRITEBYTECODE": "1"}, text=True, capture_output=True, check=False
    )
    assert failed.returncode == 3
    assert "there is no room left to write" in failed.stderr and "Traceback" not in failed.stderr
    log(results.root, "tensorboard", "")
    assert [step for step, _ in shown(results, "s-a")["train/loss"]] == list(range(1, 11))


def test_the_command_line(results: Results, tmp_path: Path, losslens: Losslens) -> None:
    printed = losslens("log", "--results", results.root, "--format", "json")
    assert json.loads(printed.stdout) == [{"run": "s-a", "points": 11}, {"run": "s-b", "points": 5}]
    nothing = losslens("log", "--results", tmp_path / "nothing")
    assert (nothing.returncode, (tmp_path / "nothing").exists()) == (2, False)
    assert "holds no results" in nothing.stderr
    for tool in ("wandb", "mlflow"):
        blocked = (
            f"import sys; sys.modules[{tool!r}] = None; from jobs.cli import main; sys.argv[1:] = ['log', '--to', {tool!r}, '--results', "
        )
        command = [sys.executable, "-c", f"{blocked}{str(results.root)!r}]; main()"]
        failed = subprocess.run(
            command, cwd=REPO, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": "platform:."}
        )
        assert failed.returncode == 3
        assert f"{tool} is not installed\nremedy: pip install 'losslens[{tool}]'" in failed.stderr


def test_records_and_their_checksums() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4
    assert len(record(event(0.0, 1, {"x": 1.0}))) == 16 + len(event(0.0, 1, {"x": 1.0}))


@given(
    time=st.floats(0, 1e10),
    step=st.integers(0, 2**62),
    values=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=200), st.floats(), max_size=5),
)
def test_events_are_what_tensorboards_own_reader_takes_them_for(time: float, step: int, values: dict[str, float]) -> None:
    from tensorboard.compat.proto.event_pb2 import Event

    read = Event.FromString(event(time, step, values))
    assert (read.wall_time, read.step) == (time, step)
    found = {value.tag: value.simple_value for value in read.summary.value}
    assert found.keys() == values.keys()
    for tag, value in values.items():
        try:
            expected = struct.unpack("<f", struct.pack("<f", value))[0]
        except OverflowError:
            expected = math.copysign(math.inf, value)
        assert found[tag] == expected or (math.isnan(found[tag]) and math.isnan(expected))
