"""Everything one process needs to score checkpoints: tasks built once, engines kept warm, rows written.

`pool` runs it inside Ray actors, `jobs/evaluate` in its own process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_service.admission import admit
from eval_service.backlog import Assignment, Done
from eval_service.checkpoints import read_ahead, read_config
from eval_service.choose import available, choose, instead
from eval_service.engine import Engine
from eval_service.questions import Asked, Questions, versions
from eval_service.score import score_checkpoint
from losslens.errors import LosslensError, UserError
from losslens.results import Results
from losslens.results.importers.lm_eval import ENGINE as IMPORTED
from losslens.tasks.declared import outdated_by

if TYPE_CHECKING:
    from eval_service.loss_corpus import LossCorpus

logger = logging.getLogger(__name__)
# Scores that lm-eval gave bear the names of our tasks too, and are no reason not to ask.
_OURS = f"NOT starts_with(coalesce(engine, ''), '{IMPORTED}')"


@dataclass(frozen=True, slots=True)
class Finished:
    """How an assignment ended. Without an `error` its rows are stored; `engine` is the name stored with them."""

    checkpoint_id: str
    tasks: tuple[Asked, ...]
    engine: str = ""
    reason: str = ""
    seconds: float = 0.0
    attempts: int = 1
    error: LosslensError | None = None
    options: int = 0  # rows of `samples` written
    load_seconds: float = 0.0
    task_seconds: Mapping[str, float] = field(default_factory=dict)
    losses: tuple[tuple[str, str, float], ...] = ()  # dataset, unit, value
    truncated: Mapping[str, int] = field(default_factory=dict)  # items that lost context on the left, by task

    @property
    def warning(self) -> str:
        """What did not fit into the model; empty when all did."""
        return ", ".join(
            f"{items} items of {task} are longer than the model and lost context on the left" for task, items in self.truncated.items()
        )


class Scorer:
    """Scores assignments one after another. With `roots` it reads checkpoints under them only; see `admit`."""

    def __init__(self, results: Path, questions: Questions, engine: str, roots: Sequence[Path] | None = None) -> None:
        self._results, self._questions, self._asked, self._roots = Results(results), questions, engine, roots
        self._engines: dict[str, Engine] = {}
        self._instead: dict[tuple[str, str], tuple[str, str]] = {}  # by engine and shape: what serves where that engine does not

    def versions(self) -> dict[Asked, int]:
        """What is asked, in its present versions."""
        return versions(self._questions.build())

    def score(self, assignment: Assignment, following: str | None = None) -> Finished:
        """Load, ask, write. An error with a known cause is part of the answer, so that others go on.

        `following`: a directory whose weights are read while this one is scored.
        """
        began = time.monotonic()
        checkpoint = assignment.checkpoint
        name, reason = "", ""
        try:
            directory = Path(checkpoint.path) if self._roots is None else admit(checkpoint.path, self._roots)
            short, reason = ("fake", "asked for") if self._asked == "fake" else choose(self._asked, read_config(directory), available())
            loading = time.monotonic()
            name = self._engine(short).name
            engine, reason = self._loaded(short, reason, directory, checkpoint.shape)
            name = engine.name
            load_seconds = time.monotonic() - loading
            logger.info("%s is scored by %s: %s", checkpoint.checkpoint_id, name, reason)
            if following:
                read_ahead(Path(following))
            questions = assignment.questions or self._questions
            tasks = [questions.of(asked) for asked in assignment.tasks]
            rows = score_checkpoint(engine, checkpoint.checkpoint_id, tasks, datetime.now(UTC))
            # Samples first: a checkpoint counts as scored by its scores, so a kill in between loses nothing.
            self._results.write("samples", rows.samples)
            self._results.write("scores", rows.scores)
            losses = [row for corpus in assignment.losses for row in self._measure(engine, checkpoint.checkpoint_id, directory, corpus)]
        except LosslensError as error:
            return Finished(checkpoint.checkpoint_id, assignment.tasks, name, reason, time.monotonic() - began, error=error)
        return Finished(
            checkpoint.checkpoint_id,
            assignment.tasks,
            name,
            reason,
            time.monotonic() - began,
            options=rows.samples.num_rows,
            load_seconds=load_seconds,
            task_seconds=rows.seconds,
            truncated=rows.truncated,
            losses=tuple((row["dataset"], row["unit"], row["value"]) for row in losses),
        )

    def close(self) -> None:
        """Free every engine."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    def _measure(self, engine: Engine, checkpoint_id: str, directory: Path, corpus: LossCorpus) -> list[dict[str, Any]]:
        from eval_service.losses import measure_into  # imports readers of every format, which tasks do not need

        return measure_into(self._results, checkpoint_id, engine, directory, corpus)

    def _loaded(self, short: str, reason: str, directory: Path, shape: str) -> tuple[Engine, str]:
        """The engine that holds the directory, and why it is this one. What an engine has refused of a shape it is not asked again."""
        short, reason = self._instead.get((short, shape), (short, reason))
        try:
            self._engine(short).load(directory)
        except LosslensError as error:
            other = instead(self._asked, short, error)
            if other is None:
                raise
            self._engine(other[0]).load(directory)  # a fault of the files comes again
            self._instead[short, shape] = other
            return self._engine(other[0]), other[1]
        return self._engine(short), reason

    def _engine(self, short: str) -> Engine:
        if short not in self._engines:
            self._engines[short] = open_engine(short)
        return self._engines[short]


def require_unchanged(results: Path, asked: Mapping[Asked, int]) -> None:
    """No declared task of those that are `asked` (with versions) has other content than what was scored under its version.

    Raises:
        UserError: naming the task; its scores would be mixed up with those of another.
    """
    if not any((results / "parts" / "scores").glob("*.parquet")):
        return
    wanted = {task: version for (task, _), version in asked.items()}
    stored = Results(results).query(f"SELECT task, list(DISTINCT task_version) AS versions FROM scores WHERE {_OURS} GROUP BY task")
    for row in stored.to_pylist():
        if row["task"] in wanted and (number := outdated_by(wanted[row["task"]], [v for v in row["versions"] if v is not None])):
            raise UserError(
                f"the task `{row['task']}` is not what was scored as its version {number}: its file or its data has changed",
                f"write `version: {number + 1}` into its file, and every checkpoint is scored again; or undo the change",
            )


def already_scored(results: Path, engine: str = "auto") -> set[Done]:
    """What has been scored; with an engine's short name, by that engine only."""
    if not any((results / "parts" / "scores").glob("*.parquet")):
        return set()
    pattern = "%" if engine == "auto" else f"{engine}%"
    rows = Results(results).query(
        f"SELECT DISTINCT checkpoint_id, task, format, task_version FROM scores WHERE engine LIKE ? AND {_OURS}", (pattern,)
    )
    return {(row["checkpoint_id"], Asked(row["task"], row["format"]), row["task_version"]) for row in rows.to_pylist()}


def open_engine(short: str) -> Engine:
    """A new engine by its short name: torch, vllm or fake. Only that engine's libraries are imported."""
    return _ENGINES[short]()


def _torch() -> Engine:
    from eval_service.torch_engine import TorchEngine

    return TorchEngine()


def _vllm() -> Engine:
    from eval_service.vllm_engine import VllmEngine

    return VllmEngine()


def _fake() -> Engine:
    from eval_service.fake import FakeEngine

    return FakeEngine()


_ENGINES: dict[str, Callable[[], Engine]] = {"torch": _torch, "vllm": _vllm, "fake": _fake}
