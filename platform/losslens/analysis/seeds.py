"""How much of a score is luck: runs that differ in nothing but their seed, compared at equal loss around where the ability appears.

A mean over seeds and its deviation describe no run where some seeds have the ability and others lack it. So at each loss: how many seeds
have it, with what certainty that gives a probability; how far seeds scatter beyond what the noise of their items explains; and
whether their scores fall into two groups. docs/SEEDS.md has the definitions and what they can see.

K runs, L losses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from scipy import stats

from losslens.analysis.curves import Bools, Curve, Floats, Key, crossing, half_gain, split
from losslens.analysis.dip import dip, p_value
from losslens.analysis.thresholds import CLEAR, absent_up_to

LEVELS = 7  # losses at which seeds are compared
MIN_FOR_DIP = 10  # seeds; with 8 the test misses half of the even splits that lie ten deviations apart (tests/bench/bench_seeds.py)
CONFIDENCE = 0.95
# What makes two runs differ in their seed only.
ALIKE = (
    "study", "variant", "size", "params", "architecture", "tokenizer", "vocab_size", "corpus", "seq_len", "optimizer", "schedule",
    "peak_lr", "batch_tokens", "tokens_planned", "parent_checkpoint_id",
)  # fmt: skip

COLUMNS = pa.schema(
    [(name, pa.int64() if name == "shots" else pa.string()) for name in Key._fields]
    + [("size", pa.string()), ("variant", pa.string()), ("loss", pa.float64()), ("n_seeds", pa.int64())]
    + [(name, pa.float64()) for name in ("mean", "sd", "noise", "excess_sd", "spread_p", "lowest", "highest")]
    + [(f"{kind}{end}", pa.float64() if end else pa.int64()) for kind in ("above", "half") for end in ("", "_share", "_low", "_high")]
    + [("half_level", pa.float64()), ("dip", pa.float64()), ("dip_p", pa.float64()), ("reason", pa.string())]
)


class Alike(NamedTuple):
    """Runs, by id, that differ in their seed only; at least two seeds."""

    size: str | None
    variant: str | None
    runs: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """One curve read off at `losses`, which fall. `value`, its standard error `noise`, `above` (clearly more than what counts as
    absent) and `half` (beyond `level`, half of the best gain) have shape [K, L], in the metric's unit; NaN and false where
    a run has no checkpoint on both sides. `passes` [K] is the loss at which a run passes `level` to stay beyond it, NaN where it never
    does. `groups` are rows of these, by what is alike."""

    losses: Floats
    runs: tuple[str, ...]
    groups: tuple[tuple[Alike, tuple[int, ...]], ...]
    level: float
    value: Floats
    noise: Floats
    above: Bools
    half: Bools
    passes: Floats


class Share(NamedTuple):
    """k of n with the exact interval of Clopper and Pearson (1934) for the probability."""

    k: int
    n: int
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class AtLoss:
    """Seeds alike at one loss. `noise` is the root mean square of their standard errors, `excess_sd` the deviation beyond it, `spread_p`
    how often noise alone scatters scores at least as far; `reason` says why there is no dip."""

    loss: float
    mean: float
    sd: float
    noise: float
    excess_sd: float
    spread_p: float
    lowest: float
    highest: float
    above: Share
    half: Share
    dip: float | None
    dip_p: float | None
    reason: str | None


def seeds(curve: pa.Table, runs: pa.Table, thresholds: pa.Table, *, levels: int = LEVELS) -> pa.Table:
    """One row for each curve of view `curve`, each group of runs of view `runs` that are alike but for their seed, and each loss.
    Columns: `COLUMNS`. Curves whose row in `thresholds` says anything but `emergent` are left out; so are those without chance."""
    rows = [
        key._asdict() | {"size": alike.size, "variant": alike.variant, "half_level": spread.level} | _columns(found)
        for key, spread in spreads(curve, runs.to_pylist(), thresholds.to_pylist(), levels=levels)
        for alike, members in spread.groups
        for found in at_each_loss(spread, members)
    ]
    return pa.Table.from_pylist(rows, schema=COLUMNS)


def several_seeds(runs: Sequence[Mapping[str, Any]]) -> list[Alike]:
    """The groups of runs that differ in their seed only, smallest models first; of two runs of a seed one counts."""
    groups: dict[tuple[Any, ...], dict[int, str]] = defaultdict(dict)
    for run in runs:
        if run["seed"] is not None:
            groups[tuple(run.get(name) for name in ALIKE)].setdefault(run["seed"], run["run_id"])
    found = [(dict(zip(ALIKE, key, strict=True)), by_seed) for key, by_seed in groups.items() if len(by_seed) > 1]
    found.sort(key=lambda pair: (pair[0]["params"] or 0, str(pair[0]["size"]), str(pair[0]["variant"])))
    return [Alike(about["size"], about["variant"], tuple(by_seed[seed] for seed in sorted(by_seed))) for about, by_seed in found]


def spreads(
    curve: pa.Table, runs: Sequence[Mapping[str, Any]], thresholds: Sequence[Mapping[str, Any]], *, levels: int = LEVELS
) -> Iterator[tuple[Key, Spread]]:
    """Each curve at `levels` losses, from the start of the interval of eta, or as early as any seed passes half of the best gain, to as
    long after that. Left out: curves of which fewer than two seeds pass it."""
    groups = several_seeds(runs)
    judged = {Key(*(row[name] for name in Key._fields)): row for row in thresholds}
    for key, points in split(curve):
        row = judged.get(key)
        if not points.has_chance or (row is not None and row["verdict"] != "emergent"):
            continue
        found = _spread(points.only(points.trained), curve["run_id"], groups, row["eta_high"] or row["eta"] if row else None, levels)
        if found is not None:
            yield key, found


def at_each_loss(spread: Spread, members: Sequence[int]) -> list[AtLoss]:
    """What is said of seeds that are alike, at each loss that at least two of them reached."""
    rows = []
    for i, loss in enumerate(spread.losses):
        there = [k for k in members if np.isfinite(spread.value[k, i])]
        if len(there) > 1:
            rows.append(
                _at_loss(float(loss), spread.value[there, i], spread.noise[there, i], spread.above[there, i], spread.half[there, i])
            )
    return rows


def most_divided(rows: Sequence[AtLoss]) -> AtLoss | None:
    """The first loss at which it is nearest to even whether a seed is past half of the best gain, of those that most seeds reached."""
    most = max((row.half.n for row in rows), default=0)
    return min((row for row in rows if row.half.n == most), key=lambda row: abs(row.half.k / row.half.n - 0.5), default=None)


def share_of(k: int, n: int) -> Share:
    """The exact interval: it holds the probability at least `CONFIDENCE` of the time, with few seeds more often."""
    tail = (1 - CONFIDENCE) / 2
    low = float(stats.beta.ppf(tail, k, n - k + 1)) if k else 0.0
    high = float(stats.beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0
    return Share(k, n, low, high)


def _at_loss(loss: float, value: Floats, noise: Floats, above: Bools, half: Bools) -> AtLoss:
    variance, expected, n = float(value.var(ddof=1)), float((noise**2).mean()), len(value)
    found, p, reason = None, None, None
    if n < MIN_FOR_DIP:
        reason = f"too few for a dip test: {n} seeds, {MIN_FOR_DIP} are needed"
    elif float(np.ptp(value)) == 0:
        reason = "all scores are equal"
    else:
        found = dip(value)
        p = p_value(found, n)
    return AtLoss(
        loss=loss,
        mean=float(value.mean()),
        sd=variance**0.5,
        noise=expected**0.5,
        excess_sd=max(variance - expected, 0.0) ** 0.5,
        spread_p=float(stats.chi2.sf((n - 1) * variance / expected, n - 1)),
        lowest=float(value.min()),
        highest=float(value.max()),
        above=share_of(int(above.sum()), n),
        half=share_of(int(half.sum()), n),
        dip=found,
        dip_p=p,
        reason=reason,
    )


def _columns(found: AtLoss) -> dict[str, Any]:
    same = ("loss", "mean", "sd", "noise", "excess_sd", "spread_p", "lowest", "highest", "dip", "dip_p", "reason")
    row: dict[str, Any] = {name: getattr(found, name) for name in same} | {"n_seeds": found.half.n}
    for kind, share in (("above", found.above), ("half", found.half)):
        row |= {kind: share.k, f"{kind}_share": share.k / share.n, f"{kind}_low": share.low, f"{kind}_high": share.high}
    return row


def _spread(points: Curve, names: pa.ChunkedArray, groups: Sequence[Alike], start: float | None, levels: int) -> Spread | None:
    """`start` is the highest loss that eta may have."""
    codes, first = np.unique(points.run, return_index=True)
    code = dict(zip(names.take(pa.array(points.row[first])).to_pylist(), codes.tolist(), strict=True))
    alike = [known for one in groups if len((known := one._replace(runs=tuple(run for run in one.runs if run in code))).runs) > 1]
    level = _half_of_best(points)
    if not alike or level is None:
        return None
    runs = tuple(run for one in alike for run in one.runs)
    own = [points.only(points.run == code[run]) for run in runs]
    passes, apart = (
        np.asarray(column)
        for column in zip(*(crossing(one.loss, one.gain, one.gain <= level, level) or _NEVER for one in own), strict=True)
    )
    known = np.isfinite(passes)
    if known.sum() < 2:
        return None
    middle = float(np.median(passes[known]))
    reach = max((start or middle) - middle, float(np.ptp(passes[known])), float(apart[known].max()))
    losses = middle + reach * np.linspace(1, -1, levels)
    value, gain, noise = (np.stack([_between(one.loss, column(one), losses) for one in own]) for column in _COLUMNS)
    kept = np.isfinite(gain).sum(axis=0) > 1
    return Spread(
        losses=losses[kept],
        runs=runs,
        groups=_places(alike),
        level=float(np.median(points.value - points.room * points.gain)) + points.room * level,
        value=value[:, kept],
        noise=(noise * abs(points.room))[:, kept],
        above=(gain > absent_up_to(points) + CLEAR * noise)[:, kept],
        half=(gain > level)[:, kept],
        passes=passes,
    )


_NEVER = (np.nan, np.nan)
_COLUMNS = (attrgetter("value"), attrgetter("gain"), attrgetter("noise"))


def _places(alike: Sequence[Alike]) -> tuple[tuple[Alike, tuple[int, ...]], ...]:
    ends = np.cumsum([len(one.runs) for one in alike]).tolist()
    return tuple((one, tuple(range(end - len(one.runs), end))) for one, end in zip(alike, ends, strict=True))


def _half_of_best(points: Curve) -> float | None:
    if not len(points.gain):
        return None
    best = int(points.gain.argmax())
    return half_gain(float(points.gain[best]), float(points.noise[best]), chance=0.0)


def _between(loss: Floats, values: Floats, losses: Floats) -> Floats:
    """The values of a run where its loss first falls below each of `losses`, on the line between two checkpoints; NaN where it has
    none on one side."""
    if len(loss) < 2:
        return np.full(len(losses), np.nan)
    falls = (loss[:-1, None] >= losses) & (losses > loss[1:, None])
    first = falls.argmax(axis=0)
    gap = np.where(falls.any(axis=0), loss[first] - loss[first + 1], np.nan)
    share = (loss[first] - losses) / gap
    return np.asarray(values[first] + share * (values[first + 1] - values[first]))
