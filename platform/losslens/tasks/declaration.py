"""What a declared task's YAML file may hold, and its reading: strict, every complaint with the file, the line and the key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import yaml

from losslens.errors import UserError
from losslens.specs import dialect
from losslens.specs.study import Name, NonNegative
from losslens.tasks.requests import Match

LARGEST_FILE = 1_000_000  # bytes: a declaration is a page
DOCUMENTED = 'docs/TASKS.md ("Your own task") lists the keys'
Text = Annotated[str, msgspec.Meta(min_length=1)]
Texts = Annotated[tuple[Text, ...], msgspec.Meta(min_length=1)]


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every part of a declaration."""


class Generate(Part, frozen=True, kw_only=True):
    """An answer is generated greedily until a stop text or `max_tokens`, and compared as `match` says."""

    stop: tuple[Text, ...] = ("\n",)
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=8192)] = 32
    match: Match = "text"


class Declaration(Part, frozen=True, kw_only=True):
    """What both kinds have. `data` and `examples` are files, relative to the declaration."""

    kind: str
    name: Name
    version: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1
    data: Text
    examples: Text | None = None
    shots: NonNegative = 0
    joint: str = " "  # between a prompt and its answer
    metrics: Texts | None = None


class ChoiceDeclaration(Declaration, frozen=True, kw_only=True):
    """Options are compared. `question`, `before`, `after`, `header` are templates; `options` is a field that holds a list,
    or a list of templates; `gold` is a field or the same place in every row, read as `gold_as` says."""

    question: Text | None = None
    options: Text | tuple[Text, ...]
    gold: Text | int
    gold_as: Literal["index", "number", "letter", "text"] = "index"
    formats: Annotated[tuple[Literal["letter", "text", "pair"], ...], msgspec.Meta(min_length=1)] = ("letter", "text")
    cue: Text = "Answer:"
    before: str | None = None
    after: Text | None = None
    header: Text | None = None
    group: Text | None = None


class OpenDeclaration(Declaration, frozen=True, kw_only=True):
    """An answer is given freely. `prompt`, `answer`, `example` are templates; `accepted` is a field that holds a list, or a
    list of templates. Without `generate`, right is what greedy decoding gives."""

    prompt: Text
    answer: Text
    accepted: Text | Texts | None = None
    example: Text | None = None
    generate: Generate | None = None
    chance: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0


KINDS: Mapping[str, type[ChoiceDeclaration] | type[OpenDeclaration]] = {"choice": ChoiceDeclaration, "open": OpenDeclaration}
P = TypeVar("P", bound=Part)


@dataclass(frozen=True, slots=True)
class Sheet:
    """A YAML file as read: its mapping, and the line of every key (`generate.stop` for a nested one)."""

    path: Path
    keys: Mapping[str, Any]
    lines: Mapping[str, int]

    def refusal(self, key: str, finding: str, remedy: str) -> UserError:
        """A complaint about one key."""
        return UserError(f"{self.place(key)}: `{key}` {finding}", remedy)

    def place(self, key: str) -> str:
        """File and line of a key; just the file for one it does not have."""
        line = self.lines.get(key) or self.lines.get(key.partition("[")[0])
        return f"{self.path}, line {line}" if line else str(self.path)


def read_sheet(path: Path) -> Sheet:
    """The file's keys.

    Raises:
        UserError: no such file, one that is no text, malformed YAML, a key that occurs twice, or no mapping at all.
    """
    text = _text(path)
    try:
        keys = dialect.read(text)
        node = yaml.compose(text, Loader=dialect.Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0] or "malformed"
        raise UserError(f"{path}{f', line {mark.line + 1}' if mark else ''} is not valid YAML: {problem}", "mend that line") from error
    except (TypeError, ValueError, OverflowError, RecursionError) as error:  # PyYAML: keys that are lists, dates that are none, depth
        raise UserError(f"{path} is not valid YAML: {type(error).__name__}: {str(error).partition(chr(10))[0]}", "mend it") from error
    if not isinstance(keys, dict):
        raise UserError(f"{path} does not hold a mapping of task keys", DOCUMENTED)
    return Sheet(path, {str(key): value for key, value in keys.items()}, dict(_lines(node)))


def convert(sheet: Sheet) -> ChoiceDeclaration | OpenDeclaration:
    """The declaration in a sheet.

    Raises:
        UserError: an unknown kind or key (named with its nearest neighbour), a missing one, a value of the wrong type.
    """
    kind = sheet.keys.get("kind")
    if "kind" not in sheet.keys:
        raise UserError(f"{sheet.path} has no key `kind`", "set it to choice or open")
    if not isinstance(kind, str) or kind not in KINDS:
        raise sheet.refusal("kind", f"is {_shown(kind)}", nearest(str(kind), list(KINDS)))
    shape = KINDS[kind]
    _require_known(sheet, sheet.keys, shape, "")
    if isinstance(generate := sheet.keys.get("generate"), dict):
        _require_known(sheet, generate, Generate, "generate.")
    try:
        return msgspec.convert(dict(sheet.keys), shape, strict=True)
    except msgspec.ValidationError as error:
        raise _explained(sheet, str(error)) from error


def nearest(word: str, known: Sequence[str]) -> str:
    """The remedy for an unknown word."""
    near = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else f"choose from {', '.join(known)}"


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            raise UserError(f"there is no task file {path}", "correct the path; a relative one in a study is relative to the study's file")
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path} is too large for a task file", "name the file that describes the task, not its data")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"the task file {path} cannot be read: {error}", "give a readable UTF-8 YAML file") from error


def _lines(node: Any, prefix: str = "") -> list[tuple[str, int]]:
    found = []
    for key, value in node.value:
        found.append((f"{prefix}{key.value}", key.start_mark.line + 1))
        if not prefix and isinstance(value, yaml.MappingNode):
            found += _lines(value, f"{key.value}.")
    return found


def _require_known(sheet: Sheet, keys: Mapping[Any, Any], shape: type[Part], prefix: str) -> None:
    known = [field.name for field in msgspec.structs.fields(shape)]
    for key in map(str, keys):
        if key not in known:
            raise UserError(f"{sheet.place(prefix + key)}: unknown key `{prefix}{key}`", nearest(key, known))


def _explained(sheet: Sheet, message: str) -> UserError:
    """msgspec's complaint as one sentence with the line of the key."""
    sentence, _, where = message.partition(" - at `$.")
    key = where.rstrip("`")
    if sentence.startswith("Object missing required field"):
        return UserError(f"{sheet.path} has no key {sentence.rpartition(' ')[2]}", f"add it; {DOCUMENTED}")
    remedy = "put a template in quotes: its braces are YAML's too" if "got `object`" in sentence else f"correct that value; {DOCUMENTED}"
    place = sheet.place(key if key in sheet.lines else key.partition(".")[0])
    return UserError(f"{place}: `{key or 'the file'}`: {sentence[0].lower()}{sentence[1:]}", remedy)


def _shown(value: Any) -> str:
    text = f"`{value}`" if isinstance(value, str) else f"a {type(value).__name__}"
    return text if len(text) <= 60 and text.isprintable() else "something else"
