"""lm-evaluation-harness's `samples_*.jsonl`: one line for each item and filter, with every option's log-probability."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from losslens.errors import UserError

_REMEDY = "copy the file again; without it, scores whose chance level it tells are left out"


class _Line(msgspec.Struct):
    """An item under one filter. Arguments are `{"gen_args_0": {"arg_0": context, "arg_1": continuation}}`."""

    doc_id: int
    arguments: dict[str, dict[str, Any]]
    filtered_resps: list[Any]
    target: str = ""
    filter: str = "none"
    acc: float | None = None
    exact_match: float | None = None


@dataclass(frozen=True, slots=True)
class Samples:
    """Rows of `samples` but for what names checkpoint and task; `chance` None where no item has options."""

    rows: list[dict[str, Any]]
    items: int
    format: str
    chance: float | None


@dataclass(frozen=True, slots=True)
class _Item:
    """Contexts and continuations of its options, none where it has no options to choose from."""

    rows: list[dict[str, Any]]
    contexts: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    chance: float = 0.0


def read_samples(file: Path, delimiter: str) -> Samples:
    """The items of a task under its first filter; `delimiter` joins context and option and is not counted as bytes.

    Raises:
        UserError: naming file and line.
    """
    items: list[_Item] = []
    first = None
    for number, line in _lines(file):
        try:
            read = msgspec.convert(json.loads(line), _Line, strict=False)
            first = first or read.filter
            if read.filter == first:
                items.append(_item(read, delimiter))
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{file}, line {number} is not a sample of lm-eval: {error}", _REMEDY) from error
    if not items:
        raise UserError(f"{file} holds no samples", _REMEDY)
    chance = sum(item.chance for item in items) / len(items) if all(item.texts for item in items) else None
    return Samples([row for item in items for row in item.rows], len(items), _format(items), chance)


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with file.open("rb") as lines:
            yield from enumerate(lines, start=1)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}", "check the file and its permissions") from error


def format_of_options(options: Sequence[str]) -> str:
    """`letter` where the options are single capitals, else `text`."""
    return "letter" if all(option.strip() in string.ascii_uppercase and len(option.strip()) == 1 for option in options) else "text"


def _format(items: Sequence[_Item]) -> str:
    """`pair` where no common context stands before the options: whole sentences, or each option in its own sentence."""
    if not items[0].texts:
        return "open"
    if all(len(set(item.contexts)) > 1 or item.contexts[0] == "" for item in items):
        return "pair"
    return "letter" if all(format_of_options(item.texts) == "letter" for item in items) else "text"


def _item(line: _Line, delimiter: str) -> _Item:
    correct = next((score == 1 for score in (line.acc, line.exact_match) if score is not None), None)
    if not isinstance(line.filtered_resps[0], list):  # a generation
        return _Item([_row(line, 0, None, None, None, str(line.filtered_resps[0]), correct)])
    asked = [line.arguments[f"gen_args_{i}"] for i in range(len(line.arguments))]
    logprobs = [float(logprob) for logprob, _ in line.filtered_resps]
    texts = tuple(str(arguments["arg_1"]) for arguments in asked)
    if len(logprobs) != len(texts):
        raise ValueError(f"{len(texts)} options have {len(logprobs)} answers")
    scored = [text.removeprefix(delimiter) for text in texts]
    sizes = [len(text.encode()) for text in scored]
    if len(texts) == 1:
        return _Item([_row(line, 0, True, logprobs[0], sizes[0], None, correct)])
    gold = _gold(line, scored, logprobs)
    rows = [_row(line, j, None if not gold else j in gold, logprobs[j], sizes[j], None, correct) for j in range(len(texts))]
    return _Item(rows, tuple(str(arguments["arg_0"]) for arguments in asked), texts, max(1, len(gold)) / len(texts))


def _gold(line: _Line, options: Sequence[str], logprobs: Sequence[float]) -> tuple[int, ...]:
    """The target as lm-eval reads it: an index, several, or the option of that text. Of two options the score itself tells."""
    if line.target.isdigit() and int(line.target) < len(options):
        return (int(line.target),)
    if re.fullmatch(r"\[\d+(, \d+)*\]", line.target):
        return tuple(json.loads(line.target))
    if options.count(line.target) == 1:
        return (options.index(line.target),)
    if len(options) == 2 and line.acc is not None:
        likeliest = int(logprobs[1] > logprobs[0])
        return (likeliest if line.acc == 1 else 1 - likeliest,)
    return ()


def _row(
    line: _Line, option: int, gold: bool | None, logprob: float | None, size: int | None, text: str | None, correct: bool | None
) -> dict[str, Any]:
    return {
        "item_id": str(line.doc_id),
        "option": option,
        "is_gold": gold,
        "logprob": logprob,
        "bytes": size,
        "generated": text,
        "correct": correct,
    }
