"""What is asked of checkpoints: tasks, where their data lies, and how many items of each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from losslens import tasks as task_room
from losslens.tasks import DeclaredTask
from losslens.tasks.requests import BuiltTask


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked of a checkpoint; see `losslens.tasks.build` for each field, and `losslens.tasks.resolve` for the tasks."""

    tasks: tuple[str | DeclaredTask, ...]
    data: str | None = None
    limit: int | None = None
    seed: int = 0
    seq_len: int | None = None

    def build(self) -> dict[str, list[BuiltTask]]:
        """Every task in each of its formats.

        Raises:
            UserError: an unknown task, or data that is missing or malformed.
        """
        names = [task.name if isinstance(task, DeclaredTask) else task for task in self.tasks]
        return {name: self.of(name) for name in names}

    def of(self, task: str) -> list[BuiltTask]:
        """One task, asked as these questions are, in each of its formats; built once in a process."""
        declared = (given for given in self.tasks if isinstance(given, DeclaredTask) and given.name == task)
        return _built(next(declared, task), self.data, self.limit, self.seed, self.seq_len)


@lru_cache(maxsize=64)
def _built(task: str | DeclaredTask, data: str | None, limit: int | None, seed: int, seq_len: int | None) -> list[BuiltTask]:
    return task_room.build(task, data=Path(data) if data else None, limit=limit, seed=seed, seq_len=seq_len)


def versions(built: dict[str, list[BuiltTask]]) -> dict[str, int]:
    """Task names and their versions, which all formats of a task share."""
    return {name: formats[0].version for name, formats in built.items()}
