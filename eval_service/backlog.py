"""What is still to be scored: a pure function from records to assignments, and the choice of the next one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval_service.checkpoints import Checkpoint
from eval_service.questions import Asked, Questions

if TYPE_CHECKING:
    from eval_service.loss_corpus import LossCorpus

Done = tuple[str, Asked, int]  # checkpoint_id, task and format, task_version


@dataclass(frozen=True, slots=True)
class Assignment:
    """Score `tasks` of one checkpoint, asked as `questions` says (None: as its scorer asks everything), and measure `losses`."""

    checkpoint: Checkpoint
    tasks: tuple[Asked, ...]
    questions: Questions | None = None
    losses: tuple[LossCorpus, ...] = ()


def pending(
    checkpoints: Iterable[Checkpoint],
    scored: Collection[Done],
    tasks: Mapping[Asked, int],
    measured: Collection[tuple[str, str]] = (),
    losses: Sequence[LossCorpus] = (),
) -> list[Assignment]:
    """Assignments for every checkpoint that lacks a format of a task in its present version or a loss, oldest checkpoint first.

    `tasks` maps what is asked to versions. A score of another version does not count: the task has changed its meaning. `measured`
    holds (checkpoint_id, name of the loss).
    """
    wanted: list[Assignment] = []
    distinct = {checkpoint.checkpoint_id: checkpoint for checkpoint in checkpoints}
    for checkpoint in sorted(distinct.values(), key=lambda c: (c.created_at, c.checkpoint_id)):
        missing = tuple(asked for asked, version in tasks.items() if (checkpoint.checkpoint_id, asked, version) not in scored)
        unmeasured = tuple(corpus for corpus in losses if (checkpoint.checkpoint_id, corpus.name) not in measured)
        if missing or unmeasured:
            wanted.append(Assignment(checkpoint, missing, losses=unmeasured))
    return wanted


def next_for(waiting: Sequence[Assignment], warm: Collection[str], warm_elsewhere: Collection[str]) -> Assignment:
    """The oldest assignment whose shape this scorer has warm, else the oldest that no other has, else the oldest."""

    def rank(assignment: Assignment) -> int:
        shape = assignment.checkpoint.shape
        return 0 if shape in warm else 1 if shape not in warm_elsewhere else 2

    return min(waiting, key=rank)  # the first of equals
