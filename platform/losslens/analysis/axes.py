"""Which axis tells performance best: each loss that was measured, compute, and tokens, by how they foretell a run not yet seen.

A monotone curve through all runs but one predicts the one left out, for each run in turn. A correlation would not do: along tokens,
too, every score rises.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from losslens.analysis import monotone
from losslens.analysis.curves import Curve, Floats, Ints, Key, split

POINT = 100.0  # points in one of a metric's unit
MIN_RUNS = 3
_COVERED = 0.9  # of the checkpoints that any axis has
_COMPUTE = ("flops", "tokens")

COLUMNS = pa.schema(
    [(name, pa.int64() if name == "shots" else pa.string()) for name in Key._fields]
    + [("axis_error", pa.float64()), ("behind", pa.float64()), ("explains_most", pa.bool_()), ("reason", pa.string())]
    + [("n_checkpoints", pa.int64()), ("n_runs", pa.int64())]
)


class Axis(NamedTuple):
    """A loss by data set and unit; compute and tokens have the unit `log`."""

    dataset: str
    unit: str


A = TypeVar("A")


def axes(curve: pa.Table) -> pa.Table:
    """One row for each score of view `curve` (study, task, format, shots, metric) and each axis; columns: `COLUMNS`.

    All axes of a score are compared on the same checkpoints, which have them all; an axis that misses more than a tenth of the
    checkpoints is left out with its reason. `axis_error` is in points, hundredths of the metric's unit.
    """
    names = np.asarray(curve["checkpoint_id"].fill_null("").dictionary_encode().combine_chunks().indices, dtype=np.int64)
    rows: list[dict[str, Any]] = []
    for score, curves in groupby(split(curve), key=lambda found: found[0][:5]):
        about = dict(zip(Key._fields[:5], score, strict=True))
        for axis, row in _compared(curve, dict(_known(curves)), names):
            rows.append(about | {"loss_dataset": axis.dataset, "loss_unit": axis.unit} | row)
    return pa.Table.from_pylist(rows, schema=COLUMNS)


def best_axes(compared: pa.Table) -> pa.Table:
    """For each study the losses in `compared`, best first: one axis for all its scores.

    `relative_error` is the mean over scores of an axis's error divided by the least error that any loss has for this score;
    `best_for` the number of scores for which it is the least. Losses that lack a score are left out.
    """
    errors: dict[str | None, dict[tuple[Any, ...], dict[Axis, float]]] = {}
    for row in compared.to_pylist():
        if row["axis_error"] is not None and row["loss_dataset"] not in _COMPUTE:
            score = tuple(row[name] for name in Key._fields[1:5])
            errors.setdefault(row["study"], {}).setdefault(score, {})[Axis(row["loss_dataset"], row["loss_unit"])] = row["axis_error"]
    rows = [
        {"study": study, "loss_dataset": axis.dataset, "loss_unit": axis.unit, "scores": len(by_score)} | summary
        for study, by_score in errors.items()
        for axis, summary in _ranked(list(by_score.values()))
    ]
    columns = [("study", pa.string()), ("loss_dataset", pa.string()), ("loss_unit", pa.string()), ("relative_error", pa.float64())]
    return pa.Table.from_pylist(rows, schema=pa.schema([*columns, ("best_for", pa.int64()), ("scores", pa.int64())]))


def side_by_side(errors: Mapping[A, Floats]) -> dict[A, dict[str, Any]]:
    """From each run's squared errors on each axis, the error of the axis in points, whether it is the least, and by how many standard
    errors of the runs' differences it is more than the least."""
    if not errors:
        return {}
    best = min(errors, key=lambda axis: float(errors[axis].mean()))
    found: dict[A, dict[str, Any]] = {}
    for axis, own in errors.items():
        more = own - errors[best]
        spread = float(more.std(ddof=1)) / len(more) ** 0.5
        behind = float(more.mean()) / spread if axis != best and spread > 0 else None
        found[axis] = {"axis_error": POINT * float(own.mean()) ** 0.5, "explains_most": axis == best, "behind": behind}
    return found


def logarithm(table: pa.Table, name: str, row: Ints) -> Floats:
    """The natural logarithm of a column in some rows; NaN where it is unknown or not above 0."""
    numbers = np.asarray(table[name].cast(pa.float64()).take(pa.array(row)).to_numpy(zero_copy_only=False), dtype=np.float64)
    return np.log(np.where(numbers > 0, numbers, np.nan))


def _known(curves: Iterator[tuple[Key, Curve]]) -> Iterator[tuple[Axis, Curve]]:
    for key, curve in curves:
        yield Axis(str(key.loss_dataset), str(key.loss_unit)), curve.only(curve.trained)


def _compared(table: pa.Table, curves: dict[Axis, Curve], names: Ints) -> Iterator[tuple[Axis, dict[str, Any]]]:
    most = max(len(curve.loss) for curve in curves.values())
    full = {axis: curve for axis, curve in curves.items() if len(curve.loss) >= _COVERED * most}
    common = np.unique(names[next(iter(full.values())).row])
    for curve in full.values():
        common = np.intersect1d(common, names[curve.row])
    picked = {axis: curve.only(np.isin(names[curve.row], common)) for axis, curve in full.items()}
    first = next(iter(picked.values()))
    positions = {axis: -curve.loss for axis, curve in picked.items()}
    positions |= {Axis(name, "log"): logarithm(table, name, first.row) for name in _COMPUTE}
    measured = {"n_checkpoints": len(first.loss), "n_runs": len(np.unique(first.run))}
    reasons = {axis: f"measured at {len(curves[axis].loss)} of {most} checkpoints" for axis in curves.keys() - full.keys()}
    errors: dict[Axis, Floats] = {}
    for axis, x in positions.items():
        curve = picked.get(axis, first)
        if reason := _unfit(x, curve.value, measured["n_runs"]):
            reasons[axis] = reason
        else:
            errors[axis] = monotone.unseen_errors(x, curve.value, (curve.noise * curve.room) ** -2.0, curve.run)
    found = side_by_side(errors)
    for axis in [*curves, *(Axis(name, "log") for name in _COMPUTE)]:
        yield axis, measured | found.get(axis, {"reason": reasons.get(axis)})


def _unfit(x: Floats, value: Floats, runs: int) -> str | None:
    """Why an axis cannot be compared."""
    if runs < MIN_RUNS:
        return f"{runs} runs: {MIN_RUNS} are needed to leave one out"
    if unknown := int((~np.isfinite(x)).sum()):
        return f"unknown for {unknown} of {len(x)} checkpoints"
    if len(np.unique(value)) < 2:
        return "all scores are equal"
    return "the same for all checkpoints" if len(np.unique(x)) < 2 else None


def _ranked(scores: list[dict[Axis, float]]) -> list[tuple[Axis, dict[str, Any]]]:
    least = [min(errors.values()) for errors in scores]
    everywhere = set.intersection(*(set(errors) for errors in scores))
    found = [
        (
            axis,
            {
                "relative_error": float(np.mean([errors[axis] / (lowest or 1.0) for errors, lowest in zip(scores, least, strict=True)])),
                "best_for": sum(errors[axis] == lowest for errors, lowest in zip(scores, least, strict=True)),
            },
        )
        for axis in everywhere
    ]
    return sorted(found, key=lambda ranked: (ranked[1]["relative_error"], ranked[0]))
