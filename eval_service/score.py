"""One loaded checkpoint and built tasks -> rows of `scores` and `samples`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from eval_service.engine import Engine
from losslens.results.tables import SAMPLES, SCORES
from losslens.tasks.metrics import score_items
from losslens.tasks.requests import BuiltTask, Result


@dataclass(frozen=True, slots=True)
class Scored:
    """Rows of the two tables, one per metric and one per option of every item; by task, all formats together: seconds, and
    items that were longer than the model and lost context on the left."""

    scores: pa.Table
    samples: pa.Table
    seconds: Mapping[str, float]
    truncated: Mapping[str, int]


def score_checkpoint(engine: Engine, checkpoint_id: str, tasks: Sequence[BuiltTask], scored_at: datetime) -> Scored:
    """Ask the engine, which has the checkpoint loaded, everything the tasks ask.

    Raises:
        LosslensError: the engine failed, or answered something that is no score (a log-probability that is not finite).
    """
    scores: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    truncated: dict[str, int] = {}
    for built in tasks:
        began = time.monotonic()
        answers = _answers(engine, built)
        found, options = score_items(built, answers)
        about = {
            "checkpoint_id": checkpoint_id,
            "task": built.task,
            "task_version": built.version,
            "format": built.format,
            "shots": built.shots,
            "engine": engine.name,
        }
        scores += [{**about, **asdict(score), "scored_at": scored_at} for score in found]
        samples += [{**about, **asdict(option)} for option in options]
        if short := sum(any(result.truncated for result in item) for item in answers):
            truncated[built.task] = truncated.get(built.task, 0) + short
        seconds[built.task] = seconds.get(built.task, 0.0) + time.monotonic() - began
    return Scored(pa.Table.from_pylist(scores, schema=SCORES), pa.Table.from_pylist(samples, schema=SAMPLES), seconds, truncated)


def _answers(engine: Engine, built: BuiltTask) -> list[list[Result]]:
    """Results per item, in the items' order; the whole task goes to the engine at once."""
    results = iter(engine.run([request for item in built.items for request in item.requests]))
    return [[next(results) for _ in item.requests] for item in built.items]
