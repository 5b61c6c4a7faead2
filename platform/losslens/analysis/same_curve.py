"""Do runs that differ in size (or architecture, optimizer, corpus, ...) perform alike at equal loss, compute or tokens?

The model, the verdicts and what they assume are in docs/SAME_CURVE.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from losslens.analysis import monotone
from losslens.analysis.axes import MIN_RUNS, POINT, logarithm, side_by_side
from losslens.analysis.curves import Curve, Floats, Ints, split
from losslens.analysis.effect import Compared, Effect, Points, effect_of
from losslens.errors import UserError
from losslens.results.tables import SAME_CURVE
from losslens.specs import levels_of

By = Literal["size", "architecture", "optimizer", "corpus", "seed", "tokenizer", "schedule", "variant", "study"]
Axis = Literal["loss", "flops", "tokens"]
Verdict = Literal["same", "different", "undecided"]

MARGIN = 2.0  # points
WITHIN_A_STUDY = frozenset({"size", "seed"})  # all else is constant in a study, so studies are compared with each other


@dataclass(frozen=True, slots=True, eq=False)
class Contrast:
    """`level` against `reference`: `z` of each run, from 0 to 1, and NaN for runs that belong to neither."""

    level: str | None
    reference: str | None
    z: Floats


def same_curve(curve: pa.Table, runs: pa.Table, *, by: str = "size", margin: float = MARGIN, against: str | None = None) -> pa.Table:
    """For each curve of view `curve` and each axis, what the property `by` of view `runs` adds at equal position: a column of it, or
    a factor of a study's variants.

    One row for each level against the reference: `against`, or the level that most runs have (of equals the first by name); by size
    one for the largest against the smallest. Effects in points, a hundredth of the metric's unit, in its own sign. Columns:
    `losslens.results.tables.SAME_CURVE`.

    Raises:
        UserError: `by` names no property, `against` none of its levels, or the margin is not above 0.
    """
    known = {str(row["run_id"]): levels_of(row.get("variant")) | row for row in runs.to_pylist()}
    factors = sorted({factor for row in known.values() for factor in levels_of(row.get("variant"))} - set(get_args(By)))
    if by not in (*get_args(By), *factors):
        raise UserError(f"Runs cannot be compared by {by!r}.", f"Compare them by {', '.join((*get_args(By), *factors))}.")
    if not 0 < margin < np.inf:
        raise UserError(f"An equivalence margin of {margin:g} points leaves nothing to decide.", "Give one above 0, such as 2.")
    if against is not None:
        _check_level(against, by, [row.get(by) for row in known.values()])
    about = {"property": by, "margin": margin, "method": "same-curve/1", "computed_at": datetime.now(UTC)}
    table = curve if by in WITHIN_A_STUDY else _together(curve)
    shared: dict[Any, _AlongAxis] = {}
    rows = [
        key._asdict() | about | row
        for key, points in split(table)
        for row in _rows(table, points.only(points.trained), known, by, margin, against, shared)
    ]
    return pa.Table.from_pylist(rows, schema=SAME_CURVE)


def verdict_of(effect: Effect, margin: float) -> tuple[Verdict, str | None]:
    """The verdict at a margin in the effect's unit, and why it stays open. docs/SAME_CURVE.md gives it in words."""
    beyond = np.abs(effect.at) > margin
    apart = (effect.at_low > 0) | (effect.at_high < 0)
    if (effect.at_low >= -margin).all() and (effect.at_high <= margin).all():
        return "same", None
    if (beyond & apart).any():
        return "different", None
    if apart.any():
        return "undecided", "there is an effect, and the margin lies within its interval"
    return "undecided", "the interval holds both no effect and one beyond the margin"


def contrasts(labels: list[Any], params: list[int | None], by: str, against: str | None = None) -> list[Contrast]:
    """What to compare, from the label and the parameters of each run: by size, where all are known, one slope over log parameters
    from the smallest to the largest; otherwise each level with `against`, or with the one that most runs have."""
    names = ["" if label is None else str(label) for label in labels]
    if by == "size" and all(params) and len(set(params)) > 1:
        size = np.log(np.asarray(params, dtype=np.float64))
        largest, smallest = (names[place] or str(params[place]) for place in (int(size.argmax()), int(size.argmin())))
        return [Contrast(largest, smallest, (size - size.min()) / np.ptp(size))]
    levels = sorted(set(names) - {""})
    if len(levels) < 2 or against not in (None, *levels):
        return []
    reference = max(levels, key=names.count) if against is None else against
    numbers = [{reference: 0.0, level: 1.0} for level in levels if level != reference]
    others = [level for level in levels if level != reference]
    return [
        Contrast(level, reference, np.asarray([number.get(name, np.nan) for name in names]))
        for level, number in zip(others, numbers, strict=True)
    ]


def _check_level(against: str, by: str, levels: list[Any]) -> None:
    if by == "size":
        raise UserError("By size the largest is compared with the smallest.", "Leave --against out, or compare by something else.")
    there = sorted({str(level) for level in levels if level is not None})
    if against not in there:
        raise UserError(f"No run has the {by} {against!r}.", f"Compare against {', '.join(there) or 'nothing: no run has one'}.")


@dataclass(frozen=True, slots=True, eq=False)
class _AlongAxis:
    """One axis: what each contrast came to, and each run's squared error as predicted from the other runs."""

    compared: list[Compared]
    errors: Floats | None


def _rows(
    table: pa.Table,
    curve: Curve,
    known: Mapping[str, Mapping[str, Any]],
    by: str,
    margin: float,
    against: str | None,
    shared: dict[Any, _AlongAxis],
) -> Iterator[dict[str, Any]]:
    _, first, run = np.unique(curve.run, return_index=True, return_inverse=True)
    about = [known.get(str(name), {}) for name in table["run_id"].take(pa.array(curve.row[first])).to_pylist()]
    compared = contrasts([one.get(by) for one in about], [one.get("params") for one in about], by, against)
    along: dict[Axis, _AlongAxis] = {}
    missing: dict[Axis, str] = {}
    for axis in get_args(Axis):
        x = -curve.loss if axis == "loss" else logarithm(table, axis, curve.row)
        if unknown := int((~np.isfinite(x)).sum()):
            missing[axis] = f"{axis} of {unknown} of {len(x)} checkpoints are unknown"
        elif len(np.unique(x)) < 2:
            missing[axis] = f"all checkpoints have the same {axis}"
        elif len(np.unique(curve.value)) < 2:
            missing[axis] = "all scores are equal"
        else:
            along[axis] = _cached(shared, axis, x, curve, run, compared)
    behind = side_by_side({axis: found.errors for axis, found in along.items() if found.errors is not None})
    for number, contrast in enumerate(compared or [Contrast(None, None, np.empty(0))]):
        for axis in get_args(Axis):
            row = {"level": contrast.level, "reference": contrast.reference, "axis": axis}
            measured = {"n_checkpoints": len(run), "n_runs": len(first), "verdict": "undecided"}
            if not compared:
                alone = f"all runs have the same {by}, or none is known" if against is None else f"no {by} to compare with {against}"
                yield row | measured | {"reason": alone if len(run) else "no trained checkpoint"}
            elif axis in missing:
                yield row | measured | {"reason": missing[axis]}
            else:
                yield row | _described(along[axis].compared[number], margin) | behind.get(axis, {})


def _cached(shared: dict[Any, _AlongAxis], axis: Axis, x: Floats, curve: Curve, run: Ints, compared: list[Contrast]) -> _AlongAxis:
    """Compute and tokens do not depend on the loss that a score is set against, so what they gave is kept."""
    name = None if axis == "loss" else (axis, x.tobytes(), curve.value.tobytes(), run.tobytes())
    if name is None or name not in shared:
        found = _along_axis(x, curve, run, compared)
        if name is None:
            return found
        shared[name] = found
    return shared[name]


def _along_axis(x: Floats, curve: Curve, run: Ints, compared: list[Contrast]) -> _AlongAxis:
    weight = (curve.noise * curve.room) ** -2.0
    effects = []
    for contrast in compared:
        points = Points(x, curve.value, weight, run, contrast.z[run])
        effects.append(effect_of(points.only(np.isfinite(points.z))))
    if run[-1] + 1 < MIN_RUNS:
        return _AlongAxis(effects, None)
    return _AlongAxis(effects, monotone.unseen_errors(x, curve.value, weight, run))


def _described(compared: Compared, margin: float) -> dict[str, Any]:
    row = {"n_checkpoints": compared.n_checkpoints, "n_runs": compared.n_runs, "verdict": "undecided", "reason": compared.reason}
    effect = compared.effect
    if effect is None:
        return row
    verdict, reason = verdict_of(effect, margin / POINT)
    most = int(np.abs(effect.at).argmax())
    measured = {
        "effect": effect.mean,
        "effect_low": effect.mean_low,
        "effect_high": effect.mean_high,
        "largest": float(effect.at[most]),
        "largest_low": float(effect.at_low[most]),
        "largest_high": float(effect.at_high[most]),
        "run_spread": effect.run_spread,
    }
    points = {name: POINT * value for name, value in measured.items()}
    return row | points | {"verdict": verdict, "reason": reason, "largest_at": float(effect.place[most])}


def _together(curve: pa.Table) -> pa.Table:
    """The rows of all studies as one study, named after them."""
    names = "+".join(sorted({name for name in curve["study"].to_pylist() if name is not None})) or None
    return curve.set_column(curve.column_names.index("study"), "study", pa.array([names] * len(curve), pa.string()))
