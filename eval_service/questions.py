"""What is asked of checkpoints: tasks and formats, where their data lies, and how many items of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from losslens import tasks as task_room
from losslens.specs.study import task_and_format
from losslens.tasks import DeclaredTask
from losslens.tasks.requests import BuiltTask


class Asked(NamedTuple):
    """A task in one of its formats: what is scored once."""

    task: str
    format: str

    def __str__(self) -> str:
        return f"{self.task}:{self.format}"


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked of a checkpoint; see `losslens.tasks.build` for each field, and `losslens.tasks.resolve` for the tasks."""

    tasks: tuple[str | DeclaredTask, ...]
    data: str | None = None
    limit: int | None = None
    seed: int = 0
    seq_len: int | None = None

    def build(self) -> dict[Asked, BuiltTask]:
        """All that is asked.

        Raises:
            UserError: an unknown task or format, or data that is missing or malformed.
        """
        return {Asked(built.task, built.format): built for task in self.tasks for built in self._of(task)}

    def of(self, asked: Asked) -> BuiltTask:
        """A task in a format, asked as these questions are; built once in a process."""
        tasks = [task for task in self.tasks if _name(task) == asked.task]
        return next(built for task in tasks for built in self._of(task) if built.format == asked.format)

    def _of(self, task: str | DeclaredTask) -> list[BuiltTask]:
        return _built(task, self.data, self.limit, self.seed, self.seq_len)


def _name(task: str | DeclaredTask) -> str:
    return task.name if isinstance(task, DeclaredTask) else task_and_format(task)[0]


@lru_cache(maxsize=64)
def _built(task: str | DeclaredTask, data: str | None, limit: int | None, seed: int, seq_len: int | None) -> list[BuiltTask]:
    return task_room.build(task, data=Path(data) if data else None, limit=limit, seed=seed, seq_len=seq_len)


def versions(built: Mapping[Asked, BuiltTask]) -> dict[Asked, int]:
    """The versions of what is asked; all formats of a task share one."""
    return {asked: task.version for asked, task in built.items()}
