"""Which part of the results an analysis looks at: one value for the filters that all analyses share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

    from losslens.results import Results


@dataclass(frozen=True, slots=True)
class Filters:
    """Each filter takes one value or several separated by commas; None lets everything through.

    `loss_axis` is one loss, DATASET:UNIT, or `best`: the loss that tells the scores of a study best (`losslens.analysis.axes`).
    """

    task: str | None = None
    format: str | None = None
    metric: str | None = None
    loss_dataset: str | None = None
    study: str | None = None
    loss_axis: str | None = None

    def points(self, stored: Results) -> pa.Table:
        """The rows of view `curve` that pass. Losses of what a run was tuned from are left out unless one is asked for: at each all
        amounts of tuning are scored, which only `losslens tuning` tells apart.

        Raises UserError when there are none; its remedy names what there is.
        """
        from jobs.axes import on_axis, on_best_axis
        from losslens.errors import UserError

        points = stored.curve(**self.columns())
        if self.loss_dataset is None and self.loss_axis in (None, "best"):
            points = _without_parents(points)
        if not points.num_rows:
            raise UserError(f"{stored.root} holds no checkpoint with both a loss and a score.", "Run or evaluate a study into it first.")
        if self.loss_axis is None:
            return points
        return on_best_axis(points) if self.loss_axis == "best" else on_axis(points, self.loss_axis)

    def columns(self) -> dict[str, list[str]]:
        """The values that each filtered column of view `curve` may have."""
        wanted = {"task": self.task, "format": self.format, "metric": self.metric, "loss_dataset": self.loss_dataset, "study": self.study}
        return {name: value.split(",") for name, value in wanted.items() if value is not None}


def _without_parents(points: pa.Table) -> pa.Table:
    import pyarrow.compute as pc

    from losslens.families import PARENT

    return points.filter(pc.invert(pc.starts_with(pc.cast(points["loss_dataset"], "string"), PARENT)))


EVERYTHING = Filters()
