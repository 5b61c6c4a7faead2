"""Which design answers a question at least cost: a study's family, trained and scored more or less, on simulated runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from jobs.filters import Filters
from jobs.progress import Board
from jobs.scaling import measured_losses
from losslens.analysis.curves import Floats
from losslens.analysis.design import ENOUGH, Ability, Design, compared
from losslens.analysis.scaling import fitted
from losslens.analysis.simulated import RISES, Noise
from losslens.errors import UserError
from losslens.families import PlannedRun, Shape, planned_runs
from losslens.results import Results
from losslens.specs import StudySpec

_NAMES = ("a", "alpha", "b", "beta", "floor")
HOFFMANN = (406.4, 0.34, 410.7, 0.28, 1.69)
"""Loss by parameters and tokens in nats/token of Hoffmann et al. 2022 (arXiv 2203.15556, section D.3): their text, their tokenizer."""
MOST = 600  # designs of one grid
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Grid:
    """What is varied: every combination. `sizes` are numbers of sizes, `budgets` multiply the study's tokens."""

    sizes: tuple[int, ...]
    budgets: tuple[float, ...]
    checkpoints: tuple[int, ...]
    seeds: tuple[int, ...]
    items: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Law:
    """A / N^alpha + B / D^beta + E in nats/token; `inner`: N counts no embeddings. `told` says where it is from."""

    constants: tuple[float, ...]
    inner: bool = False
    told: str = "Hoffmann et al. 2022"

    def path(self, run: PlannedRun) -> Floats:
        """The loss at each of the run's trained checkpoints, never above that of an even guess."""
        a, alpha, b, beta, floor = self.constants
        size = run.shape.params_non_embedding if self.inner else run.shape.params
        tokens = np.array([step * run.batch_tokens for step in run.checkpoints if step > 0], dtype=np.float64)
        loss: Floats = np.minimum(a / size**alpha + b / tokens**beta + floor, math.log(run.shape.vocab_size))
        return loss


def design(
    spec: StudySpec, grid: Grid, ability: Ability, noise: Noise, law: Law, *, within: float, item_tokens: int, curves: int, seed: int
) -> list[dict[str, Any]]:
    """`analysis.design.compared` over the grid's designs of the study's family.

    A design of k sizes has the k cheapest whose longest run ends below any eta of the ability.

    Raises UserError when no run of the grid gets so low.
    """
    _checked(ability, noise, within, item_tokens, curves)
    designs = list(_designs(spec, grid, ability, law, item_tokens))
    if not designs:
        lowest = min(float(law.path(run)[-1]) for budget in grid.budgets for run in _longest(spec, budget, max(grid.checkpoints)))
        few = "No size" if min(grid.sizes) == 1 else f"Fewer than {min(grid.sizes)} sizes"
        sentence = f"{few} of {spec.name} would end below a loss of {ability.eta - ability.unsure:g}: the lowest run ends at {lowest:.3f}."
        raise UserError(sentence, "Give --tokens a larger multiple, fewer --sizes, a smaller --unsure, or --results to fit the law to.")
    if len(designs) > MOST:
        raise UserError(f"The grid has {len(designs):,} designs, more than {MOST}.", "Give fewer values to vary.")
    with Board() as board:

        def progress(done: int, total: int, what: str) -> None:
            board.show("designs", done, total, what)

        return compared(designs, ability, noise, within=within, curves=curves, seed=seed, progress=progress)


def summary(rows: Sequence[dict[str, Any]], law: Law) -> Iterator[str]:
    """What the table means, for stderr."""
    a, alpha, b, beta, floor = law.constants
    yield f"loss by {law.told}: {a:.4g}/N^{alpha:.3g} + {b:.4g}/D^{beta:.3g} + {floor:.3g}; simulated, see docs/DESIGN.md"
    best = next((row for row in rows if row["cheapest"]), None)
    within = rows[0]["within"]
    if best is None:
        yield f"no design places eta within {within:g} in {ENOUGH:.0%} of the curves: try more tokens, sizes, seeds, checkpoints or items"
        return
    how = f"{best['sizes']} x {best['seeds']} seeds, {best['tokens_factor']:g} times the tokens, {best['checkpoints']} checkpoints"
    yield f"cheapest within {within:g}, in {best['reached']:.0%} of {best['curves']} fresh curves: {how}, {best['items']} items"


def grid_of(spec: StudySpec, sizes: str | None, tokens: str, checkpoints: str, seeds: str, items: str) -> Grid:
    """The grid from lists with commas; without `sizes` one, two and four, or all where there are fewer.

    Raises UserError for what is no list of numbers above 0, or more sizes than the study has.
    """
    have = len({size.name for size in spec.family.sizes})
    counts = _listed("--sizes", sizes, int) if sizes else tuple(sorted({1, min(2, have), min(4, have)}))
    if max(counts) > have:
        raise UserError(f"{spec.name} has {have} sizes, not {max(counts)}.", f"Give --sizes at most {have}, or a study with more.")
    whole = (_listed(name, text, int) for name, text in (("--checkpoints", checkpoints), ("--seeds", seeds), ("--items", items)))
    return Grid(counts, _listed("--tokens", tokens, float), *whole)


def law_of(spec: StudySpec, given: str | None, results: Path | None, loss_dataset: str) -> Law:
    """The law that is given, or fitted to every checkpoint of the study's runs in `results`, or Hoffmann's.

    Raises UserError when the text is no law, or the runs have none.
    """
    if given is not None:
        constants = _listed("--law", given, float)
        if len(constants) != len(_NAMES):
            raise UserError(
                f"A law has five numbers, not {len(constants)}.", "Give --law A,ALPHA,B,BETA,E as `losslens scaling` prints them."
            )
        return Law(constants, told="the given law")
    if results is None:
        return Law(HOFFMANN)
    stored = Results(results)
    measured = measured_losses(stored, Filters(study=spec.name, loss_dataset=loss_dataset), every_checkpoint=True)
    found = [(one, best) for one in measured if one.unit == "nats/token" and (best := fitted(one)) and best.constants["b"] is not None]
    if not found:
        raise UserError(
            f"The runs of {spec.name} in {stored.root} have no law of size and tokens for {loss_dataset}.",
            "It needs six checkpoints of two sizes with a loss in nats/token; or give --law.",
        )
    known = stored.query("SELECT count(*) = count(params_non_embedding) AS inner_known FROM runs WHERE study = ?", [spec.name])
    losses, best = found[0]
    constants = tuple(float(best.constants[name] or 0.0) for name in _NAMES)
    misfit = float(np.mean(np.abs(best.loss(losses.params, losses.tokens) / losses.loss - 1)))
    return Law(constants, inner=bool(known["inner_known"][0].as_py()), told=f"the checkpoints of {stored.root} (misfit {misfit:.1%})")


def _designs(spec: StudySpec, grid: Grid, ability: Ability, law: Law, item_tokens: int) -> Iterator[Design]:
    for budget, checkpoints in product(grid.budgets, grid.checkpoints):
        runs = [(run, law.path(run)) for run in _longest(spec, budget, checkpoints)]
        low = sorted((one for one in runs if one[1][-1] < ability.eta - ability.unsure), key=lambda one: one[0].flops)
        by_size = {one[0].size: one for one in reversed(low)}  # a size may be listed twice, with other batches: the cheaper one
        chosen_from = sorted(by_size.values(), key=lambda one: one[0].flops)
        for count, seeds, items in product(grid.sizes, grid.seeds, grid.items):
            if count > len(chosen_from):
                continue
            chosen = chosen_from[:count]
            yield Design(
                sizes=tuple(run.size for run, _ in chosen),
                budget=budget,
                checkpoints=checkpoints,
                seeds=seeds,
                items=items,
                paths=tuple(path for _, path in chosen for _ in range(seeds)),
                untrained=max(math.log(run.shape.vocab_size) for run, _ in chosen),
                flops=seeds * sum(run.flops + _scoring(run.shape, len(path), items, item_tokens) for run, path in chosen),
            )


def _scoring(shape: Shape, checkpoints: int, items: int, item_tokens: int) -> float:
    """FLOPs of scoring: a forward pass is a third of `Shape.flops_per_token`."""
    return shape.flops_per_token / 3 * checkpoints * items * item_tokens


def _longest(spec: StudySpec, budget: float, checkpoints: int) -> list[PlannedRun]:
    """The longest run of each size at `budget` times the study's tokens, one seed, without branches."""

    def more(tokens: int | float | None) -> int | None:
        return None if tokens is None else max(1, round(tokens * budget))

    if spec.variants:
        raise UserError(f"{spec.name} is a study of variants, and a design is of one.", "Plan one variant as a study without `variants`.")
    sizes = tuple(
        msgspec.structs.replace(size, tokens=None if size.tokens is None else (more(max(size.tokens)),)) for size in spec.family.sizes
    )
    per_param = spec.training.tokens_per_param
    training = msgspec.structs.replace(
        spec.training,
        branches=(),
        tokens=more(spec.training.tokens),
        tokens_per_param=None if per_param is None else per_param * budget,
        checkpoints=msgspec.structs.replace(spec.training.checkpoints, count=checkpoints, initial=False),
    )
    family = msgspec.structs.replace(spec.family, sizes=sizes)
    return list(planned_runs(msgspec.structs.replace(spec, seeds=1, family=family, training=training)))


def _listed(name: str, text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    try:
        values = tuple(dict.fromkeys(kind(part) for part in text.split(",")))
    except ValueError:
        values = ()
    if not values or not all(0 < value < math.inf for value in values):
        what = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{name} takes {what} above 0, separated by commas, not {text!r}.", f"Give it as in {name} 1,2.")
    return values


def _checked(ability: Ability, noise: Noise, within: float, item_tokens: int, curves: int) -> None:
    unknown = [rise for rise in ability.rises if rise not in RISES]
    if unknown:
        raise UserError(f"There is no rise called {unknown[0]!r}.", f"Give one or more of: {', '.join(RISES)}.")
    if not all(0 < value < math.inf for value in (ability.eta, within, item_tokens, curves)):
        raise UserError("--eta, --within, --item-tokens and --curves are numbers above 0.", "Give them as in --eta 2.2 --within 0.05.")
    if not all(0 <= value < math.inf for value in (ability.unsure, noise.spread, noise.wobble)) or not 0 <= noise.chance < 1:
        raise UserError(
            "--unsure, --spread and --wobble are at least 0, --chance is below 1.", "Give them as in --spread 0.02 --chance 0.25."
        )
