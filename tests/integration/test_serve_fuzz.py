"""Requests that nobody thought of, made from the service's own OpenAPI: none ends in a 500, every answer is as declared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from eval_service.http.evaluations import Evaluation, cancelled, done, failed, started
from eval_service.http.ledger import Ledger
from losslens.errors import DataMismatch
from losslens.results import Results
from tests.integration.test_serve_app import front, listening
from tests.serving import ask as ask_url
from tests.serving import fake_model

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 25
IDS = ("queued", "running", "done", "failed", "cancelled", "nobody")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def api(models: Path) -> Iterator[Any]:
    """The schema of a service that has an evaluation in every state."""
    model = str(fake_model(models / "models" / "a"))
    row = {"checkpoint_id": "run/a", "task": "skill_copy", "task_version": 1, "metric": "acc", "value": 0.5, "stderr": 0.1, "n": 9}
    row |= {"chance": 0.2, "higher_is_better": True, "engine": "fake", "format": "text", "shots": 0}
    Results(models / "results").write("scores", [row])
    with front(models) as made:
        for name in IDS[:-1]:
            _put(made.ledger, Evaluation(name, model, ("skill_copy",), None, 1.0))
        with listening(made) as url:
            yield schemathesis.openapi.from_url(f"{url}/openapi.json")


def _put(ledger: Ledger, queued: Evaluation) -> None:
    ledger.add(queued)
    running = started(queued, "run/a", 2.0)
    after = {
        "queued": queued,
        "running": running,
        "done": done(running, "run/a", "fake", {"skill_sort": 3}, 3.0),
        "failed": failed(running, DataMismatch("damaged", "copy it"), 3.0),
        "cancelled": cancelled(queued, 3.0),
    }[queued.evaluation_id]
    assert ledger.replace(queued, replace(after))


OPERATIONS = [
    ("POST", "/evaluations"),
    ("GET", "/evaluations"),
    ("GET", "/evaluations/{id}"),
    ("GET", "/evaluations/{id}/scores"),
    ("DELETE", "/evaluations/{id}"),
    ("GET", "/metrics"),
    ("GET", "/healthz"),
]


def test_all_operations_are_tried(api: Any) -> None:
    assert {operation.ok().label for operation in api.get_all_operations()} == {f"{method} {path}" for method, path in OPERATIONS}


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_as_declared(method: str, path: str, mode: GenerationMode, api: Any, models: Path) -> None:
    if (path, mode) == ("/healthz", GenerationMode.NEGATIVE):
        pytest.skip("it takes nothing that could be wrong")
    statuses = Counter[int]()

    @given(case=api[path][method].as_strategy(generation_mode=mode), near=st.sampled_from(IDS))
    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None)
    def ask(case: Any, near: str) -> None:
        if near != "nobody":  # mostly ask for what is there
            if "id" in (case.path_parameters or {}):
                case.path_parameters["id"] = near
            if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
                case.body |= {"tasks": ["skill_copy"], "checkpoint": str(models / "models" / "a")}
        statuses[case.call_and_validate(checks=CHECKS).status_code] += 1

    ask()
    assert statuses
    if mode is GenerationMode.POSITIVE:
        assert min(statuses) < 300, statuses


def test_random_bytes_are_refused(api: Any) -> None:
    @given(st.binary(max_size=200), st.sampled_from(["application/json", "application/json; charset=utf-16", "text/plain", "x"]))
    @settings(max_examples=EXAMPLES, database=None)
    def send(body: bytes, kind: str) -> None:
        status, answer = ask_url(api.location.replace("/openapi.json", "/evaluations"), "POST", body, **{"Content-Type": kind})
        assert status in (400, 422)
        assert sorted(answer) == ["detail", "remedy"]

    send()
