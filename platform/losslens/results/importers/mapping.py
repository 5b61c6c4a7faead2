"""A mapping: the YAML file that says how a published table becomes runs, checkpoints, losses and scores.

Read strictly: every complaint names the file and the key. The formats that have a name are mappings too, in `mappings/`.
docs/IMPORT.md lists the keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import msgspec
import yaml

from losslens.errors import UserError
from losslens.results.importers.expressions import Expression, Malformed, parse
from losslens.results.importers.values import Lookups, Table, Value, compiled, read_table, read_value
from losslens.results.tables import LOSSES, RUNS, SCORES
from losslens.specs import dialect

DOCUMENTED = "docs/IMPORT.md lists the keys"
_LARGEST = 4_000_000  # bytes: lookups of some thousand tasks fit
_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`(?: - at `\$\.?(.*)`)?$", re.S)
_WRITTEN = {"checkpoint_id", "created_at", "scored_at", "engine", "method"}  # not for a mapping to say
_OF_STUDY = {"study", "source", "source_url", "licence", "spec", "run_id"}
RUN_FIELDS = tuple(name for name in RUNS.names if name not in _OF_STUDY | _WRITTEN)
CHECKPOINT_FIELDS = ("step", "tokens", "flops")
ENTRY_FIELDS = {kind: tuple(n for n in schema.names if n not in _WRITTEN) for kind, schema in (("losses", LOSSES), ("scores", SCORES))}
NEEDED = {"losses": ("dataset", "unit"), "scores": ("task", "format", "metric", "n", "chance", "stderr")}

Text = Annotated[str, msgspec.Meta(min_length=1)]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every part of the file."""


class _Filter(_Part, frozen=True, kw_only=True):
    where: Text
    reason: Text | None = None


class _Unused(_Part, frozen=True, kw_only=True):
    columns: Text
    reason: Text


class _Sheet(_Part, frozen=True, kw_only=True):
    """One kind of file. Values of `runs`, `checkpoints`, `losses` and `scores` are checked one by one."""

    files: Text | Annotated[tuple[Text, ...], msgspec.Meta(min_length=1)]
    delimiter: Annotated[str, msgspec.Meta(min_length=1, max_length=1)] | None = None
    columns: dict[Text, Any] = {}
    filters: tuple[_Filter, ...] = ()
    unused: tuple[_Unused, ...] = ()
    run: dict[Text, Any]
    checkpoint: dict[Text, Any]
    losses: tuple[dict[Text, Any], ...] = ()
    scores: tuple[dict[Text, Any], ...] = ()


class _File(_Part, frozen=True, kw_only=True):
    study: Text
    source: Text | None = None
    source_url: Text | None = None
    licence: Text | None = None
    lookups: dict[Text, Any] = {}
    tables: Annotated[tuple[_Sheet, ...], msgspec.Meta(min_length=1)]


@dataclass(frozen=True, slots=True)
class Entry:
    """Losses or scores of a table. `columns` matches the names of the columns that hold them; None: every row holds one."""

    kind: str
    place: str
    columns: re.Pattern[str] | None
    where: Expression | None
    values: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Sheet:
    """One kind of file, read: values by the name of the column they become."""

    place: str
    files: tuple[str, ...]
    delimiter: str | None
    columns: Mapping[str, Value]
    filters: tuple[tuple[Expression, str], ...]
    unused: tuple[tuple[re.Pattern[str], str], ...]
    run: Mapping[str, Value]
    checkpoint: Mapping[str, Value]
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Mapped:
    """A whole mapping. `lookups`: by the name that SQL knows them by."""

    path: str
    study: str
    origin: Mapping[str, str | None]
    sheets: tuple[Sheet, ...]
    lookups: Mapping[str, Table]


def bundled() -> list[str]:
    """The formats that have a name."""
    folder = resources.files(__package__) / "mappings"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_bundled(name: str) -> Mapped:
    """A mapping that is part of losslens."""
    text = (resources.files(__package__) / "mappings" / f"{name}.yaml").read_text(encoding="utf-8")
    return parsed(text, f"{name}.yaml")


def read_mapping(path: Path) -> Mapped:
    """A user's mapping.

    Raises:
        UserError: no such file, malformed YAML, an unknown or missing key, or a value that is of no known form.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"{path} is too large for a mapping", "name the file that describes the table, not the table")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"the mapping {path} cannot be read: {error}", "give a readable UTF-8 YAML file") from error
    return parsed(text, str(path))


def parsed(text: str, path: str) -> Mapped:
    """The mapping that `text` holds; `path` for its errors, see `read_mapping`."""
    try:
        keys = dialect.read(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0] or "malformed"
        raise UserError(f"{path}{f', line {mark.line + 1}' if mark else ''} is not valid YAML: {problem}", "mend that line") from error
    except (TypeError, ValueError, OverflowError, RecursionError) as error:  # PyYAML: keys that are lists, dates that are none, depth
        raise UserError(f"{path} is not valid YAML: {str(error).partition(chr(10))[0]}", "mend it") from error
    try:
        return _built(msgspec.convert(keys, _File, strict=True), path)
    except msgspec.ValidationError as error:
        raise _explained(path, str(error)) from error
    except RecursionError as error:  # YAML's aliases can make a list that holds itself
        raise UserError(f"{path} is nested too deeply", DOCUMENTED) from error


def _built(file: _File, path: str) -> Mapped:
    named: dict[str, Table] = {}
    for name, given in file.lookups.items():
        with _at(path, f"lookups.{name}"):
            named[name] = read_table(given)
    lookups = Lookups(named, {})
    sheets = tuple(_sheet(sheet, lookups, path, f"tables[{at}]") for at, sheet in enumerate(file.tables))
    origin = {"study": file.study, "source": file.source, "source_url": file.source_url, "licence": file.licence}
    return Mapped(path, file.study, origin, sheets, lookups.uses)


def _sheet(sheet: _Sheet, lookups: Lookups, path: str, place: str) -> Sheet:
    globs = (sheet.files,) if isinstance(sheet.files, str) else sheet.files
    for glob in globs:
        if PurePosixPath(glob).is_absolute() or ".." in PurePosixPath(glob).parts:
            raise UserError(f"{path}: `{place}.files`: `{glob}` leaves the directory", "give patterns relative to PATH")
    if not sheet.losses and not sheet.scores:
        raise UserError(f"{path}: `{place}` has neither `losses` nor `scores`", DOCUMENTED)
    filters, unused = [], []
    for at, filter in enumerate(sheet.filters):
        filters.append((_condition(filter.where, path, f"{place}.filters[{at}].where"), filter.reason or f"not {filter.where}"))
    for at, one in enumerate(sheet.unused):
        with _at(path, f"{place}.unused[{at}].columns"):
            unused.append((compiled(one.columns), one.reason))
    entries = [
        _entry(kind, given, lookups, path, f"{place}.{kind}[{at}]")
        for kind in ("losses", "scores")
        for at, given in enumerate(getattr(sheet, kind))
    ]
    return Sheet(
        place=f"{path}: `{place}`",
        files=globs,
        delimiter=sheet.delimiter,
        columns=_values(sheet.columns, None, (), lookups, path, f"{place}.columns"),
        filters=tuple(filters),
        unused=tuple(unused),
        run=_values(sheet.run, ("id", *RUN_FIELDS), ("id",), lookups, path, f"{place}.run"),
        checkpoint=_values(sheet.checkpoint, ("id", *CHECKPOINT_FIELDS), (), lookups, path, f"{place}.checkpoint"),
        entries=tuple(entries),
    )


def _entry(kind: str, given: Mapping[str, Any], lookups: Lookups, path: str, place: str) -> Entry:
    rest = {name: value for name, value in given.items() if name not in ("columns", "where")}
    columns = where = None
    if "columns" in given:
        with _at(path, f"{place}.columns"):
            columns = compiled(given["columns"])
        rest.setdefault("value", "{value}")
    if "where" in given:
        where = _condition(given["where"], path, f"{place}.where")
    needed = ("value", *NEEDED[kind])
    return Entry(kind, f"{path}: `{place}`", columns, where, _values(rest, ENTRY_FIELDS[kind], needed, lookups, path, place))


def _values(
    given: Mapping[str, Any], known: Sequence[str] | None, needed: Sequence[str], lookups: Lookups, path: str, place: str
) -> dict[str, Value]:
    """The values by name; `known` None: any name."""
    if missing := [name for name in needed if name not in given]:
        raise UserError(f"{path}: `{place}` has no key `{missing[0]}`", f"add it; {DOCUMENTED}")
    found = {}
    for name, value in given.items():
        if known is not None and name not in known:
            raise UserError(f"{path}: unknown key `{place}.{name}`", nearest(name, known))
        with _at(path, f"{place}.{name}"):
            found[name] = read_value(value, lookups)
    return found


def _condition(text: Any, path: str, place: str) -> Expression:
    with _at(path, place):
        if not isinstance(text, str):
            raise Malformed("has to be a text such as `step > 0`")
        found = parse(text)
        if not found.is_condition:
            raise Malformed("is no condition such as `step > 0`")
        return found


@contextmanager
def _at(path: str, place: str) -> Iterator[None]:
    try:
        yield
    except Malformed as error:
        raise UserError(f"{path}: `{place}` {error}", f"correct that value; {DOCUMENTED}") from error


def nearest(word: str, known: Sequence[str]) -> str:
    """The remedy for an unknown word."""
    near = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else f"choose from {', '.join(known)}"


def _explained(path: str, message: str) -> UserError:
    """msgspec's complaint as one sentence."""
    if match := _UNKNOWN.search(message):
        key, place = match[1], match[2] or ""
        part = _Filter if "filters" in place else _Unused if "unused" in place else _Sheet if place else _File
        return UserError(f"{path}: unknown key `{f'{place}.' if place else ''}{key}`", nearest(key, part.__struct_fields__))
    sentence, _, where = message.partition(" - at `$")
    place = where.rstrip("`").lstrip(".")
    return UserError(f"{path}: {f'`{place}`: ' if place else ''}{sentence[0].lower()}{sentence[1:]}", f"correct it; {DOCUMENTED}")
