"""The states of an evaluation one step at a time, what is due, how many scorers stay; which paths and tokens are let in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval_service.admission import OutsideRoots, admit
from eval_service.backlog import Done
from eval_service.engine import EngineDied
from eval_service.http.evaluations import (
    ENDED,
    MOST_ATTEMPTS,
    Due,
    Evaluation,
    Settled,
    State,
    after,
    cancelled,
    done,
    due,
    failed,
    interrupted,
    put_back,
    started,
)
from eval_service.http.security import Token, is_loopback, read_token, require_token
from eval_service.pool import seats_to_release
from eval_service.questions import Asked
from eval_service.scorer import Finished
from losslens.errors import DataMismatch, EnvironmentFailure, UserError
from tests.serving import fake_model

COPY, SORT, SORT_BY_LETTER = Asked("copy", "open"), Asked("sort", "text"), Asked("sort", "letter")
QUEUED = Evaluation("e1", "/models/a", ("copy", "sort"), None, 10.0)
RUNNING = started(QUEUED, "run/a", 11.0)
BROKEN = DataMismatch("it is damaged", "copy it again")


def test_from_queued_to_done() -> None:
    assert (RUNNING.state, RUNNING.attempts, RUNNING.started_at, RUNNING.checkpoint_id) == (State.running, 1, 11.0, "run/a")
    ended = done(RUNNING, "run/a", "fake", {"sort": 4}, 12.0)
    assert (ended.state, ended.engine, ended.reused, ended.ended_at) == (State.done, "fake", {"sort": 4}, 12.0)


def test_what_had_been_scored_is_done_without_an_attempt() -> None:
    assert (done(QUEUED, "run/a", None, {}, 12.0).state, done(QUEUED, "run/a", None, {}, 12.0).attempts) == (State.done, 0)


def test_a_death_is_tried_again_until_it_has_been_too_often() -> None:
    evaluation = QUEUED
    for attempt in range(1, MOST_ATTEMPTS):
        evaluation = interrupted(started(evaluation, "run/a", 11.0), "its scorer died", 12.0)
        assert (evaluation.state, evaluation.attempts, evaluation.error) == (State.queued, attempt, "its scorer died")
    evaluation = interrupted(started(evaluation, "run/a", 11.0), "its scorer died", 13.0)
    assert (evaluation.state, evaluation.attempts, evaluation.ended_at) == (State.failed, MOST_ATTEMPTS, 13.0)
    assert evaluation.error == "its scorer died, in each of 3 attempts"
    assert "submit it again" in str(evaluation.remedy)


def test_a_stop_in_good_order_is_no_attempt() -> None:
    assert put_back(RUNNING) == replace(QUEUED, checkpoint_id="run/a")


@pytest.mark.parametrize("evaluation", [QUEUED, RUNNING])
def test_cancelling(evaluation: Evaluation) -> None:
    gone = cancelled(evaluation, 12.0)
    assert (gone.state, gone.ended_at) == (State.cancelled, 12.0)
    assert cancelled(gone, 13.0) is gone
    with pytest.raises(UserError, match="the evaluation e1 is failed already"):
        cancelled(failed(evaluation, BROKEN, 12.0), 13.0)


@pytest.mark.parametrize("state", ENDED)
def test_what_has_ended_stays_so(state: State) -> None:
    ended = replace(RUNNING, state=state)
    with pytest.raises(AssertionError):
        started(ended, "a", 1.0)
    with pytest.raises(AssertionError):
        done(ended, "a", None, {}, 1.0)
    with pytest.raises(AssertionError):
        failed(ended, BROKEN, 1.0)


def test_what_the_pool_answers() -> None:
    finished = Finished("run/a", (COPY,), engine="torch/float32")
    assert after(RUNNING, finished, {"sort": 4}, 12.0) == done(RUNNING, "run/a", "torch/float32", {"sort": 4}, 12.0)
    damaged = after(RUNNING, replace(finished, error=BROKEN), {}, 12.0)
    assert (damaged.state, damaged.error, damaged.remedy) == (State.failed, "it is damaged", "copy it again")
    assert after(RUNNING, replace(finished, error=EngineDied("its scorer died")), {}, 12.0).state is State.queued
    full = EnvironmentFailure("No space is left", "Free some")
    assert after(RUNNING, replace(finished, error=full), {}, 12.0).state is State.failed


def named(number: int, tasks: tuple[str, ...] = ("copy",), attempts: int = 0) -> Evaluation:
    return Evaluation(f"e{number}", "/models/a", tasks, None, float(number), attempts=attempts)


VERSIONS = {"copy": {COPY: 1}, "sort": {SORT: 2, SORT_BY_LETTER: 2}, "sort:text": {SORT: 2}}


def test_one_evaluation_of_a_checkpoint_at_a_time_the_others_wait() -> None:
    first, second, other = named(1), named(2), named(3)
    waiting = [(second, "a"), (other, "b"), (first, "a")]
    assert due(waiting, (), {}, VERSIONS) == [Due("e1", (COPY,), {}), Due("e3", (COPY,), {})]
    assert due(waiting, {"a"}, {}, VERSIONS) == [Due("e3", (COPY,), {})]


def test_what_is_stored_in_its_present_version_is_not_scored_again() -> None:
    both = named(1, ("copy", "sort:text"))
    assert due([(both, "a")], (), {("a", COPY, 1): 7, ("a", SORT, 1): 9}, VERSIONS) == [Due("e1", (SORT,), {"copy:open": 7})]
    stored = {("a", COPY, 1): 7, ("a", SORT, 2): 9}
    assert due([(both, "a")], (), stored, VERSIONS) == [Settled("e1", {"copy:open": 7, "sort:text": 9})]
    assert due([(both, "b")], (), {("a", COPY, 1): 7}, VERSIONS) == [Due("e1", (COPY, SORT), {})]


def test_a_format_is_stored_or_missing_by_itself() -> None:
    stored = {("a", SORT, 2): 9}
    assert due([(named(1, ("sort",)), "a")], (), stored, VERSIONS) == [Due("e1", (SORT_BY_LETTER,), {"sort:text": 9})]
    assert due([(named(1, ("sort:text", "sort")), "b")], (), stored, VERSIONS) == [Due("e1", (SORT, SORT_BY_LETTER), {})]
    assert due([(named(1, ("sort:text",)), "a")], (), {("a", SORT_BY_LETTER, 2): 9}, VERSIONS) == [Due("e1", (SORT,), {})]


def test_what_has_killed_a_scorer_waits_behind_all_others() -> None:
    assert [move.evaluation_id for move in due([(named(1, attempts=1), "a"), (named(9), "b")], (), {}, VERSIONS)] == ["e9", "e1"]


@given(st.lists(st.tuples(st.integers(0, 4), st.sets(st.sampled_from(sorted(VERSIONS)), min_size=1)), max_size=12))
def test_handing_out_until_nothing_is_due_scores_each_task_once(asked: list[tuple[int, set[str]]]) -> None:
    waiting = {f"e{n}": (named(n, tuple(sorted(tasks))), f"c{checkpoint}") for n, (checkpoint, tasks) in enumerate(asked)}
    scored: dict[Done, int] = {}
    runs: list[tuple[str, Asked]] = []
    while waiting:
        moves = due(list(waiting.values()), (), scored, VERSIONS)
        assert moves
        for move in moves:
            _, checkpoint_id = waiting.pop(move.evaluation_id)
            if isinstance(move, Due):
                runs += [(checkpoint_id, missing) for missing in move.missing]
                scored.update({(checkpoint_id, missing, VERSIONS[missing.task][missing]): 1 for missing in move.missing})
    assert sorted(runs) == sorted({(f"c{checkpoint}", each) for checkpoint, tasks in asked for task in tasks for each in VERSIONS[task]})


@pytest.mark.parametrize(
    ("idle_s", "seats", "least", "released"),
    [([], 3, 0, 0), ([9.0], 3, 0, 0), ([12.0, 9.0], 2, 0, 1), ([12.0, 11.0], 2, 1, 1), ([12.0, 11.0], 2, 2, 0), ([12.0], 1, 5, 0)],
)
def test_idle_scorers_go_and_the_least_number_stays(idle_s: list[float], seats: int, least: int, released: int) -> None:
    assert seats_to_release(idle_s, seats, least, 10.0) == released


def test_a_model_under_a_root_is_admitted(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "models" / "a")
    (tmp_path / "short").symlink_to(tmp_path / "models")
    assert admit(str(model), [tmp_path / "elsewhere", tmp_path / "models"]) == model
    assert admit(str(tmp_path / "short" / "a"), [tmp_path / "models"]) == model


def escapes(root: Path, outside: Path) -> dict[str, str]:
    """Ways to name `outside` from below `root`."""
    fake_model(outside)
    (root / "link").symlink_to(outside)
    inside = fake_model(root / "inside")
    weights = fake_model(root / "weights")
    (weights / "model.safetensors").unlink()
    (weights / "model.safetensors").symlink_to(outside / "model.safetensors")
    return {
        "another directory": str(outside),
        "dots": f"{root}/../{outside.name}",
        "dots that come back": f"{inside}/../inside",
        "a symlink": str(root / "link"),
        "a symlink to the weights": str(weights),
        "a name that begins alike": f"{root}-and-more",
        "a relative path": os.path.relpath(outside),
    }


def test_no_way_leads_out_of_the_roots(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for way, path in escapes(tmp_path / "models", tmp_path / "models-and-more").items():
        with pytest.raises(OutsideRoots, match="allowed root"):
            pytest.fail(f"{way}: {admit(path, [tmp_path / 'models'])}")


def only_pickle(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def with_code(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "odd", "auto_map": {"AutoModel": "modeling.Odd"}}))


def with_tokenizer_code(model: Path) -> None:
    (model / "tokenizer_config.json").write_text('{"\\u0061uto_map": {"AutoTokenizer": ["tokenization.Odd", null]}}')


def with_weights_elsewhere(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "../b/model.safetensors"}}))


def nested_json(model: Path) -> None:
    (model / "config.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (only_pickle, "pickles|no model.safetensors"),
        (with_code, "asks for code of its own"),
        (with_tokenizer_code, "asks for code of its own"),
        (with_weights_elsewhere, "does not name files beside it"),
        (nested_json, "cannot be read"),
        (lambda model: (model / "config.json").unlink(), "no config.json"),
    ],
)
def test_what_is_no_model_of_weights_alone_is_refused(spoil: Callable[[Path], Any], sentence: str, tmp_path: Path) -> None:
    model = fake_model(tmp_path / "a")
    spoil(model)
    with pytest.raises(UserError, match=sentence):
        admit(str(model), [tmp_path])


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "nowhere", "loop"])
def test_what_is_no_path_is_refused(path: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError):
        admit(str(tmp_path / path) if "\0" not in path else path, [tmp_path])


def test_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("0123456789abcdef\n", encoding="utf-8")
    monkeypatch.setenv("LOSSLENS_TOKEN", "another-token-0123")
    assert read_token(file) == "0123456789abcdef"
    assert "LOSSLENS_TOKEN" not in os.environ
    monkeypatch.setenv("LOSSLENS_TOKEN", "another-token-0123")
    assert read_token(None) == "another-token-0123"
    assert read_token(None) is None
    for bad in ("", "short", "two words of a token"):
        file.write_text(bad, encoding="utf-8")
        with pytest.raises(UserError, match="the token is no word"):
            read_token(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_token(tmp_path / "nowhere")
    token = Token("0123456789abcdef")
    assert token.is_borne("0123456789abcdef")
    assert not any(map(token.is_borne, ("", "0123456789abcde", "0123456789abcdefg", "é\udc80")))


def test_only_this_machine_is_listened_to_without_a_token() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "127.9.9.9", "0.0.0.0", "10.0.0.1")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    require_token("127.0.0.1", None)
    require_token("0.0.0.0", "0123456789abcdef")
    with pytest.raises(UserError, match="a token is needed"):
        require_token("0.0.0.0", None)
    with pytest.raises(UserError, match="no address"):
        require_token("256.1.1.1", None)
