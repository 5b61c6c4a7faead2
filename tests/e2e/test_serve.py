"""`losslens serve` as users meet it: a real process on a local Ray, whose scorers and which itself are killed with -9."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil
import pytest

from losslens.results import Results
from losslens.tasks.registry import GENERATED
from tests.serving import Service, ask, fake_model
from tests.tiny_models import tiny_checkpoint

TOKEN = "a-token-of-this-test-0123456789"
SLOW = tuple(GENERATED)  # together long enough to be killed at
EVALUATIONS, CLIENTS = 40, 4


@pytest.fixture
def serve(tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[..., Service]]:
    """`serve(option, ...)` starts the service; what is left at the end is killed."""
    started: list[Service] = []

    def run(*options: str | Path, token: str = "") -> Service:
        started.append(Service(tmp_path / f"serve-{len(started)}", environment, *options, token=token))
        return started[-1]

    yield run
    for service in started:
        service.clear()


def scored(results: Path) -> list[dict[str, Any]]:
    """How often each score is there: as SQL sees it, and as it was written."""
    key = "checkpoint_id, task, task_version, format, shots, metric"
    found: list[dict[str, Any]] = (
        Results(results)
        .query(
            f"SELECT {key}, count(*) AS seen, any_value(w.n) AS written FROM scores JOIN "
            f"(SELECT {key}, count(*) AS n FROM parts.scores GROUP BY ALL) AS w USING ({key}) GROUP BY {key} ORDER BY ALL"
        )
        .to_pylist()
    )
    return found


class Clients:
    """Threads that submit evaluations, and go on when the service is not there for a while."""

    def __init__(self, service: Service, checkpoints: list[Path]) -> None:
        self._service, self._left, self._lock = service, list(checkpoints), threading.Lock()
        self.accepted: dict[str, Path] = {}
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._left:
                    return
                checkpoint = self._left.pop()
            while True:
                try:
                    self.accepted[self._service.submit(checkpoint, SLOW)] = checkpoint
                    break
                except (OSError, HTTPException):
                    time.sleep(0.05)
            time.sleep(0.1)  # so that kills meet clients that are still submitting


def test_kills_lose_nothing_and_double_nothing(serve: Callable[..., Service], tmp_path: Path) -> None:
    models, results = tmp_path / "models", tmp_path / "results"
    checkpoints = [fake_model(models / "run" / f"step-{number:03d}") for number in range(EVALUATIONS)]
    service = serve("--engine", "fake", "--root", models, "--results", results, "--max-scorers", "2", token=TOKEN)
    assert ask(service.url + "/evaluations", "GET")[0] == 401
    clients = Clients(service, [*checkpoints, checkpoints[0]])  # one is asked for twice
    service.wait_for(lambda: service.scorers(at_work=True))[0].kill()
    service.wait_for(lambda: len(list(results.glob("parts/scores/*.parquet"))) > 4)
    assert service.end(signal.SIGKILL) == -signal.SIGKILL
    service.start()
    clients.join()
    assert len(clients.accepted) >= EVALUATIONS + 1
    states = {evaluation_id: service.ended(evaluation_id) for evaluation_id in clients.accepted}
    assert {shown["state"] for shown in states.values()} == {"done"}
    assert sum(shown["attempts"] for shown in states.values()) >= EVALUATIONS  # more where a kill met work, as it mostly does
    rows = scored(results)
    assert {row["seen"] for row in rows} == {1}
    assert {row["written"] for row in rows} == {1}
    assert len({row["checkpoint_id"] for row in rows}) == EVALUATIONS
    assert {row["task"] for row in rows} == set(SLOW)

    status, text = service.ask("GET", "/metrics")
    assert status == 200
    assert f'losslens_evaluations{{state="done"}} {len(states)}.0' in text
    last = service.submit(fake_model(models / "run" / "step-900"), SLOW)
    service.wait_for(lambda: service.ask("GET", f"/evaluations/{last}")[1]["state"] == "running")
    assert service.end(signal.SIGTERM) == 0  # what runs may end first
    assert len({row["checkpoint_id"] for row in scored(results)}) == EVALUATIONS + 1


def test_real_models_and_what_is_no_model(serve: Callable[..., Service], tmp_path: Path) -> None:
    results = tmp_path / "results"
    good, damaged, gone = (tiny_checkpoint(results, "tiny", step, seed=step) for step in (1, 2, 3))
    with (damaged / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    outside = fake_model(tmp_path / "outside")
    (results / "link").symlink_to(outside)
    service = serve("--engine", "torch", "--results", results)
    for path in (outside, results / "link", results / ".." / "outside", Path("/etc")):
        assert service.ask("POST", "/evaluations", {"checkpoint": str(path), "tasks": ["skill_copy"]})[0] == 403
    asked = {path: service.submit(path, ["skill_copy", "next_char"], limit=4) for path in (damaged, gone, good)}
    (gone / "config.json").unlink()
    shown = {path: service.ended(evaluation_id) for path, evaluation_id in asked.items()}
    assert (shown[good]["state"], shown[good]["engine"], shown[good]["checkpoint_id"]) == ("done", "torch/float32", "tiny/step-00000001")
    assert shown[damaged]["state"] == "failed"
    assert "model.safetensors" in shown[damaged]["error"]
    assert shown[gone]["state"] in ("failed", "done")  # done, if it was scored before the file went
    status, scores = service.ask("GET", f"/evaluations/{asked[good]}/scores")
    assert status == 200
    assert {(score["task"], score["n"]) for score in scores} == {("skill_copy", 4), ("next_char", 4)}
    again = service.ended(service.submit(good, ["skill_copy"], limit=9))
    assert (again["state"], again["attempts"], again["reused"]) == ("done", 0, {"skill_copy:open": 4})
    assert service.end(signal.SIGTERM) == 0
    assert "Traceback" not in service.log()
    with contextlib.suppress(psutil.NoSuchProcess):
        assert not psutil.Process(service.process.pid).children(recursive=True)
