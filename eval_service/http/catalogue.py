"""Which tasks may be asked for over HTTP, and their versions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches

from eval_service.questions import Asked, Questions, versions
from losslens import tasks as task_room
from losslens.errors import UserError
from losslens.specs.study import task_and_format
from losslens.tasks.records import require_format


class Catalogue:
    """The tasks that losslens knows by name, with the data this service has. `questions` tells data and seed."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._formats: dict[str, dict[Asked, int]] = {}

    def asked(self, tasks: tuple[str, ...], limit: int | None, seq_len: int | None) -> Questions:
        """These tasks, asked of a model trained on rows of `seq_len`."""
        return replace(self._questions, tasks=tasks, limit=limit, seq_len=seq_len)

    def versions(self, tasks: Sequence[str]) -> dict[str, dict[Asked, int]]:
        """What each of `tasks` stands for, with versions; the first time a task is asked for, its data is read.

        Raises:
            UserError: no task has this name (a file is none: it would be read for whoever asks), it has no such format, or its
                data is missing.
        """
        return {task: self._versions(*task_and_format(task)) for task in tasks}

    def _versions(self, task: str, format: str | None) -> dict[Asked, int]:
        if task not in self._formats:
            self._formats[task] = self._read(task)
        there = self._formats[task]
        if format is None:
            return there
        require_format(task, format, [asked.format for asked in there])
        return {asked: version for asked, version in there.items() if asked.format == format}

    def _read(self, task: str) -> dict[Asked, int]:
        if task not in task_room.names():
            near = get_close_matches(task, task_room.names(), n=1)
            choice = f"did you mean {near[0]}?" if near else f"choose from {', '.join(task_room.names())}"
            raise UserError(f"there is no task {task[:100]!r}", choice)
        return versions(self.asked((task,), 2, None).build())
