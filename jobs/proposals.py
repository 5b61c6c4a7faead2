"""What a sweep tries: spaces parsed, points proposed, each made the run that it stands for. Nothing here starts anything.

Points come from a scrambled Halton sequence: it covers a space more evenly than independent draws, and the first points do
not depend on how many are asked for, so a sweep that is run again with more samples keeps what it has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from scipy.stats import qmc

from losslens.errors import UserError
from losslens.families import PlannedRun, planned_runs
from losslens.specs import SizeSpec, StudySpec, dialect, load_study

DEFAULT_FACTOR = 8.0  # without --param, the learning rate goes from the study's own / 8 to * 8
DIGITS = 4  # of a proposed number: short enough to type into a study, finer than any loss can tell
GRAMMAR = "write log:1e-4:1e-2, uniform:0:0.1, int:8:64 or choice:a,b,c"

# Why the other parts of a study cannot be swept.
_FIXED = {
    "name": "it only names the study",
    "seed": "it orders the corpus, which all trials share",
    "seeds": "every trial is one run, with the study's first seed",
    "corpus": "all trials share one corpus",
    "evaluation": "it does not change a run",
    "cluster": "it does not change a run",
    "results": "it does not change a run",
}
# Where a size may have a value of its own, which counts instead of the study's.
_OWN = {"training.optimizer.lr": "peak_lr", "training.global_batch": "global_batch", "training.tokens": "tokens"}


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`: even in the logarithm, even, or whole with both ends."""

    kind: Literal["log", "uniform", "int"]
    low: float
    high: float

    def at(self, share: float) -> str:
        """The number at `share` (0 to 1) of the way, as `--set` takes it."""
        low, high = self.low, self.high
        if self.kind == "int":
            return str(int(low) + math.floor(share * (high - low + 1)))
        number = low * math.pow(high / low, share) if self.kind == "log" else low + share * (high - low)
        return repr(min(max(float(f"{number:.{DIGITS}g}"), low), high))


@dataclass(frozen=True, slots=True)
class Choice:
    """Some values, each as likely as the others."""

    values: tuple[str, ...]

    def at(self, share: float) -> str:
        """The value at `share` (0 to 1) of the way."""
        return self.values[math.floor(share * len(self.values))]


Space = Range | Choice


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a sweep: the study with `settings` (key -> value as `--set` takes it), and the run planned from it."""

    size: str
    settings: dict[str, str]
    spec: StudySpec
    run: PlannedRun

    @property
    def label(self) -> str:
        """What tells the trial from the others of its size."""
        settings = (f"{key.rpartition('.')[2]}={value}" for key, value in self.settings.items())
        return f"{self.size} {' '.join(settings)}"

    def values(self) -> dict[str, Any]:
        """The settings as numbers, words and switches."""
        return {key: dialect.read(value) for key, value in self.settings.items()}


def parse_params(params: Sequence[str]) -> dict[str, Space]:
    """`KEY=SPACE` texts as key -> space.

    Raises:
        UserError: a text of another form, a key given twice, or bounds that cannot be.
    """
    spaces: dict[str, Space] = {}
    for param in params:
        key, equals, text = param.partition("=")
        if not equals or not key:
            raise UserError(f"--param {param!r} is not of the form KEY=SPACE", GRAMMAR)
        if key in spaces:
            raise UserError(f"--param names {key} twice", "give each key one space")
        spaces[key] = _parse_space(param, text)
    return spaces


def default_space(spec: StudySpec, size: SizeSpec) -> dict[str, Space]:
    """The peak learning rate around the study's own: the size's where it has one."""
    if size.peak_lr is None:
        key, centre = "training.optimizer.lr", spec.training.optimizer.lr
    else:
        key, centre = _own_key(spec, size.name, "peak_lr"), size.peak_lr
    return {key: Range("log", centre / DEFAULT_FACTOR, centre * DEFAULT_FACTOR)}


def size_of(spec: StudySpec, name: str) -> SizeSpec:
    """The family's one size of that name.

    Raises:
        UserError: there is none, or several entries share the name.
    """
    found = [size for size in spec.family.sizes if size.name == name]
    if not found:
        raise UserError(f"the family has no size {name!r}", f"choose from {', '.join(dict.fromkeys(s.name for s in spec.family.sizes))}")
    if len(found) > 1:
        raise UserError(f"the family has {len(found)} entries called {name!r}", "sweep a study that has one of them")
    return found[0]


def propose(
    study: str, overrides: Sequence[str], size: SizeSpec, spaces: Mapping[str, Space], *, samples: int, seed: int
) -> tuple[Trial, ...]:
    """Up to `samples` different runs of a size, the same whenever they are proposed; fewer where points fall on equal values.

    Raises:
        UserError: a key that the study lacks, that no trial may change or that changes nothing; a value that it cannot take.
    """
    if load_study(study, overrides).variants:
        raise UserError("a sweep is of one study, and this one has variants", "leave them out: --set variants={}")
    proposals = [
        {key: space.at(u) for (key, space), u in zip(spaces.items(), point, strict=True)} for point in points(samples, len(spaces), seed)
    ]
    trials: dict[str, Trial] = {}
    for settings in proposals:
        spec = load_study(study, [*overrides, *(f"{key}={value}" for key, value in settings.items())])
        for key in settings:
            _require_effect(key, spec, size)
        trial = Trial(size.name, settings, spec, _run(spec, size.name))
        trials.setdefault(trial.run.run_id, trial)
    if len(trials) == 1 and any(settings != proposals[0] for settings in proposals):
        raise UserError(f"{', '.join(spaces)} does not change the runs of size {size.name}", "sweep a key that does, or sweep that size")
    return tuple(trials.values())


def points(samples: int, dimensions: int, seed: int) -> list[list[float]]:
    """`samples` points in [0, 1) ** `dimensions`; more samples keep the first ones."""
    drawn: list[list[float]] = qmc.Halton(d=dimensions, scramble=True, rng=seed).random(samples).tolist()
    return drawn


def grace_tokens(grace: float, run: PlannedRun) -> int:
    """Tokens that every trial may train on: `grace` below 1 is a share of the budget, from 1 on a number of steps.

    Raises:
        UserError: not above zero.
    """
    if not grace > 0:
        raise UserError(f"--grace {grace:g} is not above zero", "give a share of the budget such as 0.25, or a number of steps")
    return max(1, min(run.tokens, round(grace * (run.tokens if grace < 1 else run.batch_tokens))))


def _parse_space(param: str, text: str) -> Space:
    kind, _, rest = text.partition(":")
    match kind:
        case "choice":
            return _choice(param, rest)
        case "log" | "uniform" | "int":
            return _range(param, kind, rest.split(":"))
    raise UserError(f"--param {param!r} names no kind of space", GRAMMAR)


def _choice(param: str, rest: str) -> Choice:
    values = tuple(value.strip() for value in rest.split(","))
    if len(set(values)) < max(2, len(values)) or not all(_is_scalar(value) for value in values):
        raise UserError(f"--param {param!r} must offer two or more different plain values", GRAMMAR)
    return Choice(values)


def _range(param: str, kind: Literal["log", "uniform", "int"], bounds: Sequence[str]) -> Range:
    read = [dialect.read(bound) if _is_scalar(bound) else None for bound in bounds]
    numbers = [n for n in read if isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n)]
    if len(bounds) != 2 or len(numbers) != 2 or numbers[0] >= numbers[1]:
        raise UserError(f"--param {param!r} must give two numbers, the lower one first", GRAMMAR)
    if kind == "log" and numbers[0] <= 0:
        raise UserError(f"--param {param!r} must stay above zero, where logarithms are", GRAMMAR)
    if kind == "int" and not all(isinstance(n, int) for n in numbers):
        raise UserError(f"--param {param!r} must give two whole numbers", GRAMMAR)
    return Range(kind, numbers[0], numbers[1])


def _is_scalar(text: str) -> bool:
    try:
        return bool(text.strip()) and not isinstance(dialect.read(text), dict | list)
    except yaml.YAMLError:
        return False


def _require_effect(key: str, spec: StudySpec, size: SizeSpec) -> None:
    part = key.partition(".")[0]
    if part in _FIXED:
        raise UserError(f"a sweep cannot vary {key}: {_FIXED[part]}", "sweep a key of training or family")
    own = _OWN.get(key)
    if own and getattr(size, own) is not None:
        raise UserError(f"size {size.name} has a {own} of its own, so {key} does not change it", f"sweep {_own_key(spec, size.name, own)}")


def _own_key(spec: StudySpec, size: str, setting: str) -> str:
    """Where a size's own setting stands; by position where its name has dots, which would read as further keys."""
    position = next(i for i, each in enumerate(spec.family.sizes) if each.name == size)
    return f"family.sizes.{position if '.' in size else size}.{setting}"


def _run(spec: StudySpec, size: str) -> PlannedRun:
    """The size's one run with the study's first seed."""
    size_of(spec, size)  # a sweep may have renamed it
    runs = [run for run in planned_runs(spec) if run.size == size and run.seed == spec.seed and run.branch is None]
    if len(runs) != 1:
        budgets = ", ".join(str(run.tokens) for run in runs)
        raise UserError(
            f"a sweep compares runs of one budget, but size {size} has {budgets} tokens", f"give one: --set family.sizes.{size}.tokens=..."
        )
    return runs[0]
