"""Where points can go. Each tool is imported by the one file that speaks to it, and only when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from losslens.tracking.points import Point, Run

Tool = Literal["tensorboard", "wandb", "mlflow"]


class Destination(Protocol):
    """A tool that takes points. `home` is a folder that belongs to it, in which each run has its own."""

    home: Path

    def send(self, run: Run, points: Sequence[Point], mark: str | None) -> str:
        """Take points of a run. What it answers is the `mark` that comes with the next ones; None: there were none before.

        A sender that is killed before it has noted the answer comes again with the old mark and the same points.
        """

    def close(self) -> None:
        """Nothing more comes from this process."""


def opened(tool: Tool, root: Path, project: str) -> Destination:
    """The tool, for results at `root`; `project` is what W&B calls so and MLflow an experiment.

    Raises:
        EnvironmentFailure: the tool is not installed, or does not answer.
    """
    if tool == "wandb":
        from losslens.tracking.to_wandb import WeightsAndBiases

        return WeightsAndBiases(root, project)
    if tool == "mlflow":
        from losslens.tracking.to_mlflow import MLflow

        return MLflow(root, project)
    from losslens.tracking.to_tensorboard import TensorBoard

    return TensorBoard(root)
