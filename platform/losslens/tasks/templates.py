"""The template language of declared tasks: text with `{field}` in it, and nothing that can compute.

A field is a name and a way into it: `{question}`, `{choices[0]}`, `{answer.text}`. `{{` and `}}` are braces. There are no
conversions, no format specifications and no attributes, so a template from anybody is as harmless as its data.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

Record = Mapping[str, Any]

LARGEST = 2**63  # beyond it a number is no count and no label

_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_WAY = re.compile(r"[^.\[\]{}]+(?:\.[^.\[\]{}]+|\[[0-9]{1,9}\])*")
_STEP = re.compile(r"\[([0-9]+)\]|([^.\[\]]+)")


class Unfit(Exception):
    """A template that is none, or a record that does not fit it; whoever knows file and line makes a `UserError` of it.
    `key` is that of the declaration."""

    def __init__(self, finding: str, remedy: str, key: str = "") -> None:
        super().__init__(finding, remedy, key)
        self.finding, self.remedy, self.key = finding, remedy, key


@dataclass(frozen=True, slots=True)
class Field:
    """The way to a value in a record: `answer.text[0]`. Names are taken as they are written, spaces included."""

    path: str

    @classmethod
    def of(cls, path: str) -> Field:
        """Raises `Unfit` when this is no way to a value."""
        if not _WAY.fullmatch(path) or not encodable(path):
            raise Unfit(f"`{printable(path)}` is not the name of a field", "write a name such as label or answer.text or choices[0]")
        return cls(path)

    def value(self, record: Record) -> Any:
        """What the record holds there. Raises `Unfit` when it has no such field, with the nearest one."""
        found: Any = record
        for index, name in _STEP.findall(self.path):
            if name and isinstance(found, Mapping):
                if name not in found:
                    raise _unknown(self.path, name, found)
                found = found[name]
            elif index and isinstance(found, list | tuple):
                if int(index) >= len(found):
                    raise Unfit(f"the field `{self.path}` is missing: there are {len(found)} entries", "count from 0")
                found = found[int(index)]
            else:
                raise Unfit(f"the field `{self.path}` is missing: `{name or index}` looks into {kind_of(found)}", "correct its name")
        return found

    def text(self, record: Record) -> str:
        """The value as text: strings as they are, numbers in digits. Raises `Unfit` for anything else."""
        return as_text(self.path, self.value(record))


@dataclass(frozen=True, slots=True)
class Template:
    """Literal text and fields, in order."""

    parts: tuple[str | Field, ...]

    @classmethod
    def of(cls, text: str) -> Template:
        """Raises `Unfit` when a brace is alone or holds no field."""
        if not encodable(text):
            raise Unfit("it holds half a character (a lone surrogate)", "write the character itself")
        parts: list[str | Field] = []
        end = 0
        for found in _PART.finditer(text):
            parts.append(text[end : found.start()])
            end = found.end()
            if found[0] in ("{", "}"):
                raise Unfit(f"the brace at character {found.start() + 1} has no partner", "a brace that is meant as one is written twice")
            parts.append(found[0][0] if found[1] is None else Field.of(found[1]))
        parts.append(text[end:])
        return cls(tuple(part for part in parts if part != ""))

    def fill(self, record: Record) -> str:
        """The text with the record's values in it. Raises `Unfit` as `Field.text` does."""
        return "".join(part if isinstance(part, str) else part.text(record) for part in self.parts)


def as_text(path: str, value: Any) -> str:
    """A string or a number as text; `Unfit` for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST:
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(value)
    if not isinstance(value, str):
        raise Unfit(f"the field `{path}` holds {kind_of(value)}, not text", "correct the row, or name a field that holds text or a number")
    if not encodable(value):
        raise Unfit(f"the field `{path}` holds half a character (a lone surrogate)", "mend the row")
    return value


def encodable(text: str) -> bool:
    """Whether text can be written as UTF-8."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def printable(text: str) -> str:
    """The text on one line, as an error message can hold it."""
    short = text if len(text) <= 60 else text[:57] + "..."
    return short if short.isprintable() else repr(short)[1:-1]


def kind_of(value: Any) -> str:
    """What a value of a record is, in words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return f"the number {value}" if isinstance(value, float) or abs(value) <= LARGEST else "a number of too many digits"
    words: list[tuple[Any, str]] = [(Mapping, "an object"), (list | tuple, "a list"), (str, "text")]
    return next((word for kind, word in words if isinstance(value, kind)), f"a {type(value).__name__}")


def _unknown(path: str, name: str, there: Mapping[str, Any]) -> Unfit:
    known = [printable(str(key)) for key in there]
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    of = f" (of `{path}`)" if name != path else ""
    return Unfit(
        f"there is no field `{name}`{of}", f"did you mean `{near[0]}`?" if near else f"choose from {', '.join(known[:20]) or 'none'}"
    )
