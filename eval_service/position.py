"""Where in its training a checkpoint stands: from files beside its weights, otherwise from its name by a pattern.

Nothing is guessed: what neither a file, the name nor the caller tells stays unknown.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from losslens.errors import UserError

# Pythia: step1000. OLMo: step1000-tokens4B, stage1-step1000-tokens5B. BLOOM: global_step1000. transformers' Trainer: checkpoint-1000.
DEFAULT_PATTERN = r"(?:(?:global[-_]?)?step|checkpoint)[-_]?(?P<step>\d+)(?:[-_]tokens(?P<tokens>\d+(?:\.\d+)?[KMBT]?))?"

TRAINER_STATE = "trainer_state.json"  # what transformers' Trainer writes last into a checkpoint
_TIMES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_Count = Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True, slots=True)
class Position:
    """Step, tokens and training FLOPs so far, where known. `branch` is what stands before the step in the name: checkpoints
    of one step in different branches (OLMo's stage1, stage2) were trained differently. `losses` are rows of `losses`
    without their checkpoint."""

    step: int | None = None
    tokens: int | None = None
    flops: float | None = None
    branch: str = ""
    losses: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class StepNames:
    """How step and tokens are read from a name. `pattern` has a group `step` and may have a group `tokens`, a number with
    K, M, B or T after it.

    Raises:
        UserError: not a regular expression, or one without a group `step`.
    """

    pattern: str = DEFAULT_PATTERN
    tokens_per_step: int | None = None

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.pattern).groupindex
        except re.error as error:
            raise UserError(f"the step pattern {self.pattern!r} is not a regular expression: {error}", _pattern_remedy()) from error
        if "step" not in groups:
            raise UserError(f"the step pattern {self.pattern!r} has no group named step", _pattern_remedy())

    def read(self, name: str) -> Position:
        """The position that a name tells; all unknown when the pattern does not occur in it.

        Raises:
            UserError: the pattern finds a step or tokens that are not numbers.
        """
        found = re.search(self.pattern, name)
        if found is None or found["step"] is None:
            return Position()
        groups = found.groupdict()
        if not re.fullmatch(r"\d+", groups["step"], re.ASCII):
            raise UserError(f"the step pattern finds {groups['step']!r} in {name}, which is not a number", _pattern_remedy())
        step, tokens = int(groups["step"]), groups.get("tokens")
        known = _first(self.tokens_at(step), _tokens(tokens, name) if tokens else None)
        return Position(step, known, branch=name[: found.start()].strip("-_./"))

    def tokens_at(self, step: int | None) -> int | None:
        """Exact where the names are rounded, so it goes before them."""
        return None if step is None or self.tokens_per_step is None else step * self.tokens_per_step


def chosen(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names that match one of the shell patterns, in their order."""
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def in_order(position: Position, name: str) -> tuple[str, bool, int, str]:
    """Sort key: branch by branch in order of step; names without a step are last of theirs."""
    return (position.branch, position.step is None, position.step or 0, name)


def position(directory: Path, card: dict[str, Any] | None, names: StepNames) -> Position:
    """The position of a model directory that was not trained here: by the losslens.json that its trainer wrote (`card`),
    the Trainer's state, then its name.

    Raises:
        UserError: a file that does not hold what it should, by name.
    """
    by_name = names.read(directory.name)
    told = _by_card(directory, card) if card is not None else _by_trainer_state(directory)
    step = _first(told.step, by_name.step)
    tokens = _first(told.tokens, names.tokens_at(step), by_name.tokens if step == by_name.step else None)
    return Position(step, tokens, told.flops, by_name.branch, told.losses)


class _Loss(msgspec.Struct, forbid_unknown_fields=True):
    dataset: Annotated[str, msgspec.Meta(min_length=1)]
    unit: Literal["nats/token", "bits/byte", "bits/char", "nats/token_vs_unigram"]
    value: float
    stderr: float | None = None
    tokens: _Count | None = None
    bytes: _Count | None = None


class _Card(msgspec.Struct, forbid_unknown_fields=True):
    """What a trainer that is not ours may write into losslens.json."""

    step: _Count | None = None
    tokens: _Count | None = None
    flops: Annotated[float, msgspec.Meta(ge=0)] | None = None
    losses: tuple[_Loss, ...] = ()


class _Logged(msgspec.Struct):
    step: int
    loss: float | None = None


class _TrainerState(msgspec.Struct):
    global_step: _Count
    num_input_tokens_seen: _Count | None = None
    log_history: tuple[_Logged, ...] = ()


def _by_card(directory: Path, card: dict[str, Any]) -> Position:
    try:
        told = msgspec.convert(card, _Card)
    except msgspec.ValidationError as error:
        remedy = "it may hold step, tokens, flops and losses (dataset, unit, value, stderr, tokens, bytes)"
        raise UserError(f"{directory / 'losslens.json'} is not what it should be: {error}", remedy) from error
    return Position(told.step, told.tokens, told.flops, losses=tuple(msgspec.to_builtins(loss) for loss in told.losses))


def _by_trainer_state(directory: Path) -> Position:
    """Step and tokens, and the mean training loss if it was logged at just that step."""
    file = directory / TRAINER_STATE
    if not file.is_file():
        return Position()
    try:
        # The standard library reads the NaN that a diverged run logs, msgspec's own reader does not.
        state = msgspec.convert(json.loads(file.read_text(encoding="utf-8")), _TrainerState)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}", "copy the checkpoint again, or remove the file to go without it") from error
    logged = [entry.loss for entry in state.log_history if entry.step == state.global_step and entry.loss is not None]
    rows = [{"dataset": "train", "unit": "nats/token", "value": value} for value in logged[-1:] if math.isfinite(value)]
    # The Trainer writes 0 when it was not told to count tokens.
    return Position(state.global_step, state.num_input_tokens_seen or None, losses=tuple(rows))


def _tokens(text: str, name: str) -> int:
    found = re.fullmatch(r"(\d+)(?:\.(\d+))?([KMBT]?)", text, re.ASCII)
    if found is None:
        raise UserError(f"the step pattern finds {text!r} tokens in {name}, which is not a number with K, M, B or T", _pattern_remedy())
    digits, fraction = found[1] + (found[2] or ""), len(found[2] or "")
    return int(digits) * _TIMES[found[3]] // int("1" + "0" * fraction)


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _pattern_remedy() -> str:
    return r"give --step-pattern a regular expression such as 'step(?P<step>\d+)(-tokens(?P<tokens>\d+B))?'"
