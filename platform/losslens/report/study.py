"""What a report shows of one study, as plain values aligned with the study's list of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from losslens.analysis.seeds import Spread
from losslens.families import PARENT

Row = Mapping[str, Any]
Column = Sequence[float | None]

HEADLINE_METRICS = {
    "open": ("exact_match", "acc"),
    "letter": ("acc",),
    "text": ("acc_norm", "acc"),
    "pair": ("acc",),
}
MOST_COLOURS = 12
FALLBACK_METRICS = ("acc", "acc_norm", "exact_match", "correct_choice_prob", "brier", "bits_per_byte")


@dataclass(frozen=True, slots=True)
class Size:
    """One size; `slot` is its place among the study's sizes, ordered by parameters, and decides colour and marker."""

    name: str
    params: int | None
    slot: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`run` is an index into `Study.runs`; training FLOPs so far."""

    run: int
    step: int | None
    tokens: int | None
    flops: float | None


@dataclass(frozen=True, slots=True)
class LossAxis:
    """One measured loss: `values[i]` belongs to `Study.checkpoints[i]`, None where it was not measured."""

    dataset: str
    unit: str
    values: Column

    @property
    def label(self) -> str:
        """`held-out loss, nats/token`: the words a reader meets everywhere."""
        return f"{loss_name(self.dataset)}, {self.unit.replace('_', ' ')}"

    @property
    def of_parent(self) -> bool:
        """Whether it is what a tuned run began with, and not what its checkpoints have."""
        return self.dataset.startswith(PARENT)


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric of a panel over the study's checkpoints; `chance` is the extremes over checkpoints, `items[i]` how many items
    the value of checkpoint i is a mean of."""

    metric: str
    higher_is_better: bool
    chance: tuple[float, float] | None
    values: Column
    stderr: Column
    items: Sequence[int | None]

    @property
    def n(self) -> tuple[int, int] | None:
        """The fewest and the most items of a checkpoint."""
        known = [count for count in self.items if count is not None]
        return (min(known), max(known)) if known else None


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where one run first stays above a level: loss on the headline axis, tokens, training FLOPs; `gap` is by how much
    the loss fell since the checkpoint before, the finest that the crossing can be known."""

    run: int
    loss: float | None
    tokens: float | None
    flops: float | None
    gap: float | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """One task in one format: a figure. `curves[default]` is shown first."""

    task: str
    format: str
    shots: int | None
    curves: tuple[Curve, ...]
    default: int
    level: float | None = None  # half of the best gain over chance on the default metric
    crossings: tuple[Crossing, ...] = ()
    engines: tuple[Row, ...] = ()
    same_curve: tuple[Row, ...] = ()  # how runs that differ compare at equal loss, on the default metric and the headline axis
    seeds: Spread | None = None  # on the same

    @property
    def curve(self) -> Curve:
        """The curve that is shown first and gives the headline."""
        return self.curves[self.default]

    def owns(self, row: Row) -> bool:
        """Whether a row of scores, thresholds or crossings is about this panel."""
        return (row["task"], row["format"], row["shots"]) == (self.task, self.format, self.shots)


@dataclass(frozen=True, slots=True)
class Group:
    """Runs by one of their properties: run i has the value `names[of[i]]`. `params` are those of sizes."""

    by: str
    names: tuple[str, ...]
    of: tuple[int, ...]
    params: tuple[int | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Study:
    """Everything the page says about one study. `parents` is the loss that each checkpoint's run began with, if runs were tuned."""

    name: str
    sizes: tuple[Size, ...]
    runs: tuple[Row, ...]
    checkpoints: tuple[Checkpoint, ...]
    axes: tuple[LossAxis, ...]
    axis: LossAxis | None  # of the headline
    panels: tuple[Panel, ...]
    thresholds: tuple[Row, ...]
    agreement: tuple[Row, ...] = field(default=())
    parents: LossAxis | None = None

    def threshold(self, panel: Panel, curve: Curve, axis: LossAxis | None) -> Row | None:
        """The stored threshold of one metric of a panel on one loss axis."""
        for row in self.thresholds:
            same_axis = axis is not None and (row["loss_dataset"], row["loss_unit"]) == (axis.dataset, axis.unit)
            if same_axis and panel.owns(row) and row["metric"] == curve.metric:
                return row
        return None

    @property
    def amounts(self) -> list[int]:
        """The tokens that checkpoints of a tuned study were tuned on, ascending; none in other studies."""
        return sorted({one.tokens for one in self.checkpoints if one.tokens is not None}) if self.parents else []

    @property
    def groups(self) -> tuple[Group, ...]:
        """What runs can be told apart by, what is shown first first: their size, and whatever else differs between them. Where all
        have one size, what else differs comes before it, but for the seed."""
        of = tuple(self.size_of(run).slot for run in range(len(self.runs)))
        sizes = Group("size", tuple(s.name for s in self.sizes), of, tuple(s.params for s in self.sizes))
        others = [group for by in _PROPERTIES if (group := _group(self.runs, by))]
        first = [group for group in others if len(self.sizes) == 1 and group.by != "seed"]
        return (*first, sizes, *(group for group in others if group not in first))

    def size_of(self, run: int) -> Size:
        """The size that a run trained."""
        name = self.runs[run]["size"]
        return next(size for size in self.sizes if size.name == name)


_PROPERTIES = ("architecture", "optimizer", "schedule", "tokenizer", "corpus", "seed")


def _group(runs: Sequence[Row], by: str) -> Group | None:
    """The runs by a column; None where all are alike, or so many differ that no colour tells them apart."""
    values = [run[by] for run in runs]
    names = sorted(set(values) - {None}) + ([None] if None in values else [])
    if not 1 < len(names) <= MOST_COLOURS:
        return None
    return Group(by, tuple("unknown" if name is None else str(name) for name in names), tuple(names.index(value) for value in values))


def loss_name(dataset: str) -> str:
    """A loss dataset of the results as words."""
    if dataset.startswith(PARENT):
        return f"parent's {loss_name(dataset.removeprefix(PARENT))}"
    head, _, source = dataset.partition("/")
    if head == "heldout":
        return f"held-out loss on {source}" if source else "held-out loss"
    return "training loss" if dataset == "train" else f"loss on {dataset}"


def headline_metric(format_: str, metrics: Sequence[str]) -> int:
    """The metric shown first: accuracy for choices (normalised for the text form), exact match for open answers."""
    for name in HEADLINE_METRICS.get(format_, ()) + FALLBACK_METRICS:
        if name in metrics:
            return metrics.index(name)
    return 0


def headline_axis(axes: Sequence[LossAxis], analysed: set[tuple[str, str]], tokenizers: int) -> LossAxis | None:
    """The loss that the answer is given in: one that was analysed if any was, held-out before training loss, and
    nats/token unless runs with different tokenizers must be compared, which only bits/byte allows."""
    units = ["nats/token", "bits/byte"] if tokenizers <= 1 else ["bits/byte", "bits/char", "nats/token_vs_unigram", "nats/token"]

    def rank(axis: LossAxis) -> tuple[bool, int, int, int]:
        dataset = {"heldout": 0, "train": 1}.get(axis.dataset, 2)
        unit = units.index(axis.unit) if axis.unit in units else len(units)
        measured = sum(value is not None for value in axis.values)
        return (bool(analysed) and (axis.dataset, axis.unit) not in analysed, unit, dataset, -measured)

    return min(axes, key=rank, default=None)
