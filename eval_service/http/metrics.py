"""What Prometheus reads. Options a second: rate(losslens_options_scored_total) over rate(losslens_scoring_seconds_total)."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from eval_service.http.evaluations import State
from eval_service.scorer import Finished

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)
_AGES = (1, 3, 10, 30, 100, 300, 1000, 3600, 3 * 3600, 12 * 3600, 86400, 7 * 86400)


class Metrics:
    """Counters of one service; they begin at 0 with each start of it."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._options = Counter("losslens_options_scored", "Options scored and stored.", ("engine",), registry=registry)
        self._seconds = Counter("losslens_scoring_seconds", "Seconds that scorers spent asking engines.", ("engine",), registry=registry)
        self._load = Histogram(
            "losslens_engine_load_seconds", "Seconds to load and verify a checkpoint.", ("engine",), buckets=_SECONDS, registry=registry
        )
        self._task = Histogram(
            "losslens_task_seconds", "Seconds for a task of a checkpoint.", ("task",), buckets=_SECONDS, registry=registry
        )
        self._lag = Histogram("losslens_checkpoint_lag_seconds", "Age of a checkpoint when it is scored.", buckets=_AGES, registry=registry)
        self._died = Counter("losslens_interrupted", "Scorers that died at work.", registry=registry)
        self._evaluations = Gauge("losslens_evaluations", "Evaluations by state.", ("state",), registry=registry)
        self._scorers = Gauge("losslens_scorers", "Scorers that are there.", registry=registry)

    def scored(self, record: Finished, age_s: float | None) -> None:
        """Take in an assignment that was scored; `age_s` is the checkpoint's, where it is known."""
        self._options.labels(record.engine).inc(record.options)
        self._seconds.labels(record.engine).inc(sum(record.task_seconds.values()))
        self._load.labels(record.engine).observe(record.load_seconds)
        for task, seconds in record.task_seconds.items():
            self._task.labels(task).observe(seconds)
        if age_s is not None:
            self._lag.observe(age_s)

    def interrupted(self) -> None:
        """A scorer died at work."""
        self._died.inc()

    def text(self, evaluations: Mapping[State, int], scorers: int) -> bytes:
        """Everything in Prometheus' text format, with what is true now."""
        for state, count in evaluations.items():
            self._evaluations.labels(state.value).set(count)
        self._scorers.set(scorers)
        return generate_latest(self._registry)
