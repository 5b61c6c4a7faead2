"""MLflow, through its own client: a run there for each of ours."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from losslens.errors import EnvironmentFailure
from losslens.tracking.points import Point, Run, folder_name

try:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException
except ImportError as error:
    raise EnvironmentFailure("mlflow is not installed", "pip install 'losslens[mlflow]'") from error

_AT_ONCE = 1000  # metrics: what a server takes in one call
_TAG = "losslens.run_id"
_NOT_IN_NAMES = re.compile(r"[^\w/.: -]", re.ASCII)


class MLflow:
    """An experiment on the server or in the store that MLFLOW_TRACKING_URI names."""

    def __init__(self, root: Path, project: str) -> None:
        try:
            self._client: Any = MlflowClient()
            found = self._client.get_experiment_by_name(project)
            self._experiment: str = found.experiment_id if found else self._client.create_experiment(project)
        except MlflowException as error:
            raise _refused(error) from error
        self._runs = dict[str, str]()
        store = hashlib.sha256(self._client.tracking_uri.encode()).hexdigest()[:8]
        self.home = root / "mlflow" / folder_name(f"{project}-{store}")

    def send(self, run: Run, points: Sequence[Point], mark: str | None) -> str:
        """Log the points by step and by tokens; the mark is MLflow's name of the run. Points that come again are the same rows."""
        metrics = [metric for point in points for metric in _metrics(point)]
        try:
            there = self._runs.get(run.run_id) or mark or self._begin(run)
            self._runs[run.run_id] = there
            for first in range(0, len(metrics), _AT_ONCE):
                self._client.log_batch(there, metrics=metrics[first : first + _AT_ONCE])
        except MlflowException as error:
            raise _refused(error) from error
        return there

    def _begin(self, run: Run) -> str:
        """The run's name there; one that a killed sender began is taken up."""
        begun = self._client.search_runs([self._experiment], f"tags.`{_TAG}` = '{run.name}'", max_results=1)
        if begun:
            return str(begun[0].info.run_id)
        made = self._client.create_run(self._experiment, run_name=run.run_id, tags={_TAG: run.name})
        self._client.log_batch(made.info.run_id, params=[Param(name, str(value)) for name, value in run.settings.items()])
        return str(made.info.run_id)

    def close(self) -> None:
        """Say that the runs have ended: MLflow shows them as running otherwise."""
        for there in self._runs.values():
            self._client.set_terminated(there)


def _metrics(point: Point) -> Iterator[Metric]:
    for x, values in point.series():
        for name, value in values.items():
            yield Metric(_NOT_IN_NAMES.sub("_", name), value, round(point.time * 1000), x)


def _refused(error: Exception) -> EnvironmentFailure:
    said = " ".join(str(error).split()).rstrip(".")
    return EnvironmentFailure(f"MLflow does not take the runs: {said}", "check MLFLOW_TRACKING_URI and the server")
