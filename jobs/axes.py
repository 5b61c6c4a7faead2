"""Which loss to set scores against: the comparison of all that were measured, and the choice among them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from losslens.analysis.axes import Axis, axes, best_axes
from losslens.errors import UserError
from losslens.results import Results

if TYPE_CHECKING:
    from jobs.filters import Filters

_SHOWN = 1.5  # relative error up to which a rival of the best loss is printed


def compared_axes(results: Path, filters: Filters) -> pa.Table:
    """How well each loss, compute and tokens foretell each score in a run not seen. Errors as for `jobs.analyse.thresholds`."""
    return axes(filters.points(Results(results)))


def axis_named(text: str) -> Axis:
    """DATASET:UNIT as an axis.

    Raises:
        UserError: there is no unit.
    """
    dataset, _, unit = text.rpartition(":")
    if not dataset or not unit:
        raise UserError(f"The loss {text!r} does not name a data set and a unit.", "Write DATASET:UNIT, such as heldout:bits/byte.")
    return Axis(dataset, unit)


def on_axis(points: pa.Table, text: str) -> pa.Table:
    """The rows of view `curve` whose loss is `text`.

    Raises:
        UserError: there are none.
    """
    axis = axis_named(text)
    found = points.filter((pc.field("loss_dataset") == axis.dataset) & (pc.field("loss_unit") == axis.unit))
    if not found.num_rows:
        known = points.group_by(["loss_dataset", "loss_unit"]).aggregate([]).to_pylist()
        there = sorted(f"{row['loss_dataset']}:{row['loss_unit']}" for row in known)
        raise UserError(f"No checkpoint has the loss {text}.", f"There are: {', '.join(there)}.")
    return found


def on_best_axis(points: pa.Table) -> pa.Table:
    """The rows on the loss that tells the scores of their study best; the comparison goes to stderr.

    Raises:
        UserError: no loss can be compared, as with fewer than three runs.
    """
    ranked = best_axes(axes(points)).to_pylist()
    if not ranked:
        raise UserError("No loss can be compared with another.", "That takes three runs; name one with --loss-axis DATASET:UNIT.")
    chosen: dict[str | None, Axis] = {}
    for row in ranked:
        if row["study"] in chosen and row["relative_error"] > _SHOWN:
            continue
        mark = "best" if row["study"] not in chosen else "    "
        chosen.setdefault(row["study"], Axis(row["loss_dataset"], row["loss_unit"]))
        name = f"{row['loss_dataset']}:{row['loss_unit']}"
        error = f"error {row['relative_error']:.2f} of the least, least for {row['best_for']} of {row['scores']} scores"
        print(f"{mark} {row['study'] or '-'}  {name}: {error}", file=sys.stderr)
    columns = (points[name].to_pylist() for name in ("study", "loss_dataset", "loss_unit"))
    return points.filter(pa.array([chosen.get(study) == (dataset, unit) for study, dataset, unit in zip(*columns, strict=True)]))
