"""What tuning does to thresholds: eta by the amount of tuning data, on the loss that the checkpoints had before.

Tuning moves the point of emergence towards less capable models, the further the more data it is given (Snell et al. 2024, arXiv
2411.16035). A tuned run begins with one checkpoint, its parent, and its checkpoints are the amounts; so at each amount the parents'
losses and the scores after tuning are a curve, and its verdict is that of `thresholds`. Amount 0 are the parents themselves.

P parents, A amounts, B resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from losslens.analysis import onset
from losslens.analysis.curves import Curve, Floats, Ints, crossing, split
from losslens.analysis.interval import weighted_etas
from losslens.analysis.resampling import block_weights
from losslens.analysis.thresholds import Finding, beginning, judge
from losslens.errors import UserError

RESAMPLES = 200
_Z = 1.96  # standard errors of a 95 % interval

KEY_COLUMNS = [("study", pa.string()), ("corpus", pa.string()), ("task", pa.string()), ("format", pa.string()), ("shots", pa.int64())]
KEY_COLUMNS += [("metric", pa.string()), ("loss_dataset", pa.string()), ("loss_unit", pa.string())]
AMOUNTS = pa.schema(
    [*KEY_COLUMNS, ("amount", pa.int64()), ("verdict", pa.string())]
    + [(name, pa.float64()) for name in ("eta", "eta_low", "eta_high", "shift", "shift_low", "shift_high")]
    + [("moved", pa.string()), ("n_parents", pa.int64()), ("n_runs", pa.int64())]
)
SIZES = pa.schema(
    [*KEY_COLUMNS, ("small", pa.string()), ("large", pa.string()), ("verdict", pa.string()), ("amount", pa.int64())]
    + [(name, pa.float64()) for name in ("target", "target_loss", "score", "at_loss", "untuned_at_loss")]
)


class Key(NamedTuple):
    """What is tuned how and asked what: one curve for each amount."""

    study: str | None
    corpus: str | None
    task: str | None
    format: str | None
    shots: int | None
    metric: str | None
    loss_dataset: str | None
    loss_unit: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Amount:
    """The parents after `tokens` of tuning: their scores then against their losses before. `parents` [P] are their numbers, the same at
    each amount; runs are those that the parents come from."""

    tokens: int
    curve: Curve
    parents: Ints
    finding: Finding

    def above(self, cut: float) -> Amount:
        """With the parents whose loss is above the cut only."""
        kept = self.curve.loss > cut
        curve = self.curve.only(kept)
        return Amount(self.tokens, curve, self.parents[kept], judge(curve))


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """All amounts of one tuning on one task, ascending. `run` [P] is the run of each parent, in the order of runs and of training;
    `sizes` [P] their sizes, and `params` how large these are, where it is known."""

    key: Key
    amounts: tuple[Amount, ...]
    run: Ints
    sizes: tuple[str, ...]
    params: dict[str, float]

    def resampled(self, amount: Amount, *, seed: int = 0) -> Floats:
        """By how much eta differs in each of B resamples of runs and stretches of parents, which are the same at every amount; NaN where
        a resample has too few parents to tell."""
        early, bound = beginning(amount.curve)
        place = dict(zip(amount.curve.row.tolist(), amount.parents.tolist(), strict=True))
        drawn = block_weights(self.run, count=RESAMPLES, seed=seed)[:, [place[row] for row in early.row.tolist()]]
        fit = onset.fit(early, bound)
        usable = (drawn > 0).sum(axis=1) >= onset.PARAMETERS
        etas = np.full(RESAMPLES, np.nan)
        etas[usable] = weighted_etas(early, fit, bound, drawn[usable])
        return _widened(etas - np.nanmedian(etas), fit.sd(), seed + amount.tokens) if usable.any() else etas


def tuned(points: pa.Table, lineage: pa.Table) -> list[Tuned]:
    """What was tuned, from rows of view `curve` whose loss is a parent's and, of each tuned run (`run_id`), its `corpus`, `parent`,
    `parent_run` and `parent_tokens`.

    Raises:
        UserError: a parent was tuned in two ways that cannot be told apart.
    """
    of_run = {row["run_id"]: row for row in lineage.to_pylist()}
    groups: dict[Key, dict[int, list[dict[str, Any]]]] = {}
    for row in points.to_pylist():
        if row["tokens"] is None or row["run_id"] not in of_run:
            continue
        about = of_run[row["run_id"]]
        key = Key(**{name: about["corpus"] if name == "corpus" else row[name] for name in Key._fields})
        moved = {"run_id": about["parent_run"], "tokens": about["parent_tokens"], "parent": about["parent"]}
        groups.setdefault(key, {}).setdefault(row["tokens"], []).append(row | moved)
    return [_gathered(key, groups[key]) for key in sorted(groups, key=lambda key: tuple((name is None, name) for name in key))]


def amounts(found: list[Tuned]) -> pa.Table:
    """A row for each amount: verdict and eta, and by how much eta moved from where it is without tuning. `shift` has an interval over
    the same resamples of runs and parents at both amounts; `moved` is `earlier` (at a higher loss), `later`, or `undecided`."""
    rows = [row for one in found for row in _rows(one)]
    return pa.Table.from_pylist(rows, schema=AMOUNTS)


def sizes(found: list[Tuned]) -> pa.Table:
    """A row for each pair of sizes: whether tuning lets the smaller reach what the larger scores untuned at its lowest loss.

    `target` is that score. `at_loss` is the highest loss from which on the parents of the smaller reach it, within its standard error, by a
    straight line between parents; `amount` is the tuning with which that is highest, `score` what the smaller then has at its lowest loss.
    Verdict: `reaches`; `already`, where it does so without tuning, at `untuned_at_loss`; `below`, by more than chance; or `undecided`.
    """
    return pa.Table.from_pylist([row for one in found for row in _pairs(one)], schema=SIZES)


def _gathered(key: Key, by_amount: Mapping[int, list[dict[str, Any]]]) -> Tuned:
    every = {row["parent"]: row for rows in by_amount.values() for row in rows}
    ordered = sorted(every, key=lambda name: (str(every[name]["run_id"]), every[name]["tokens"] or 0, -every[name]["loss"], name))
    number = {name: place for place, name in enumerate(ordered)}
    runs = np.unique([str(every[name]["run_id"]) for name in ordered], return_inverse=True)[1]
    made = []
    for tokens in sorted(by_amount):
        rows = by_amount[tokens]
        if len({row["parent"] for row in rows}) < len(rows):
            twice = "a checkpoint was tuned twice on the same data in different ways"
            raise UserError(twice, "tune into another results directory, or under another name: --set name=NAME")
        ((_, curve),) = split(_table(rows))
        numbers = np.asarray([number[rows[row]["parent"]] for row in curve.row.tolist()], dtype=np.int64)
        made.append(Amount(tokens, curve, numbers, judge(curve)))
    params = {str(row["size"]): float(row["params"]) for row in every.values() if row["params"] is not None}
    return Tuned(key, tuple(made), runs, tuple(str(every[name]["size"]) for name in ordered), params)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    table = pa.Table.from_pylist(rows)
    return table.set_column(table.column_names.index("run_id"), "run_id", pc.cast(table["run_id"], pa.string()))


def _rows(one: Tuned) -> Iterator[dict[str, Any]]:
    untuned = next((amount for amount in one.amounts if amount.tokens == 0 and amount.finding.eta is not None), None)
    base = one.resampled(untuned) if untuned else None
    for amount in one.amounts:
        found = amount.finding
        row = one.key._asdict() | {name: getattr(found, name) for name in ("verdict", "eta", "eta_low", "eta_high")}
        row |= {"amount": amount.tokens, "n_parents": int(amount.curve.trained.sum()), "n_runs": len(np.unique(amount.curve.run))}
        if untuned and base is not None and amount is not untuned and found.eta is not None and untuned.finding.eta is not None:
            shift = found.eta - untuned.finding.eta
            half = _Z * float(np.nanstd(one.resampled(amount) - base))
            row |= {"shift": shift, "shift_low": shift - half, "shift_high": shift + half}
            row["moved"] = "earlier" if shift > half else "later" if shift < -half else "undecided"
        yield row


def _widened(etas: Floats, least: float, seed: int) -> Floats:
    """Resampled etas with a standard deviation of at least `least`, what the likelihood of one fit says: few parents resample too alike."""
    missing = least**2 - float(np.nanvar(etas))
    if missing <= 0:
        return etas
    widened: Floats = etas + np.random.default_rng(seed).normal(0.0, missing**0.5, len(etas))
    return widened


def _pairs(one: Tuned) -> Iterator[dict[str, Any]]:
    at = {amount.tokens: amount for amount in one.amounts}
    if 0 not in at or len(at) < 2:
        return
    for small, large in combinations(sorted(one.params, key=lambda size: one.params[size]), 2):
        target = _of_size(one, at[0], large)
        if one.params[small] < one.params[large] and len(target.loss):
            yield one.key._asdict() | {"small": small, "large": large} | _pair(one, at, small, target)


def _pair(one: Tuned, at: Mapping[int, Amount], small: str, target: Curve) -> dict[str, Any]:
    goal = int(target.loss.argmin())
    level = float(target.gain[goal] - target.noise[goal])
    tried = {tokens: _of_size(one, amount, small) for tokens, amount in at.items()}
    reached = {tokens: _stays_above(curve, level) for tokens, curve in tried.items()}
    met = {tokens: loss for tokens, loss in reached.items() if tokens and loss is not None}
    amount = max(met, key=lambda tokens: (met[tokens], -tokens)) if met else max(at)
    curve = tried[amount]
    best = int(curve.loss.argmin()) if len(curve.loss) else None
    behind = None if best is None else float(target.gain[goal] - curve.gain[best])
    noise = None if best is None else float(np.hypot(target.noise[goal], curve.noise[best]))
    short = behind is not None and noise is not None and behind > _Z * noise
    return {
        "verdict": "already" if reached[0] is not None else "reaches" if met else "below" if short else "undecided",
        "amount": amount,
        "target": float(target.value[goal]),
        "target_loss": float(target.loss[goal]),
        "score": None if best is None else float(curve.value[best]),
        "at_loss": reached[amount],
        "untuned_at_loss": reached[0],
    }


def _of_size(one: Tuned, amount: Amount, size: str) -> Curve:
    return amount.curve.only(np.asarray([one.sizes[parent] == size for parent in amount.parents.tolist()], dtype=np.bool_))


def _stays_above(curve: Curve, level: float) -> float | None:
    """The highest loss from which on the gain is at least `level`, by a straight line between checkpoints; None when it never is."""
    order = np.argsort(-curve.loss)
    gain = curve.gain[order]
    found = crossing(curve.loss[order], gain, gain < level, level)
    return found[0] if found else None
