"""The pool on a real Ray: actors that die, checkpoints that are broken, offers that repeat."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from eval_service.checkpoints import Checkpoint, own_checkpoint
from eval_service.pool import MOST_ATTEMPTS, ScoringPool, seats_wanted
from eval_service.questions import Questions
from eval_service.scorer import Finished, already_scored
from losslens.cluster.slots import EVAL
from losslens.errors import DataMismatch, EnvironmentFailure, UserError
from losslens.results import Results
from tests.nodes import wait_for
from tests.tiny_models import tiny_checkpoint

REPO = Path(__file__).parents[2]
QUESTIONS = Questions(("skill_copy", "cloze_far"), limit=4)
OPTIONS: dict[str, object] = {"num_cpus": 0.1}
SLOT: dict[str, object] = {"num_cpus": 0.1, "resources": {EVAL: 1}}
PATIENCE = 120.0  # seconds


@pytest.fixture(scope="module", autouse=True)
def small_ray() -> Iterator[None]:
    paths = f"{REPO / 'platform'}{os.pathsep}{REPO}"
    ray.init(
        num_cpus=2,
        resources={EVAL: 1},
        include_dashboard=False,
        configure_logging=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    yield
    ray.shutdown()


def fakes(root: Path, count: int) -> list[Checkpoint]:
    made = []
    for number in range(count):
        (root / f"step-{number}").mkdir(parents=True)
        made.append(Checkpoint(f"run/step-{number}", str(root / f"step-{number}"), f"2026-01-01T00:00:{number:02d}", "a"))
    return made


def test_everything_offered_is_scored_once_and_a_broken_checkpoint_blocks_nothing(tmp_path: Path) -> None:
    results = tmp_path / "results"
    checkpoints = [own_checkpoint(tiny_checkpoint(results, "tiny", step, seed=step)) for step in (1, 2, 3)]
    offered = [checkpoint for checkpoint in checkpoints if checkpoint is not None]
    with (Path(offered[1].path) / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    pool = ScoringPool(results, QUESTIONS, "torch", actors=1, options=OPTIONS)
    assert pool.offer(offered) == 3
    assert pool.offer(offered) == 0
    records = {record.checkpoint_id: record for record in pool.drain(PATIENCE)}
    pool.close()
    assert pool.unfinished == 0
    assert isinstance(records["tiny/step-00000002"].error, DataMismatch)
    assert records["tiny/step-00000001"].error is records["tiny/step-00000003"].error is None
    assert records["tiny/step-00000001"].engine == "torch/float32"
    rows = Results(results).query("SELECT checkpoint_id, task, count(*) AS n FROM scores GROUP BY ALL ORDER BY ALL").to_pylist()
    assert {(row["checkpoint_id"], row["task"]) for row in rows} == {
        (f"tiny/step-0000000{step}", task) for step in (1, 3) for task in QUESTIONS.tasks
    }
    again = ScoringPool(results, QUESTIONS, "torch", actors=0)
    assert again.offer(offered) == 1  # only the broken one is still missing


def test_a_killed_scorer_is_replaced_and_its_assignment_tried_again(tmp_path: Path) -> None:
    pool = ScoringPool(tmp_path / "results", QUESTIONS, "fake", actors=2, options=OPTIONS)
    pool.offer(fakes(tmp_path, 6))
    ended: list[Finished] = []
    while not (working := [seat for seat in pool._seats if seat.assignment is not None]):
        ended += pool.poll(wait=PATIENCE)
    victim = working[0]
    assert victim.assignment is not None
    killed = victim.assignment.checkpoint.checkpoint_id
    ray.get(victim.took)  # it has it
    ray.kill(victim.actor)
    records = {record.checkpoint_id: record for record in [*ended, *pool.drain(PATIENCE)]}
    pool.close()
    assert len(records) == 6
    assert all(record.error is None for record in records.values())
    assert records[killed].attempts == 2
    assert len(already_scored(tmp_path / "results")) == 12


def test_a_checkpoint_that_always_kills_its_scorer_is_given_up(tmp_path: Path) -> None:
    pool = ScoringPool(tmp_path / "results", QUESTIONS, "fake", actors=1, options=OPTIONS)
    first, second = fakes(tmp_path, 2)
    pool.offer([first, second])
    ended: list[Finished] = []
    while not ended:
        for seat in pool._seats:
            if seat.assignment is not None and seat.assignment.checkpoint == first:
                with contextlib.suppress(RayError):  # killed already
                    ray.get(seat.took)
                ray.kill(seat.actor)
        ended = pool.poll(wait=PATIENCE)
    assert (ended[0].checkpoint_id, ended[0].attempts) == (first.checkpoint_id, MOST_ATTEMPTS)
    assert isinstance(ended[0].error, EnvironmentFailure)
    assert [record.error for record in pool.drain(PATIENCE)] == [None]
    pool.close()


def gone(actor: Any) -> bool:
    """Whether the actor does not answer any more."""
    try:
        ray.get(actor.__ray_ready__.remote())
    except RayError:
        return True
    return False


def test_a_scorer_that_was_dead_before_it_got_a_checkpoint_does_not_count_against_it(tmp_path: Path) -> None:
    pool = ScoringPool(tmp_path / "results", QUESTIONS, "fake", actors=1, options=OPTIONS)
    first, second = fakes(tmp_path, 2)
    pool.offer([first])
    assert [record.error for record in pool.drain(PATIENCE)] == [None]
    ray.kill(pool._seats[0].actor)  # idle, so nobody hears of it
    wait_for(lambda: gone(pool._seats[0].actor), PATIENCE, "the kill")
    pool.offer([second])
    (record,) = pool.drain(PATIENCE)
    pool.close()
    assert (record.error, record.attempts) == (None, 1)


def test_one_slot_scores_everything_while_other_seats_never_come(tmp_path: Path) -> None:
    pool = ScoringPool(tmp_path / "results", QUESTIONS, "fake", actors=3, options=SLOT)
    assert (pool.scorers, pool.waiting_for_slots) == (0, 0)  # nothing to do: nobody is asked for
    pool.offer(fakes(tmp_path, 8))
    assert (pool.scorers, pool.waiting_for_slots) == (0, 3)
    ended: list[Finished] = []
    seen = set()
    while pool.unfinished:
        ended += pool.poll(wait=PATIENCE)
        seen.add((pool.scorers, pool.waiting_for_slots))
    assert {(scorers, waiting) for scorers, waiting in seen if scorers} == {(1, 2), (1, 0)}  # asked for until all is done
    assert len(ended) == 8
    assert {(record.attempts, record.error) for record in ended} == {(1, None)}
    pool.close()


def test_without_any_slot_scoring_waits_and_nothing_fails(tmp_path: Path) -> None:
    pool = ScoringPool(tmp_path / "results", QUESTIONS, "fake", actors=2, options={"num_cpus": 0.01, "resources": {"nowhere": 1}})
    pool.offer(fakes(tmp_path, 1))
    for _ in range(5):
        assert pool.poll(wait=0.2) == []
        assert (pool.unfinished, pool.scorers, pool.waiting_for_slots) == (1, 0, 1)  # one assignment asks for one seat
    pool.close()
    assert (pool.unfinished, pool.waiting_for_slots) == (0, 0)


def test_scorers_that_never_start_end_in_a_failure_not_in_a_wait(tmp_path: Path) -> None:
    unusable: dict[str, object] = {**OPTIONS, "scheduling_strategy": NodeAffinitySchedulingStrategy("e" * 56, soft=False)}
    pool = ScoringPool(tmp_path / "results", QUESTIONS, "fake", actors=1, options=unusable)
    pool.offer(fakes(tmp_path, 2))
    ended = pool.drain(PATIENCE)
    assert [type(record.error) for record in ended] == [EnvironmentFailure] * 2
    assert "no scorer starts" in str(ended[0].error)
    pool.close()


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(1, 9))
def test_seats_follow_the_queue(seats: int, working: int, waiting: int, most: int) -> None:
    wanted = seats_wanted(seats, working, waiting, most)
    assert wanted >= seats  # what is warm stays
    assert wanted == seats or wanted == min(most, working + waiting)


def test_what_cannot_be_asked_is_refused_before_any_actor_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no task"):
        ScoringPool(tmp_path, Questions(("skill_coppy",)), "fake")
