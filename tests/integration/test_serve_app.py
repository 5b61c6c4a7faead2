"""What the HTTP front answers, asked over real sockets of the real application; nothing is scored, so Ray is not needed."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from eval_service.http.app import Front, create_app
from eval_service.http.catalogue import Catalogue
from eval_service.http.dispatcher import Dispatcher
from eval_service.http.evaluations import Evaluation, done, failed, started
from eval_service.http.ledger import Ledger
from eval_service.http.metrics import Metrics
from eval_service.http.security import MOST_BODY_BYTES, Token
from eval_service.http.server import listen, run
from eval_service.pool import ScoringPool
from eval_service.questions import Questions
from jobs.exclusive import exclusive
from jobs.serve import Settings, serve
from losslens.errors import DataMismatch, EnvironmentFailure, UserError
from tests.browser import browser, needs_browser
from tests.serving import ask, fake_model

TOKEN = "a-token-of-this-test-0123456789"
Ask = Callable[..., tuple[int, Any]]


@contextmanager
def front(tmp_path: Path, token: str = "") -> Iterator[Front]:
    """The parts of a service whose dispatcher never runs."""
    models, results = tmp_path / "models", tmp_path / "results"
    for folder in (models, results):
        folder.mkdir(exist_ok=True)
    pool = ScoringPool(results, Questions(()), "fake", actors=0)
    catalogue, metrics = Catalogue(Questions(())), Metrics()
    with closing(Ledger(tmp_path / "queue")) as ledger:
        dispatcher = Dispatcher(ledger, pool, catalogue, results, [models], engine="fake", metrics=metrics, say=print)
        yield Front(ledger, dispatcher, catalogue, metrics, results, [models], Token(token) if token else None)


@contextmanager
def listening(made: Front) -> Iterator[str]:
    """Its URL while it listens."""
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(create_app(made), log_config=None, lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Of a service without a token."""
    with front(tmp_path) as made, listening(made) as listened:
        yield listened


@pytest.fixture
def here(tmp_path: Path) -> Iterator[tuple[Front, Ask]]:
    """A service without a token, and `ask(method, path, body)`."""
    with front(tmp_path) as made, listening(made) as url:
        yield made, lambda method, path, body=None, **headers: ask(url + path, method, body, **headers)


def test_an_evaluation_is_kept_shown_listed_and_cancelled(here: tuple[Front, Ask], tmp_path: Path) -> None:
    made, ask_here = here
    model = fake_model(tmp_path / "models" / "a")
    status, accepted = ask_here("POST", "/evaluations", {"checkpoint": str(model), "tasks": ["skill_copy", "skill_copy"], "limit": 5})
    assert (status, list(accepted)) == (202, ["id"])
    path = f"/evaluations/{accepted['id']}"
    status, shown = ask_here("GET", path)
    assert status == 200
    assert (shown["state"], shown["tasks"], shown["limit"], shown["attempts"]) == ("queued", ["skill_copy"], 5, 0)
    assert shown["submitted_at"].endswith("Z")
    assert ask_here("GET", "/evaluations") == (200, [shown])
    assert ask_here("GET", "/evaluations?state=done") == (200, [])
    assert ask_here("GET", f"/evaluations?before={shown['id']}") == (200, [])
    assert ask_here("GET", path + "/scores") == (200, [])
    assert [ask_here("DELETE", path)[0] for _ in range(2)] == [200, 200]
    assert ask_here("GET", path)[1]["state"] == "cancelled"
    assert made.ledger.unfinished() == []


def test_what_has_ended_cannot_be_cancelled(here: tuple[Front, Ask], tmp_path: Path) -> None:
    made, ask_here = here
    model = fake_model(tmp_path / "models" / "a")
    _, accepted = ask_here("POST", "/evaluations", {"checkpoint": str(model), "tasks": ["skill_copy"]})
    queued = made.ledger.get(accepted["id"])
    assert queued is not None
    assert made.ledger.replace(queued, failed(queued, DataMismatch("it is damaged", "copy it again"), 1.0))
    status, answer = ask_here("DELETE", f"/evaluations/{accepted['id']}")
    assert (status, answer["detail"]) == (409, f"the evaluation {accepted['id']} is failed already")
    shown = ask_here("GET", f"/evaluations/{accepted['id']}")[1]
    assert (shown["error"], shown["remedy"]) == ("it is damaged", "copy it again")


@pytest.mark.parametrize(
    ("change", "status", "sentence"),
    [
        ({"tasks": ["skill_coppy"]}, 422, "there is no task 'skill_coppy'"),
        ({"tasks": ["mine.yaml"]}, 422, "there is no task 'mine.yaml'"),
        ({"tasks": ["/etc/passwd"]}, 422, "there is no task"),
        ({"tasks": ["mmlu"]}, 422, "needs task data"),
        ({"tasks": ["skill_copy:text"]}, 422, "the task `skill_copy` has no format `text`"),
        ({"tasks": ["mine.yaml:text"]}, 422, "there is no task 'mine.yaml'"),
        ({"tasks": []}, 422, "tasks: List should have at least 1 item"),
        ({"tasks": ["skill_copy"] * 101}, 422, "tasks: List should have at most 100 items"),
        ({"limit": 1}, 422, "limit: Input should be greater than or equal to 2"),
        ({"limit": "5"}, 422, "limit: Input should be a valid integer"),
        ({"extra": 1}, 422, "extra: Extra inputs are not permitted"),
        ({"checkpoint": "/etc"}, 403, "/etc is not under an allowed root"),
        ({"checkpoint": "/nowhere/at/all"}, 403, "is not under an allowed root"),  # not told whether it is there
        ({"checkpoint": "a\0b"}, 422, "is no path"),
    ],
)
def test_what_is_refused_and_why(here: tuple[Front, Ask], tmp_path: Path, change: dict[str, Any], status: int, sentence: str) -> None:
    made, ask_here = here
    (tmp_path / "mine.yaml").write_text("name: mine", encoding="utf-8")
    body = {"checkpoint": str(fake_model(tmp_path / "models" / "a")), "tasks": ["skill_copy"]} | change
    found, answer = ask_here("POST", "/evaluations", body)
    assert (found, sentence in answer["detail"]) == (status, True), answer
    assert made.ledger.counts() == dict.fromkeys(made.ledger.counts(), 0)


def test_large_bodies_are_not_read(here: tuple[Front, Ask]) -> None:
    _, ask_here = here
    whole = json.dumps({"checkpoint": "/x", "tasks": ["skill_copy"]}).encode()
    assert ask_here("POST", "/evaluations", whole + b" " * (MOST_BODY_BYTES - len(whole)))[0] == 403
    assert ask_here("POST", "/evaluations", whole + b" " * (MOST_BODY_BYTES - len(whole) + 1))[0] == 413


def test_a_body_that_is_not_json_is_refused(here: tuple[Front, Ask]) -> None:
    _, ask_here = here
    assert ask_here("POST", "/evaluations", b"{")[0] == 422
    assert ask_here("POST", "/evaluations", b"{}", **{"Content-Type": "text/plain"})[0] == 422
    assert ask_here("POST", "/evaluations")[0] == 422


def test_a_page_cannot_reach_it_through_a_name_of_its_own(here: tuple[Front, Ask]) -> None:
    _, ask_here = here
    assert ask_here("GET", "/evaluations", Host="evil.example")[0] == 421
    assert ask_here("GET", "/evaluations", Host="localhost:8117")[0] == 200
    assert ask_here("GET", "/evaluations", Host="[::1]:8117")[0] == 200


def test_without_the_token_nothing_is_told_or_done(tmp_path: Path) -> None:
    guarded = [("POST", "/evaluations"), ("GET", "/evaluations"), ("GET", "/evaluations/x"), ("GET", "/evaluations/x/scores")]
    guarded += [("DELETE", "/evaluations/x"), ("GET", "/metrics")]
    with front(tmp_path, TOKEN) as made, listening(made) as url:
        for method, path in guarded:
            for token in ("", TOKEN[:-1], TOKEN + "0"):
                assert ask(url + path, method, token=token)[0] == 401
            assert ask(url + path, method, token=TOKEN)[0] != 401
        for path in ("/", "/healthz", "/openapi.json"):
            assert ask(url + path, "GET", Host="scorer.example")[0] == 200


def test_a_service_that_drains_takes_nothing_new(here: tuple[Front, Ask], tmp_path: Path) -> None:
    made, ask_here = here
    body = {"checkpoint": str(fake_model(tmp_path / "models" / "a")), "tasks": ["skill_copy"]}
    assert ask_here("GET", "/healthz") == (200, {"status": "ready"})
    made.dispatcher.drain(0.0)
    assert ask_here("GET", "/healthz") == (503, {"status": "draining"})
    assert ask_here("POST", "/evaluations", body)[0] == 503
    assert ask_here("GET", "/evaluations")[0] == 200


def test_page_and_metrics(here: tuple[Front, Ask], tmp_path: Path) -> None:
    _, ask_here = here
    status, page = ask_here("GET", "/")
    assert status == 200
    assert "innerHTML" not in page  # what clients send is shown as text
    model = fake_model(tmp_path / "models" / "a")
    ask_here("POST", "/evaluations", {"checkpoint": str(model), "tasks": ["skill_copy"]})
    status, text = ask_here("GET", "/metrics")
    assert status == 200
    assert 'losslens_evaluations{state="queued"} 1.0' in text


@needs_browser
def test_a_browser_shows_the_queue(url: str, tmp_path: Path) -> None:
    model = fake_model(tmp_path / "models" / "<b>bold")
    ask(url + "/evaluations", "POST", {"checkpoint": str(model), "tasks": ["skill_copy"]})
    command = browser(tmp_path / "profile", "--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom", url)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr  # nor does the content security policy complain
    assert "&lt;b&gt;bold" in done.stdout
    assert '<td class="queued">queued</td>' in done.stdout


def test_a_full_disk_is_told_to_clients_and_ends_the_service(here: tuple[Front, Ask], tmp_path: Path) -> None:
    made, ask_here = here
    body = {"checkpoint": str(fake_model(tmp_path / "models" / "a")), "tasks": ["skill_copy"]}
    assert ask_here("POST", "/evaluations", body)[0] == 202
    (tmp_path / "models" / "a" / "config.json").unlink()
    made.ledger._connection.execute("PRAGMA query_only=1")  # every write fails, as on a full disk
    status, answer = ask_here("POST", "/evaluations", body | {"checkpoint": str(fake_model(tmp_path / "models" / "b"))})
    assert (status, "cannot be written" in answer["detail"]) == (503, True)
    with pytest.raises(EnvironmentFailure, match="cannot be written"), listen("127.0.0.1", 0) as listener:
        run(create_app(made), made.dispatcher, listener, 5.0)


def test_what_a_killed_service_left_running_is_queued_again(tmp_path: Path) -> None:
    with front(tmp_path) as made:
        for number in range(3):
            model = fake_model(tmp_path / "models" / f"m{number}")
            made.ledger.add(Evaluation(f"e{number}", str(model), ("skill_copy",), None, float(number)))
        first, second, third = made.ledger.unfinished()
        assert made.ledger.replace(first, started(first, "a", 1.0))
        often = replace(second, attempts=2)
        assert made.ledger.replace(second, often)
        assert made.ledger.replace(often, started(often, "b", 1.0))
        assert made.ledger.replace(third, done(third, "c", "fake", {}, 1.0))
    with front(tmp_path) as made:
        states = {e.evaluation_id: (e.state.value, e.attempts) for e in made.ledger.listed(None, 9, None)}
    assert states == {"e0": ("queued", 1), "e1": ("failed", 3), "e2": ("done", 0)}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"host": "0.0.0.0"}, "a token is needed"),
        ({"roots": (Path("nowhere-at-all"),)}, "is not a directory"),
        ({"min_scorers": 3}, "is above --max-scorers"),
        ({"token_file": Path("nowhere-at-all")}, "cannot be read"),
        ({"host": "192.0.2.1", "token_file": Path("token")}, "cannot be listened to"),
    ],
)
def test_it_refuses_to_start(change: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("token").write_text(TOKEN, encoding="utf-8")
    asked = Settings("127.0.0.1", 0, (), tmp_path / "results", None, "fake", 0, 1, 0.0, None, 60.0)
    with pytest.raises(UserError, match=sentence):
        serve(replace(asked, **change))


def test_one_service_at_a_time_has_a_queue(tmp_path: Path) -> None:
    asked = Settings("127.0.0.1", 0, (), tmp_path / "results", None, "fake", 0, 1, 0.0, None, 60.0)
    with exclusive(tmp_path / "results" / "service"), pytest.raises(UserError, match="another run"):
        serve(asked)


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port} cannot be listened to"):
            listen("127.0.0.1", port)
