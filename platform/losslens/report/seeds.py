"""Scores of several seeds at equal loss around where a task rises: whether one run has the ability there is a matter of luck that
a mean and its deviation hide."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from losslens.report.study import Column, Panel, Row, Study
from losslens.report.words import number

LEVELS = 7
# What makes two runs differ in their seed only.
_ALIKE = (
    "size", "params", "architecture", "tokenizer", "vocab_size", "corpus", "seq_len", "optimizer", "schedule", "peak_lr",
    "batch_tokens", "tokens_planned", "parent_checkpoint_id",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AtLoss:
    """Scores of the metric shown first on the headline axis: `values[k][i]` of run `runs[k]` at `losses[i]`, None where the run has
    no checkpoint on both sides. Losses fall."""

    losses: tuple[float, ...]
    runs: tuple[int, ...]
    values: tuple[Column, ...]
    stderr: tuple[Column, ...]


def several_seeds(runs: Sequence[Row]) -> list[int]:
    """The runs, by index, that differ from another in their seed only."""
    groups: dict[tuple[object, ...], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, run in enumerate(runs):
        if run["seed"] is not None:
            groups[tuple(run.get(name) for name in _ALIKE)][run["seed"]].append(index)
    return sorted(index for seeds in groups.values() if len(seeds) > 1 for indices in seeds.values() for index in indices)


def at_equal_loss(study: Study, panel: Panel) -> AtLoss | None:
    """The scores of a task's seeds at `LEVELS` losses, from the start of the interval of eta to well after half of the best gain;
    None where there is one seed, less than two of them rise, or the task has no threshold."""
    runs = several_seeds(study.runs)
    half = [crossing.loss for crossing in panel.crossings if crossing.run in runs and crossing.loss is not None]
    row = study.threshold(panel, panel.curve, study.axis)
    if study.axis is None or len(half) < 2 or (row is not None and row["verdict"] != "emergent"):
        return None
    start = row["eta_high"] or row["eta"] if row is not None else None
    middle = median(half)
    reach = max((start or middle) - middle, max(half) - min(half), *(crossing.gap or 0.0 for crossing in panel.crossings))
    losses = [middle + reach * (1 - 1.75 * step / (LEVELS - 1)) for step in range(LEVELS)]
    curve = panel.curve
    found = {run: [_between(study, run, level, curve.values, curve.stderr) for level in losses] for run in runs}
    kept = [i for i in range(LEVELS) if sum(points[i][0] is not None for points in found.values()) > 1]
    return AtLoss(
        losses=tuple(losses[i] for i in kept),
        runs=tuple(runs),
        values=tuple([points[i][0] for i in kept] for points in found.values()),
        stderr=tuple([points[i][1] for i in kept] for points in found.values()),
    )


def _between(study: Study, run: int, level: float, values: Column, stderr: Column) -> tuple[float | None, float | None]:
    """Value and standard error of a run where its loss first falls below `level`, on the line between two checkpoints."""
    assert study.axis is not None
    points = [
        (loss, value, stderr[i] or 0.0)
        for i, (checkpoint, loss, value) in enumerate(zip(study.checkpoints, study.axis.values, values, strict=True))
        if checkpoint.run == run and loss is not None and value is not None
    ]
    for (high, before, error), (low, after, next_error) in pairwise(points):
        if high >= level > low:
            share = (high - level) / (high - low)
            return before + share * (after - before), error + share * (next_error - error)
    return None, None


def luck(study: Study, panel: Panel, found: AtLoss) -> str:
    """A sentence about the loss at which the seeds of one size differ most."""
    by_size: dict[str, list[int]] = defaultdict(list)
    for place, run in enumerate(found.runs):
        by_size[study.size_of(run).name].append(place)
    spreads = []
    for size, places in by_size.items():
        for i, loss in enumerate(found.losses):
            scores = [(value, found.stderr[k][i] or 0.0) for k in places if (value := found.values[k][i]) is not None]
            if len(scores) > 1:
                spreads.append((max(scores)[0] - min(scores)[0], size, loss, scores))
    if not spreads:
        return ""
    _, size, loss, scores = max(spreads, key=lambda spread: spread[0])
    chance = panel.curve.chance[1] if panel.curve.chance else 0.0
    above = sum(clearly_above(value, error, chance) for value, error in scores)
    low, high = number(min(scores)[0], 2), number(max(scores)[0], 2)
    return (
        f"The seeds of {size} differ most at loss {number(loss)}: {above} of {len(scores)} are clearly above chance there, "
        f"with scores from {low} to {high}."
    )


def clearly_above(value: float, stderr: float, chance: float) -> bool:
    """By more than two standard errors."""
    return value - chance > 2 * stderr
