"""A ladder: the runs of one study as scaling laws and forecasts see them, one `Ladder` for each task, format and metric.

A run counts once for laws of size and data, by the mean of its last checkpoints; its checkpoints on the way count for the
link between loss and score. R runs, M checkpoints on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from losslens.analysis.curves import NO_CHANCE, Bools, Floats, Ints, Key, numbers

LOSS, CHOICE, OWN = "loss", "correct_choice_prob", "bits_per_byte"
"""Gauges: quantities that fall as models improve, from which a score can be read. The curve's loss, -log of the correct
option's mean probability, and the task's own bits per byte."""

_AVERAGED = 5  # last checkpoints that stand for a run (Bhagia et al. 2024) ...
_LAST_PART = 1 / 8  # ... as far as they lie in this last part of its tokens: sparse checkpoints are not one state
_SKIPPED = 0.1  # of a run's checkpoints, at its beginning: not on the curve yet (Bhagia et al. 2024)


@dataclass(frozen=True, slots=True, eq=False)
class Ladder:
    """`gain` is the score with chance at 0 and the best at 1; `room` = best - chance turns gains into scores.

    Arrays [R]: `params`, `tokens`, `gain`, `wobble` (standard deviation of the gain over the averaged checkpoints, NaN for
    one), `gauges`. Arrays [M], trailing means over as many checkpoints as stand for the run: `on_run` (place in `runs`),
    `on_gain`, `on_gauges`; `apart` marks those that share no checkpoint with one another.
    """

    key: Key
    runs: tuple[str, ...]
    sizes: tuple[str, ...]
    params: Floats
    tokens: Floats
    gain: Floats
    wobble: Floats
    gauges: dict[str, Floats]
    on_run: Ints
    on_gain: Floats
    on_gauges: dict[str, Floats]
    apart: Bools
    chance: float
    room: float
    items: float
    n_checkpoints: int

    def only(self, chosen: Bools) -> Ladder:
        """The chosen runs [R]."""
        places = np.cumsum(chosen) - 1
        on = chosen[self.on_run]
        return replace(
            self,
            runs=tuple(np.asarray(self.runs, dtype=object)[chosen]),
            sizes=tuple(np.asarray(self.sizes, dtype=object)[chosen]),
            params=self.params[chosen],
            tokens=self.tokens[chosen],
            gain=self.gain[chosen],
            wobble=self.wobble[chosen],
            gauges={name: values[chosen] for name, values in self.gauges.items()},
            on_run=places[self.on_run[on]],
            on_gain=self.on_gain[on],
            on_gauges={name: values[on] for name, values in self.on_gauges.items()},
            apart=self.apart[on],
            n_checkpoints=int(on.sum()),
        )

    def score(self, gain: Floats) -> Floats:
        """Gains as scores."""
        return self.chance + self.room * gain

    def noise(self, gain: Floats) -> Floats:
        """Standard error of a gain measured on as many items as here: that of a proportion, an upper bound for other means."""
        value = np.clip(self.score(gain), 0.0, 1.0)
        return np.asarray(np.sqrt(np.maximum(value * (1 - value), 0.25 / self.items) / self.items) / abs(self.room))


def ladders(table: pa.Table) -> Iterator[Ladder]:
    """The ladders in rows of view `curve`, which may have the column `params_non_embedding` too, sorted by key.

    Size is parameters without embeddings where every run tells them, else all parameters. Runs without size or tokens and
    metrics without a chance level are left out.
    """
    columns = _Columns(table)
    for group in columns.groups():
        gauges = {name: columns.metric(group, name) for name in (CHOICE, OWN)}
        for metric in sorted({str(name) for name in columns.names["metric"][group]} - NO_CHANCE):
            chosen = group[columns.names["metric"][group] == metric]
            others = {name: places for name, places in gauges.items() if len(places) and name != metric}
            found = columns.ladder(chosen, others)
            if found is not None:
                yield found


def ends(run: Any, params: Floats, tokens: Floats, value: Floats) -> tuple[Floats, Floats, Floats]:
    """Parameters, tokens and value at the end of each run, each [R], from one row a checkpoint in any order."""
    order = np.lexsort((tokens, run.astype(str)))
    params, tokens, value = params[order], tokens[order], value[order]
    _, starts, counts = np.unique(run[order].astype(str), return_index=True, return_counts=True)
    last = starts + counts - 1
    means = [value[end + 1 - _window(tokens[start : end + 1]) : end + 1].mean() for start, end in zip(starts, last, strict=True)]
    return params[last], tokens[last], np.asarray(means)


def model_sizes(table: pa.Table) -> Floats:
    """Parameters without the input embedding where all rows tell them, else all parameters; shape [rows]."""
    inner = numbers(table, "params_non_embedding")
    return inner if np.isfinite(inner).all() else numbers(table, "params")


def _window(tokens: Floats) -> int:
    """How many of one run's last checkpoints stand for it."""
    return min(_AVERAGED, int((tokens >= (1 - _LAST_PART) * tokens[-1]).sum()))


class _Columns:
    """A table's columns as arrays, and the ladders in them."""

    def __init__(self, table: pa.Table) -> None:
        plain = table.combine_chunks()
        self.names = {name: np.asarray(plain[name].to_pylist(), dtype=object) for name in (*Key._fields, "run_id", "size")}
        self.numbers = {name: numbers(plain, name) for name in ("loss", "value", "n", "chance", "tokens")}
        self.better = np.asarray([flag is not False for flag in plain["higher_is_better"].to_pylist()])
        self.params = model_sizes(plain)
        self.checkpoint = _codes(plain["checkpoint_id"])

    def groups(self) -> Iterator[Ints]:
        """Rows that differ in metric only, sorted by name."""
        names = [name for name in Key._fields if name != "metric"]
        places: dict[tuple[Any, ...], list[int]] = {}
        for place, key in enumerate(zip(*(self.names[name] for name in names), strict=True)):
            places.setdefault(key, []).append(place)
        for key in sorted(places, key=lambda key: tuple((part is None, part) for part in key)):
            yield np.asarray(places[key], dtype=np.int64)

    def metric(self, group: Ints, name: str) -> Ints:
        return np.asarray(group[self.names["metric"][group] == name])

    def ladder(self, rows: Ints, others: dict[str, Ints]) -> Ladder | None:
        """The ladder of one metric's rows; `others` are the rows of metrics that serve as gauges."""
        known = np.isfinite(self.numbers["value"][rows]) & np.isfinite(self.params[rows]) & (self.numbers["tokens"][rows] > 0)
        rows = rows[known]
        rows = rows[np.lexsort((self.numbers["tokens"][rows], self.names["run_id"][rows].astype(str)))] if len(rows) else rows
        chance = float(np.nanmean(self.numbers["chance"][rows])) if len(rows) else np.nan
        best = 1.0 if len(rows) and self.better[rows[0]] else 0.0
        if not np.isfinite(chance) or chance == best:
            return None
        key = Key(*(self.names[name][rows[0]] for name in Key._fields))
        items = self.numbers["n"][rows]
        values = {LOSS: self.numbers["loss"][rows]}
        for name, places in others.items():
            values[name] = self._beside(rows, places, name)
        gain = (self.numbers["value"][rows] - chance) / (best - chance)
        facts = {"chance": chance, "room": best - chance, "items": float(np.nanmedian(items)) if np.isfinite(items).any() else 1000.0}
        return _assemble(
            key, self.names["run_id"][rows], self.names["size"][rows], self.params[rows], self.numbers["tokens"][rows], gain, values, facts
        )

    def _beside(self, rows: Ints, places: Ints, name: str) -> Floats:
        """A gauge's values at the checkpoints of `rows`, NaN where it was not measured."""
        order = np.argsort(self.checkpoint[places])
        found = np.searchsorted(self.checkpoint[places][order], self.checkpoint[rows]).clip(max=len(places) - 1)
        at = places[order][found]
        value = np.where(self.checkpoint[at] == self.checkpoint[rows], self.numbers["value"][at], np.nan)
        return np.asarray(-np.log(np.maximum(value, 1e-12)) if name == CHOICE else value)


def _assemble(
    key: Key, run: Any, size: Any, params: Floats, tokens: Floats, gain: Floats, values: dict[str, Floats], facts: dict[str, float]
) -> Ladder:
    """Checkpoints in the order of runs, then of training, to a ladder."""
    runs, starts, counts = np.unique(run.astype(str), return_index=True, return_counts=True)
    ends: dict[str, list[Any]] = {"gain": [], "wobble": [], **{name: [] for name in values}}
    on: dict[str, list[Floats]] = {"run": [], "gain": [], "apart": [], **{name: [] for name in values}}
    for place, (start, count) in enumerate(zip(starts, counts, strict=True)):
        mine = slice(start, start + count)
        window = _window(tokens[mine])
        last = gain[mine][-window:]
        ends["gain"].append(last.mean())
        ends["wobble"].append(last.std(ddof=1) if window > 1 else np.nan)
        kept = slice(start + int(np.ceil(_SKIPPED * count)) if count > 1 else start, start + count)
        on["gain"].append(_trailing(gain[kept], window))
        on["run"].append(np.full(len(on["gain"][-1]), place))
        on["apart"].append(np.arange(len(on["gain"][-1]))[::-1] % window == 0)
        for name, column in values.items():
            ends[name].append(column[mine][-window:].mean())
            on[name].append(_trailing(column[kept], window))
    joined = {name: np.concatenate(parts) for name, parts in on.items()}
    last_rows = starts + counts - 1
    return Ladder(
        key=key,
        runs=tuple(runs),
        sizes=tuple(str(name) for name in size[last_rows]),
        params=params[last_rows],
        tokens=tokens[last_rows],
        gain=np.asarray(ends["gain"]),
        wobble=np.asarray(ends["wobble"]),
        gauges={name: np.asarray(ends[name]) for name in values},
        on_run=joined["run"].astype(np.int64),
        on_gain=joined["gain"],
        on_gauges={name: joined[name] for name in values},
        apart=joined["apart"].astype(bool),
        n_checkpoints=len(gain),
        **facts,
    )


def _trailing(values: Floats, window: int) -> Floats:
    """The mean of what is known among each value and up to `window` - 1 before it."""
    known = np.isfinite(values)
    total = np.cumsum(np.concatenate([[0.0], np.where(known, values, 0.0)]))
    count = np.cumsum(np.concatenate([[0], known]))
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - window, 0)
    counted = count[ends] - count[begins]
    return np.asarray(np.where(counted > 0, (total[ends] - total[begins]) / np.maximum(counted, 1), np.nan))


def _codes(column: Any) -> Ints:
    encoded = column.fill_null("").dictionary_encode().combine_chunks()
    return np.asarray(encoded.indices, dtype=np.int64)
