"""Which tasks may be asked for over HTTP, and their versions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches

from eval_service.questions import Questions
from losslens import tasks as task_room
from losslens.errors import UserError


class Catalogue:
    """The tasks that losslens knows by name, with the data this service has. `questions` tells data and seed."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._versions: dict[str, int] = {}

    def asked(self, tasks: tuple[str, ...], limit: int | None, seq_len: int | None) -> Questions:
        """These tasks, asked of a model trained on rows of `seq_len`."""
        return replace(self._questions, tasks=tasks, limit=limit, seq_len=seq_len)

    def versions(self, tasks: Sequence[str]) -> dict[str, int]:
        """The tasks' versions; the first time a task is asked for, its data is read.

        Raises:
            UserError: no task has this name (a file is none: it would be read for whoever asks), or its data is missing.
        """
        for task in tasks:
            if task not in self._versions:
                self._versions[task] = self._version(task)
        return {task: self._versions[task] for task in tasks}

    def _version(self, task: str) -> int:
        if task not in task_room.names():
            near = get_close_matches(task, task_room.names(), n=1)
            choice = f"did you mean {near[0]}?" if near else f"choose from {', '.join(task_room.names())}"
            raise UserError(f"there is no task {task[:100]!r}", choice)
        return self.asked((task,), 2, None).of(task)[0].version
