"""The queue on disk: what was acknowledged is there after a kill -9, and of two changes that meet one wins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from eval_service.http.evaluations import Evaluation, State, cancelled, done, started
from eval_service.http.ledger import Ledger
from eval_service.questions import Asked
from eval_service.scored import ScoredSoFar
from losslens.errors import DataMismatch, EnvironmentFailure, UserError
from losslens.results import Results
from tests.conftest import REPO


def evaluation(number: int) -> Evaluation:
    return Evaluation(f"e{number}", "/models/ü", ("copy", "sort"), None if number % 2 else 7, float(number))


def test_what_is_put_in_comes_out(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path / "queue")) as ledger:
        for number in range(5):
            ledger.add(evaluation(number))
        running = started(evaluation(1), "run/a", 2.5)
        assert ledger.replace(evaluation(1), running)
        ended = done(running, "run/a", "fake", {"sort": 3}, 3.5)
        assert ledger.replace(running, ended)
    with closing(Ledger(tmp_path / "queue")) as ledger:
        assert ledger.get("e1") == ended
        assert ledger.get("e9") is None
        assert [e.evaluation_id for e in ledger.unfinished()] == ["e0", "e2", "e3", "e4"]
        assert [e.evaluation_id for e in ledger.listed(None, 3, None)] == ["e4", "e3", "e2"]
        assert [e.evaluation_id for e in ledger.listed(None, 9, "e2")] == ["e1", "e0"]
        assert ledger.listed(State.done, 9, None) == [ended]
        assert ledger.counts() == dict.fromkeys(State, 0) | {State.queued: 4, State.done: 1}
        with pytest.raises(UserError, match="no evaluation e9"):
            ledger.listed(None, 3, "e9")


def test_of_two_changes_to_the_same_state_one_wins(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path / "queue")) as ledger:
        ledger.add(evaluation(1))
        won: list[bool] = []
        changes = [started(evaluation(1), "run/a", 2.0), cancelled(evaluation(1), 2.0)] * 8
        threads = [threading.Thread(target=lambda c=change: won.append(ledger.replace(evaluation(1), c))) for change in changes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(won) == [False] * 15 + [True]


def test_a_writer_that_is_killed_loses_nothing_it_acknowledged(tmp_path: Path, environment: dict[str, str]) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom eval_service.http.ledger import Ledger\n"
        "from tests.unit.test_serve_ledger import evaluation\nledger, number = Ledger(Path(sys.argv[1])), 0\n"
        "while True:\n    ledger.add(evaluation(number))\n    print(number, flush=True)\n    number += 1\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "queue")]
    with subprocess.Popen(command, cwd=REPO, env=environment, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        acknowledged = [int(next(writer.stdout)) for _ in range(50)]
        writer.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
    with closing(Ledger(tmp_path / "queue")) as ledger:
        kept = ledger.unfinished()
    assert [e.evaluation_id for e in kept[: len(acknowledged)]] == [f"e{number}" for number in acknowledged]
    assert len(kept) - len(acknowledged) in (0, 1)  # the last may have been kept and not told


def test_a_queue_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "queue").write_bytes(os.urandom(5000))
    with pytest.raises(DataMismatch, match="is damaged"):
        Ledger(tmp_path / "queue")
    with closing(Ledger(tmp_path / "held")) as ledger:
        ledger.add(evaluation(1))
        with pytest.raises(EnvironmentFailure, match="is locked"):
            Ledger(tmp_path / "held")


def test_a_queue_of_another_version_is_left_alone(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path / "queue")) as ledger:
        ledger._connection.execute("PRAGMA user_version=99")
    with pytest.raises(DataMismatch, match="another version"):
        Ledger(tmp_path / "queue")


def test_scores_are_known_as_they_appear(tmp_path: Path) -> None:
    row = {"checkpoint_id": "run/a", "task": "copy", "task_version": 1, "metric": "acc", "value": 0.5, "stderr": 0.1, "n": 9, "chance": 0.2}
    row |= {"higher_is_better": True, "engine": "torch/float32", "format": "text", "shots": 0}
    known, by_fake = ScoredSoFar(tmp_path), ScoredSoFar(tmp_path, "fake")
    known.refresh()
    assert known.items == {}
    Results(tmp_path).write("scores", [row, row | {"metric": "brier"}])
    Results(tmp_path).write("scores", [row | {"task": "sort", "engine": "fake"}])
    for scored in (known, by_fake):
        scored.refresh()
        scored.refresh()
    assert known.items == {("run/a", Asked("copy", "text"), 1): 9, ("run/a", Asked("sort", "text"), 1): 9}
    assert by_fake.items == {("run/a", Asked("sort", "text"), 1): 9}
    Results(tmp_path).write("scores", [row | {"format": "letter", "n": 7}])
    known.refresh()
    also = {("run/a", Asked("copy", "letter"), 1)}
    assert known.items.keys() == by_fake.items.keys() | {("run/a", Asked("copy", "text"), 1)} | also
    (tmp_path / "parts" / "scores" / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataMismatch, match=r"x\.parquet cannot be read"):
        known.refresh()
