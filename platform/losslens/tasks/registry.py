"""Every task by name, and `build`: a plain dictionary of records, nothing registers itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from losslens.errors import UserError
from losslens.specs.study import task_and_format
from losslens.tasks import arithmetic, chinese, declared, english, exams, skills
from losslens.tasks.builder import build_choice, build_open, pick
from losslens.tasks.declared import DeclaredTask
from losslens.tasks.records import ChoiceTask, OpenTask, in_format, require_format
from losslens.tasks.requests import BuiltTask

BENCHMARKS: dict[str, ChoiceTask[Any] | OpenTask[Any]] = {
    task.name: task for module in (english, chinese, exams, arithmetic) for task in module.TASKS
}
GENERATED: dict[str, Callable[[int], BuiltTask]] = skills.TASKS


def names() -> tuple[str, ...]:
    """Names of all tasks: benchmarks that need data, then generated tasks that need none."""
    return (*BENCHMARKS, *GENERATED)


def resolve(tasks: Iterable[str]) -> tuple[str | DeclaredTask, ...]:
    """What `build` takes, for tasks as users name them: a name stays one, the path of a YAML file becomes the task it declares.
    Either may end in `:` and a format.

    Raises:
        UserError: a declaration that does not hold (see `declared.read`), a format it does not have, or two tasks of one name.
    """
    resolved: list[str | DeclaredTask] = []
    files: dict[str, DeclaredTask] = {}
    called: dict[str, str] = {}  # a task's name: what asks for it
    for entry in dict.fromkeys(tasks):
        task, format = task_and_format(entry)
        if declared.is_declared(task) and task not in files:
            files[task] = declared.read(Path(task).expanduser())
        name = files[task].name if task in files else task
        if called.setdefault(name, task) != task or (task in files and name in names()):
            raise UserError(f"{task} declares a task called `{name}`, and there is another of that name", "give it a `name` of its own")
        resolved.append(files[task].only(format) if task in files else entry)
    return tuple(resolved)


def build(task: str | DeclaredTask, *, data: Path | None, limit: int | None, seed: int, seq_len: int | None) -> list[BuiltTask]:
    """The task in each of its formats; a name that ends in `:` and a format, in that format alone.

    `data` holds `<task>/{test,dev}.jsonl[.gz]` (generated tasks ignore it). `limit` asks a pseudo-random subset fixed by
    `seed`; that of a smaller limit lies within that of a larger. `seq_len` is the model's, in tokens: it shortens the
    rows of generated tasks and nothing else; a prompt longer than the model is cut on the left by the engine, which says so.

    Raises:
        UserError: no such task or format, data missing or malformed, or fewer than two items, which have no standard error.
    """
    if limit is not None and limit < 2:
        raise UserError(f"a limit of {limit} leaves no standard error", "ask at least 2 items of each task")
    built = task.build(limit, seed) if isinstance(task, DeclaredTask) else _build(task, data, limit, seed, seq_len)
    if len(built[0].items) < 2:
        raise UserError(f"task `{built[0].task}` has {len(built[0].items)} item, which has no standard error", "give it at least 2 rows")
    return built


def _build(entry: str, data: Path | None, limit: int | None, seed: int, seq_len: int | None) -> list[BuiltTask]:
    name, format = task_and_format(entry)
    if name in GENERATED:
        built = GENERATED[name](skills.row_length(seq_len))
        require_format(name, built.format if format is None else format, (built.format,))
        return [_limited(built, limit, seed)]
    if name not in BENCHMARKS:
        near = get_close_matches(name, names(), n=1)
        raise UserError(f"there is no task `{name}`", f"did you mean `{near[0]}`?" if near else f"choose from {', '.join(names())}")
    if data is None:
        raise UserError(f"task `{name}` needs task data", "set the study's evaluation.data to the directory that holds the task folders")
    task = BENCHMARKS[name]
    if isinstance(task, ChoiceTask):
        return build_choice(in_format(task, format), data, limit=limit, seed=seed)
    return build_open(in_format(task, format), data, limit=limit, seed=seed)


def _limited(built: BuiltTask, limit: int | None, seed: int) -> BuiltTask:
    kept = pick([(item.item_id, item) for item in built.items], limit, f"{built.task}/{seed}")
    return replace(built, items=tuple(item for _, item in kept))
