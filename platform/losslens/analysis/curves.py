"""One performance curve: the checkpoints of all runs that were scored on one task by one metric, against one loss.

Performance is normalised as in the paper: 0 is chance, 1 the best possible value, larger is better whatever the metric.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

NO_CHANCE = frozenset({"bits_per_byte"})
"""Metrics without a level that guessing reaches: the stored chance (8 bits per byte, a uniform byte) is where no
trained model ever is, so nothing can be absent first and appear later."""

MOST = 300
"""Checkpoints of one curve that are fitted one by one. Of more, neighbours are closer than any threshold can be placed."""


class Key(NamedTuple):
    """What names a curve."""

    study: str | None
    task: str | None
    format: str | None
    shots: int | None
    metric: str | None
    loss_dataset: str | None
    loss_unit: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """N checkpoints, each array of shape [N], in the order of their runs and within a run in the order of training.

    `gain` is (value - chance) / (best - chance), or the signed value where the metric has no chance; `noise` its standard
    error; `guess` how much of the gain a strategy without knowledge may reach (see docs/THRESHOLDS.md); `trained` is
    false for checkpoints of step or token 0, which are at chance by construction. `row` is each checkpoint's row in the
    table, `room` what a gain of 1 is in the metric's own unit.
    """

    loss: Floats
    value: Floats
    gain: Floats
    noise: Floats
    run: Ints
    trained: Bools
    row: Ints
    room: float
    has_chance: bool
    guess: float

    def only(self, chosen: Bools | Ints) -> Curve:
        """The chosen checkpoints."""
        return replace(
            self,
            loss=self.loss[chosen],
            value=self.value[chosen],
            gain=self.gain[chosen],
            noise=self.noise[chosen],
            run=self.run[chosen],
            trained=self.trained[chosen],
            row=self.row[chosen],
        )


def split(table: pa.Table) -> Iterator[tuple[Key, Curve]]:
    """The curves in rows of view `curve`, sorted by key. Rows without a loss or a value are left out."""
    columns = {name: numbers(table, name) for name in ("loss", "value", "stderr", "n", "chance", "step", "tokens")}
    better = table["higher_is_better"].fill_null(True).to_numpy()
    named = table["run_id"].fill_null("").combine_chunks().dictionary_encode()
    by_name = np.argsort(np.argsort(np.asarray(named.dictionary.to_pylist(), dtype=str)))  # so that the order of rows says nothing
    runs = by_name[np.asarray(named.indices)]
    places = _places(table)
    for key in sorted(places, key=lambda key: tuple((name is None, name) for name in key)):
        chosen = places[key]
        picked = {name: column[chosen] for name, column in columns.items()}
        yield key, _curve(key, picked, runs[chosen], chosen, higher_is_better=bool(better[chosen[0]]))


def _places(table: pa.Table) -> dict[Key, Ints]:
    """The rows of each curve, in their order."""
    number = np.zeros(table.num_rows, dtype=np.int64)
    for name in Key._fields:
        codes = table[name].combine_chunks().dictionary_encode(null_encoding="encode")
        number = np.unique(number * max(len(codes.dictionary), 1) + np.asarray(codes.indices), return_inverse=True)[1]
    order = np.argsort(number, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(number[order])) + 1) if len(order) else []
    names = table.select(Key._fields).take(pa.array([int(rows[0]) for rows in groups], pa.int64())).to_pylist()
    return {Key(**name): rows for name, rows in zip(names, groups, strict=True)}


def numbers(table: pa.Table, name: str) -> Floats:
    """A column as float64, NaN where it is NULL or missing."""
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    return np.asarray(table[name].cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def _curve(key: Key, columns: dict[str, Floats], run: Ints, row: Ints, *, higher_is_better: bool) -> Curve:
    training = np.where(np.isnan(columns["tokens"]), columns["step"], columns["tokens"])
    known = np.isfinite(columns["loss"]) & np.isfinite(columns["value"])
    order = np.lexsort((-columns["loss"], training, run))
    order = order[known[order]]
    picked = {name: column[order] for name, column in columns.items()}
    chance = float(np.nanmean(picked["chance"])) if np.isfinite(picked["chance"]).any() else np.nan
    best = 1.0 if higher_is_better else 0.0
    has_chance = key.metric not in NO_CHANCE and bool(np.isfinite(chance)) and chance != best
    room = best - chance if has_chance else (1.0 if higher_is_better else -1.0)
    origin = picked["chance"] if has_chance else 0.0
    return Curve(
        loss=picked["loss"],
        value=picked["value"],
        gain=(picked["value"] - np.where(np.isnan(origin), chance, origin)) / room,
        noise=_noise(picked["stderr"], picked["n"], picked["value"]) / abs(room),
        run=run[order],
        trained=~(training[order] == 0),
        row=row[order],
        room=room,
        has_chance=has_chance,
        guess=0.2 * min(max(chance if higher_is_better else 1.0 - chance, 0.0), 1.0) if has_chance else 0.0,
    )


def _noise(stderr: Floats, n: Floats, value: Floats) -> Floats:
    """Standard errors without zeros: 0 of n right is not known better than 1 / n, and no point counts ten times another.

    Where nothing is known of any checkpoint's noise all count alike: the dispersion around the fit is estimated anyway.
    """
    known = np.isfinite(stderr)
    if not known.any():
        spread = float(np.std(value)) if len(value) else 0.0
        return np.full(len(value), spread / 10 or 1.0)
    typical = float(np.median(stderr[known]))
    filled = np.where(known, stderr, typical)
    floor = np.maximum(np.where(np.isfinite(n) & (n > 0), 1.0 / np.maximum(n, 1), 0.0), typical / 10)
    return np.maximum(filled, np.where(floor > 0, floor, 1e-6))


def half_gain(best: float, error: float, chance: float) -> float | None:
    """The level halfway between chance and the best score; None where that is not two standard errors above chance."""
    return None if best - chance <= max(2 * error, 1e-9) else (chance + best) / 2


def crossing(loss: Floats, gain: Floats, below: Bools, level: float) -> tuple[float, float] | None:
    """The loss at which checkpoints, in their order, leave `below` the level for good, on the line between two of them, and by how much
    these differ in loss (0 where none is below); None where they never do."""
    first = int(np.flatnonzero(below)[-1]) + 1 if below.any() else 0
    if first >= len(loss):
        return None
    if first == 0:
        return float(loss[0]), 0.0
    (high, low), (before, after) = loss[first - 1 : first + 1], gain[first - 1 : first + 1]
    return float(high + (level - before) / (after - before) * (low - high)), abs(float(high - low))


def running_mean(values: Floats, half: int) -> Floats:
    """Mean of each value and `half` neighbours on either side, as many as there are."""
    window = np.ones(2 * half + 1)
    mean: Floats = np.convolve(values, window)[half:-half] / np.convolve(np.ones(len(values)), window)[half:-half]
    return mean


def smoothed_noise(curve: Curve) -> Floats:
    """Standard errors as neighbours in loss have them: a checkpoint that scored low by chance would else seem more certain
    than one that scored high by chance, and draw the fit below both."""
    order = np.argsort(curve.loss)
    noise = np.empty(len(order))
    noise[order] = np.sqrt(running_mean(curve.noise[order] ** 2, max(3, len(order) // 16)))
    return noise


def thinned(curve: Curve, most: int = MOST) -> Curve:
    """At most about `most` checkpoints: of a larger curve, neighbours in loss within a run are merged, weighted by their noise."""
    together = -(-len(curve.loss) // most)
    if together == 1:
        return curve
    order = np.lexsort((-curve.loss, curve.run))
    rank = np.arange(len(order)) - np.searchsorted(curve.run[order], curve.run[order])
    first = np.flatnonzero(np.diff(curve.run[order], prepend=-1) | (rank % together == 0))
    weight = curve.noise[order] ** -2.0
    total = np.add.reduceat(weight, first)
    loss, value, gain = (np.add.reduceat(weight * values[order], first) / total for values in (curve.loss, curve.value, curve.gain))
    return replace(curve.only(order[first]), loss=loss, value=value, gain=gain, noise=total**-0.5)


def describe(curve: Curve) -> dict[str, Any]:
    """What every verdict reports: how much was measured."""
    return {"n_checkpoints": len(curve.loss), "n_runs": len(np.unique(curve.run))}
