"""When to resize, save, wait and give up: one transition at a time."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerGroupStartupTimeoutError, WorkerHealthCheckTimeoutError
from ray.train.v2.api.exceptions import ControllerError

from losslens.errors import EnvironmentFailure
from losslens.training import journal
from losslens.training.elastic import fault_of
from losslens.training.resizing import (
    MOST_LATE,
    MOST_LOST,
    MOST_RAISED,
    SETTLE_S,
    STAY,
    Act,
    Asked,
    Fault,
    Group,
    Move,
    Offer,
    next_move,
    try_again,
    within_reach,
)

TWO = Group(2, {"a", "b"}, age=60.0)
SAVED, SAVING, LATE = (Asked("grow", True, False), Asked("grow", False, False), Asked("grow", False, True))


def offer(share: int, draining: tuple[str, ...] = (), steady: float = 60.0) -> Offer:
    return Offer(share, steady, set(draining))


def move(what: Offer, asked: Asked | None = None, group: Group = TWO, **more: object) -> Move:
    return next_move(group, what, asked, **({"low": 1, "grow_after": 3.0} | more))  # type: ignore[arg-type]


def test_a_share_of_the_present_size_changes_nothing() -> None:
    assert move(offer(2)) == STAY


def test_more_workers_are_taken_after_saving_once_the_share_is_steady() -> None:
    assert move(offer(3, steady=SETTLE_S / 2)) == STAY
    assert move(offer(3), group=Group(2, {"a", "b"}, age=1.0)) == STAY, "it has only just started"
    assert move(offer(3)) == Move(Act.ASK, "grow")
    assert move(offer(3), SAVING) == STAY
    assert move(offer(3), SAVED) == Move(Act.RESIZE, "grow")


def test_growing_is_called_off_when_the_new_node_is_gone_or_the_ranks_cannot_save() -> None:
    assert move(offer(2), SAVED) == Move(Act.CANCEL, "grow")
    assert move(offer(3), LATE) == Move(Act.CANCEL, "grow")


def test_growing_near_the_end_is_not_worth_a_restart() -> None:
    assert move(offer(4), seconds_left=15.0) == STAY
    assert move(offer(4), seconds_left=30.0) == Move(Act.ASK, "grow")


def test_a_smaller_share_is_given_way_to_but_not_below_the_least() -> None:
    assert move(offer(1)) == Move(Act.ASK, "yield")
    assert move(offer(1), Asked("yield", True, False)) == Move(Act.RESIZE, "yield")
    assert move(offer(1), low=2) == STAY
    assert move(offer(0)) == STAY


def test_a_draining_node_is_left_at_once() -> None:
    drain = offer(1, draining=("b",), steady=0.0)
    assert move(drain) == Move(Act.ASK, "drain")
    assert move(drain, Asked("drain", False, False)) == STAY
    assert move(drain, Asked("drain", True, False)) == Move(Act.RESIZE, "drain")
    assert move(drain, Asked("drain", False, True)) == Move(Act.RESIZE, "drain"), "the node goes, saved or not"


def test_a_replacement_of_the_same_size_is_moved_to() -> None:
    assert move(offer(2, draining=("b",))) == Move(Act.ASK, "drain")
    assert move(offer(2, draining=("b",)), Asked("drain", True, False)) == Move(Act.RESIZE, "drain")


def test_a_node_that_drains_elsewhere_is_not_our_concern() -> None:
    assert move(offer(2, draining=("z",))) == STAY


def test_with_nowhere_to_go_a_state_is_saved_once_for_each_notice() -> None:
    nowhere = offer(0, draining=("a", "b"))
    assert move(nowhere) == Move(Act.SAVE, "drain")
    assert move(nowhere, drain_saved={"a", "b"}) == STAY
    assert move(nowhere, drain_saved={"a"}) == Move(Act.SAVE, "drain")
    assert move(nowhere, Asked("grow", True, False)) == Move(Act.CANCEL, "grow"), "training until the end beats standing still"


@pytest.mark.parametrize(("fault", "most"), [(Fault.LOST, MOST_LOST), (Fault.RAISED, MOST_RAISED), (Fault.KNOWN, 0)])
def test_failures_in_a_row_without_progress_end_a_run(fault: Fault, most: int) -> None:
    assert [try_again(fault, n) for n in range(1, most + 2)] == [True] * most + [False]


def test_waiting_for_a_place_never_ends_a_run() -> None:
    assert try_again(Fault.LATE, 10_000)


def raised(error: Exception) -> UserExceptionWithTraceback:
    return UserExceptionWithTraceback(error, f"Traceback ...\n{error!r}")


DIED = ActorDiedError()
GLOO = raised(RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer"))
FULL = raised(EnvironmentFailure("the checkpoint cannot be written: No space left on device", "free disk space"))


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (WorkerGroupError("", {0: DIED}), Fault.LOST),
        (WorkerGroupError("", {0: GLOO, 1: DIED}), Fault.LOST),
        (WorkerGroupError("", {0: GLOO}), Fault.LOST),
        (WorkerGroupError("", {1: WorkerHealthCheckTimeoutError("hangs")}), Fault.LOST),  # type: ignore[no-untyped-call]
        (WorkerGroupError("", {0: FULL, 1: GLOO}), Fault.KNOWN),
        (WorkerGroupError("", {0: raised(ZeroDivisionError("1 / 0"))}), Fault.RAISED),
        (ControllerError(WorkerGroupStartupTimeoutError(2)), Fault.LATE),
        (ControllerError(ValueError("a fault of ours")), Fault.RAISED),
    ],
)
def test_whose_fault(error: Exception, fault: Fault) -> None:
    assert fault_of(error) is fault
    assert fault_of(pickle.loads(pickle.dumps(error))) is fault


def test_the_journal_keeps_every_event_and_states_are_replaced_whole(tmp_path: Path) -> None:
    assert journal.events(tmp_path / "run") == []
    assert journal.state(tmp_path / "run" / "workers.json") == {}
    journal.note(tmp_path / "run", "saved", step=7)
    journal.note(tmp_path / "run", "resize", share=2)
    assert [(e["event"], e.get("step")) for e in journal.events(tmp_path / "run")] == [("saved", 7), ("resize", None)]
    with (tmp_path / "run" / "journal.jsonl").open("a") as file:
        file.write('{"event": "sav')  # a kill came
    assert len(journal.events(tmp_path / "run")) == 2
    for size in (1, 2):
        journal.replace(tmp_path / "run" / "workers.json", {"world_size": size})
    assert journal.state(tmp_path / "run" / "workers.json") == {"world_size": 2}
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["journal.jsonl", "workers.json"]


@pytest.mark.parametrize(
    ("share", "free", "world_size", "starts", "workers"),
    [
        (4, 4, 0, 0, 4),
        (4, 1, 0, 0, 4),  # others are about to leave their places
        (4, 1, 0, MOST_LATE - 1, 4),
        (4, 1, 0, MOST_LATE, 1),  # and never do
        (4, 0, 0, MOST_LATE, 0),
        (4, 9, 0, MOST_LATE, 4),
        (4, 1, 2, 0, 3),  # it grows into places that nobody holds
        (4, 0, 2, 0, 2),
        (1, 0, 2, 0, 1),  # and yields, whatever is free
        (2, 0, 2, 0, 2),
    ],
)
def test_a_share_is_had_where_there_is_a_place(share: int, free: int, world_size: int, starts: int, workers: int) -> None:
    assert within_reach(share, free, world_size, starts) == workers
