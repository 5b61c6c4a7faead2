"""Evaluations on a real Ray: scorers that are killed, checkpoints that kill them, cancelled ones, idle scorers, a drain."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from eval_service.http.catalogue import Catalogue
from eval_service.http.dispatcher import Dispatcher
from eval_service.http.evaluations import Evaluation, State, cancelled
from eval_service.http.ledger import Ledger
from eval_service.http.metrics import Metrics
from eval_service.pool import ScoringPool
from eval_service.questions import Questions
from losslens.results import Results
from losslens.tasks.registry import GENERATED
from tests.serving import fake_model

REPO = Path(__file__).parents[2]
SLOW = tuple(GENERATED)
PATIENCE = 120.0  # seconds


@pytest.fixture(scope="module", autouse=True)
def small_ray() -> Iterator[None]:
    paths = f"{REPO / 'platform'}{os.pathsep}{REPO}"
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        configure_logging=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    yield
    ray.shutdown()


class Desk:
    """A dispatcher whose steps the test takes, and what a client would see of it."""

    def __init__(self, folder: Path, ledger: Ledger, data: Path | None = None, **settings: Any) -> None:
        self.models, self.results, self.ledger = folder / "models", folder / "results", ledger
        self.models.mkdir(exist_ok=True)
        given: dict[str, Any] = {"actors": 1, "options": {"num_cpus": 0.1}} | settings
        self.pool = ScoringPool(self.results, Questions(()), "fake", attempts=1, roots=[self.models], **given)
        self.metrics = Metrics()
        catalogue = Catalogue(Questions((), str(data) if data else None))
        self.dispatcher = Dispatcher(
            ledger, self.pool, catalogue, self.results, [self.models], engine="fake", metrics=self.metrics, say=print
        )

    def submit(self, name: str, tasks: tuple[str, ...] = ("skill_copy",)) -> str:
        evaluation = Evaluation(f"{name}-{time.time_ns()}", str(self.models / name), tasks, None, time.time())
        self.ledger.add(evaluation)
        self.dispatcher.changed(evaluation)
        return evaluation.evaluation_id

    def shown(self, evaluation_id: str) -> Evaluation:
        found = self.ledger.get(evaluation_id)
        assert found is not None
        return found

    def until(self, condition: Callable[[], Any], between: Callable[[], None] = lambda: None) -> None:
        limit = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < limit
            self.dispatcher._step()
            between()

    def ended(self, *ids: str) -> bool:
        return all(self.shown(evaluation_id).ended_at for evaluation_id in ids)

    def kill_scorer_of(self, name: str) -> None:
        for seat in self.pool._seats:
            if seat.assignment is not None and seat.assignment.checkpoint.path.endswith(f"/{name}"):
                ray.kill(seat.actor)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    made: list[Desk] = []
    with closing(Ledger(tmp_path / "queue")) as ledger:
        yield lambda **settings: made.append(Desk(tmp_path, ledger, **settings)) or made[-1]  # type: ignore[func-returns-value]
        for each in made:
            each.dispatcher._lookers.shutdown()
            each.pool.close()


def test_a_checkpoint_that_kills_its_scorers_is_given_up_and_blocks_nobody(desk: Callable[..., Desk]) -> None:
    here = desk()
    for name in ("killer", "good", "swapped", "vanished"):
        fake_model(here.models / name)
    killer, good = here.submit("killer", SLOW), here.submit("good")
    swapped, vanished = here.submit("swapped"), here.submit("vanished")
    here.until(lambda: len(here.dispatcher._waiting) + len(here.dispatcher._given) == 4)
    outside = fake_model(here.models.parent / "outside")
    shutil.rmtree(here.models / "swapped")  # after it was looked at: the scorer looks again
    (here.models / "swapped").symlink_to(outside)
    shutil.rmtree(here.models / "vanished")
    here.until(lambda: here.ended(killer, good, swapped, vanished), lambda: here.kill_scorer_of("killer"))
    assert here.shown(good).state is State.done
    given_up = here.shown(killer)
    assert (given_up.state, given_up.attempts) == (State.failed, 3)
    assert "its scorer died" in str(given_up.error)
    assert "under an allowed root" in str(here.shown(swapped).error)
    assert "is not a directory" in str(here.shown(vanished).error)
    assert here.shown(good).ended_at < given_up.ended_at  # type: ignore[operator]
    scored = Results(here.results).query("SELECT DISTINCT checkpoint_id, task FROM scores").to_pylist()
    assert scored == [{"checkpoint_id": here.shown(good).checkpoint_id, "task": "skill_copy"}]
    described = Results(here.results).query("SELECT path FROM checkpoints").column(0).to_pylist()
    assert str(here.models / "good") in described
    text = here.metrics.text(here.ledger.counts(), here.dispatcher.scorers).decode()
    assert "losslens_interrupted_total 3.0" in text
    assert 'losslens_options_scored_total{engine="fake"}' in text
    assert 'losslens_task_seconds_count{task="skill_copy"} 1.0' in text
    assert 'losslens_engine_load_seconds_count{engine="fake"} 1.0' in text
    assert "losslens_checkpoint_lag_seconds_count 1.0" in text


def test_nothing_fails_because_no_scorer_starts(desk: Callable[..., Desk]) -> None:
    nowhere = NodeAffinitySchedulingStrategy("e" * 56, soft=False)
    here = desk(options={"num_cpus": 0.1, "scheduling_strategy": nowhere})
    fake_model(here.models / "a")
    evaluation_id = here.submit("a")
    here.until(lambda: here.dispatcher._paused_until)
    assert (here.shown(evaluation_id).state, here.shown(evaluation_id).attempts) == (State.queued, 0)
    here.dispatcher._step()
    assert here.pool.unfinished == 0  # it is not tried again at once


def test_equal_requests_are_scored_once_and_a_cancelled_one_stops(desk: Callable[..., Desk]) -> None:
    here = desk(actors=2, release_after_s=0.5)
    for name in ("twice", "long"):
        fake_model(here.models / name)
    first, second, more = here.submit("twice"), here.submit("twice"), here.submit("twice", ("skill_sort", "skill_copy"))
    here.until(lambda: here.ended(first, second, more))
    assert [here.shown(evaluation_id).attempts for evaluation_id in (first, second, more)] == [1, 0, 1]
    assert list(here.shown(more).reused) == ["skill_copy:open"]
    rows = Results(here.results).query("SELECT task, metric, count(*) AS n FROM parts.scores GROUP BY ALL").to_pylist()
    assert {row["task"] for row in rows} == {"skill_copy", "skill_sort"}
    assert {row["n"] for row in rows} == {1}

    running, waiting = here.submit("long", SLOW), here.submit("long", SLOW)
    here.until(lambda: here.shown(running).state is State.running)
    for evaluation_id in (running, waiting):
        before = here.shown(evaluation_id)
        after = cancelled(before, time.time())
        assert here.ledger.replace(before, after)
        here.dispatcher.changed(after)
    here.until(lambda: not here.dispatcher._given and not here.dispatcher._waiting)
    assert here.pool.unfinished == 0
    here.until(lambda: here.pool.scorers == 0)  # idle for long enough
    assert Results(here.results).query("SELECT count(DISTINCT checkpoint_id) AS n FROM scores").to_pylist() == [{"n": 1}]


def test_a_format_alone_and_then_all_of_the_task(desk: Callable[..., Desk], tmp_path: Path) -> None:
    rows = [{"query": f"Question: What has {n} legs?", "choices": ["a bird", "a spider"], "gold": n % 2} for n in range(4)]
    (tmp_path / "data" / "piqa").mkdir(parents=True)
    (tmp_path / "data" / "piqa" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    here = desk(data=tmp_path / "data")
    fake_model(here.models / "a")
    text, whole, again = (here.submit("a", tasks) for tasks in (("piqa:text",), ("piqa",), ("piqa:letter", "piqa")))
    here.until(lambda: here.ended(text, whole, again))
    assert [here.shown(evaluation_id).attempts for evaluation_id in (text, whole, again)] == [1, 1, 0]
    assert [here.shown(evaluation_id).reused for evaluation_id in (text, whole, again)] == [
        {},
        {"piqa:text": 4},
        {"piqa:letter": 4, "piqa:text": 4},
    ]
    found = Results(here.results).query("SELECT format, metric, count(*) AS n FROM parts.scores GROUP BY ALL").to_pylist()
    assert {(row["format"], row["n"]) for row in found} == {("text", 1), ("letter", 1)}


def test_a_drain_lets_what_runs_end_and_keeps_what_waits(desk: Callable[..., Desk]) -> None:
    here = desk()
    names = [f"m{number}" for number in range(3)]
    for name in names:
        fake_model(here.models / name)
    running, *waiting = (here.submit(name, SLOW) for name in names)
    here.until(lambda: here.shown(running).state is State.running)
    here.dispatcher.drain(PATIENCE)
    thread = threading.Thread(target=here.dispatcher.run)
    thread.start()
    thread.join(PATIENCE)
    assert here.shown(running).state is State.done
    assert {(here.shown(e).state, here.shown(e).attempts) for e in waiting} == {(State.queued, 0)}
    late = desk()  # a new service on the same queue, which is stopped before it can score
    late.until(lambda: late.shown(waiting[0]).state is State.running)
    late.dispatcher.drain(0.0)
    late.dispatcher.run()
    assert (late.shown(waiting[0]).state, late.shown(waiting[0]).attempts) == (State.queued, 0)
