"""`losslens status --web` as its clients meet it: who is answered, with what, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.status import status
from jobs.status_page import HOST, Watched, status_server
from losslens.errors import UserError
from losslens.report.live import world_sizes
from losslens.results import Results
from tests.conftest import REPO
from tests.running import save_another, write_running


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write_running(tmp_path)
    return tmp_path


@pytest.fixture
def url(results: Path) -> Iterator[str]:
    with status_server(results, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://{HOST}:{server.server_port}"
        server.shutdown()
        thread.join()


def ask(url: str, host: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_only_this_machine_is_answered(url: str) -> None:
    port = url.rpartition(":")[2]
    assert ask(f"{url}/")[0] == 200
    assert ask(f"{url}/state", f"localhost:{port}")[0] == 200
    assert ask(f"{url}/state", f"elsewhere.example:{port}") == (403, "this page is for this machine")
    assert ask(f"{url}/../etc/passwd")[0] == 404
    assert ask(f"{url}/state?x=1")[0] == 404


def test_answers(url: str, results: Path) -> None:
    state = json.loads(ask(f"{url}/state")[1])
    assert [(row["run"], row["state"]) for row in state["runs"]] == [(row["run"], row["state"]) for row in status(results)]
    assert state["headline"].startswith("cluster: 3 nodes (1 on their way)")
    assert [size for _, size in state["world"]["synthetic-d48-s0"]] == [3, 0, 2]
    (study,) = json.loads(ask(f"{url}/studies")[1])
    assert (study["name"], len(study["saved"]), len(study["panels"])) == ("synthetic", 88, 3)
    assert all(saved == scored for _, saved, scored in study["saved"])
    assert max(tokens for _, tokens, _ in study["training"]) > 1_900_000

    save_another(results, "d48")
    later = json.loads(ask(f"{url}/state")[1])
    assert later["version"] != state["version"]
    (study,) = json.loads(ask(f"{url}/studies")[1])
    assert [scored for _, _, scored in study["saved"]].count(None) == 1


def test_studies_are_gathered_once_while_nothing_comes(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[Any] = []

    def gather(stored: Results) -> list[Any]:
        gathered.append(stored)
        return []

    monkeypatch.setattr("jobs.status_page.live_studies", gather)
    watched = Watched(results)
    assert [watched.studies() for _ in range(3)] == ["[]"] * 3
    assert len(gathered) == 1
    save_another(results, "d64")
    watched.studies()
    assert len(gathered) == 2


def test_a_part_that_cannot_be_read_is_answered_with_its_sentence(url: str, results: Path) -> None:
    (results / "parts" / "scores" / "broken.parquet").write_bytes(b"not parquet")
    code, text = ask(f"{url}/studies")
    assert (code, "broken.parquet" in json.loads(text)["error"]) == (503, True)


def test_a_loss_that_is_no_number_is_null(results: Path) -> None:
    (results / "checkpoints" / "synthetic-d48-s0" / "progress.json").write_text('{"loss": NaN}', encoding="utf-8")
    losses = {row["run"]: row["loss"] for row in json.loads(Watched(results).state())["runs"]}
    assert (losses["synthetic-d48-s0"], losses["synthetic-d64-s0"]) == (None, 2.1)


def test_bad_input(tmp_path: Path, results: Path) -> None:
    with pytest.raises(UserError, match="holds no results"):
        status_server(tmp_path / "absent", 0)
    with status_server(results, 0) as server, pytest.raises(UserError, match="cannot be listened to"):
        status_server(results, server.server_port)


def test_the_verb_serves_until_it_is_told_to_end(results: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "jobs.cli", "status", "--web", "--port", "0", "--results", os.fspath(results)]
    with subprocess.Popen(command, cwd=REPO, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        said = process.stderr.readline()
        found = re.match(r"http://127\.0\.0\.1:\d+/", said)
        assert found, said
        assert "<title>losslens: what runs</title>" in ask(found[0])[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_world_sizes() -> None:
    events: list[dict[str, Any]] = [
        {"time": 1, "event": "state", "state": "scheduling"},
        {"time": 2, "event": "entered", "world_size": 2},
        {"time": 3, "event": "state", "state": "running"},
        {"time": 4, "event": "saved", "step": 3},
        {"time": 5, "event": "failed"},
        {"time": 6, "event": "state", "state": "restarting"},
        {"time": 7, "event": "entered", "world_size": 4},
        {"time": 8, "event": "state", "state": "finished"},
    ]
    assert world_sizes(events) == [(1, 0), (2, 2), (5, 0), (7, 4), (8, 0)]
    assert world_sizes([]) == []
