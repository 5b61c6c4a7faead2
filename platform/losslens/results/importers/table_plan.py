"""What is to be done with one source of a published table, as SQL: decided from the mapping and the columns, before any row is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from losslens.errors import UserError
from losslens.results.importers.expressions import Absent, Malformed, Scope, Sql, literal, quoted
from losslens.results.importers.mapping import Entry, Sheet, nearest
from losslens.results.importers.tabular import ROW, Source
from losslens.results.tables import TABLES

NO_ENTRY = "no part of the mapping takes it"


@dataclass(frozen=True, slots=True)
class Insert:
    """Rows of `losses` or `scores` that come out of `base`."""

    kind: str
    columns: tuple[str, ...]
    select: str


@dataclass(frozen=True, slots=True)
class Plan:
    """`base`: one row for each row of the source, with its identity and why it is refused, NULL if it is not.

    `untaken`: a condition on `base` for rows that no entry takes. `unmapped`: columns that hold nothing for the mapping, with the
    reason. `matched`: places of the entries that found their columns.
    """

    base: str
    inserts: tuple[Insert, ...]
    untaken: str
    unmapped: tuple[tuple[str, str], ...]
    matched: frozenset[str]


def plan(sheet: Sheet, source: Source, study: str, engine: str) -> Plan:
    """How a source is taken over.

    Raises:
        UserError: the mapping names a column that the source does not have.
    """
    names = {"file": Sql(source.file, "text")} | {name: column.sql() for name, column in source.columns.items()}
    scope = Scope(names)
    for name, value in sheet.columns.items():
        with _blaming(f"{sheet.place}.columns.{name}", source):
            scope = scope.within({name: value(scope)})
    identity = _identity(sheet, source, scope, study)
    aliases = {name: f"n{at}" for at, name in enumerate(scope.names)}
    inner = Scope({name: _renamed(sheet, source, name, scope.names[name], f"{ROW}.{alias}") for name, alias in aliases.items()})
    inserts, matched = [], set()
    for entry in sheet.entries:
        for within in _scopes(entry, source, inner):
            inserts.append(_insert(entry, source, within, engine))
            matched.add(entry.place)
    untaken = _untaken(sheet, source, inner)
    kept = {alias: _stored(sheet, source, name, scope.names[name]) for name, alias in aliases.items() if name in inner.asked}
    columns = ", ".join(f"{sql} AS {name}" for name, sql in (identity | kept).items())
    unmapped = tuple(_unmapped(sheet, source, scope.asked | inner.asked)) if any(entry.columns for entry in sheet.entries) else ()
    return Plan(f"SELECT {columns} FROM {source.sql} AS {ROW}", tuple(inserts), untaken, unmapped, frozenset(matched))


def _identity(sheet: Sheet, source: Source, scope: Scope, study: str) -> dict[str, str]:
    """The columns of `base` that name and describe run and checkpoint, and `refused`."""
    given = {}
    for part, values in (("run", sheet.run), ("checkpoint", sheet.checkpoint)):
        for name, value in values.items():
            with _blaming(f"{sheet.place}.{part}.{name}", source):
                given[f"{part}.{name}"] = value(scope)
    null = Sql("NULL", "text")
    step, tokens = (_typed("checkpoints", name, given.get(f"checkpoint.{name}", null)) for name in ("step", "tokens"))
    run = f"{quoted(f'{study}/')} || NULLIF({given['run.id'].string()}, '')"
    label = given["checkpoint.id"].string() if "checkpoint.id" in given else f"COALESCE('step' || {step}, 'tokens' || {tokens})"
    checkpoint = f"{run} || '@' || NULLIF({label}, '')"
    refusals = []
    for condition, reason in sheet.filters:
        with _blaming(f"{sheet.place}.filters", source):
            refusals.append(f"WHEN NOT COALESCE({condition.sql(scope).truth()}, false) THEN {quoted(reason)}")
    refusals.append(f"WHEN ({run}) IS NULL THEN 'its run is not known'")
    refusals.append(f"WHEN ({checkpoint}) IS NULL THEN 'neither its step nor its tokens are known'")
    described = {name: _typed("runs", name, given[f"run.{name}"]) for name in sheet.run if name != "id"}
    reached = {name: _typed("checkpoints", name, given[f"checkpoint.{name}"]) for name in sheet.checkpoint if name != "id"}
    return {"run_id": run, "checkpoint_id": checkpoint, **described, **reached, "refused": f"CASE {' '.join(refusals)} END"}


def _typed(table: str, column: str, value: Sql) -> str:
    kind = TABLES[table].field(column).type
    if kind == pa.int64():
        return value.whole()
    return value.number() if kind == pa.float64() else value.truth() if kind == pa.bool_() else value.string()


def _renamed(sheet: Sheet, source: Source, name: str, sql: Sql, alias: str) -> Sql:
    """A name of the source as a column of `base`."""
    if name in source.columns and name not in sheet.columns:
        return source.columns[name].sql(alias)
    return Sql(alias, sql.kind, sql.constant)


def _stored(sheet: Sheet, source: Source, name: str, sql: Sql) -> str:
    return source.columns[name].reference if name in source.columns and name not in sheet.columns else sql.text


def _scopes(entry: Entry, source: Source, inner: Scope) -> Iterator[Scope]:
    """The scope of each column that a wide entry matches, in which `value` is its cell; for a long one the scope as it is."""
    if entry.columns is None:
        yield inner
        return
    for name in source.columns:
        if match := entry.columns.fullmatch(name):
            said = {group: literal(text) for group, text in match.groupdict().items() if text is not None}
            yield inner.within({**said, "value": inner[name], "column": literal(name)})


def _insert(entry: Entry, source: Source, scope: Scope, engine: str) -> Insert:
    """Fields may use `value`, `n` and `chance` of their own row: a standard error is made of them."""
    columns = {}
    order = sorted(entry.values, key=lambda name: ("value", "n", "chance").index(name) if name in ("value", "n", "chance") else 9)
    for name in order:
        with _blaming(f"{entry.place}.{name}", source):
            made = entry.values[name](scope)
        columns[name] = _typed(entry.kind, name, made)
        if name in ("value", "n", "chance"):
            scope = scope.within({name: Sql(f"CAST({columns[name]} AS DOUBLE)", "number")})
    if entry.kind == "scores":
        columns = {"higher_is_better": "true", **columns, "engine": quoted(engine)}
    taken = "refused IS NULL"
    if entry.where is not None:
        with _blaming(f"{entry.place}.where", source):
            taken += f" AND {entry.where.sql(scope).truth()}"
    select = ", ".join(columns[name] for name in columns)
    return Insert(entry.kind, ("checkpoint_id", *columns), f"SELECT checkpoint_id, {select} FROM base AS {ROW} WHERE {taken}")


def _untaken(sheet: Sheet, source: Source, inner: Scope) -> str:
    conditions = []
    for entry in sheet.entries:
        if entry.columns is not None or entry.where is None:
            return "false"
        with _blaming(f"{entry.place}.where", source):
            conditions.append(f"NOT COALESCE({entry.where.sql(inner).truth()}, false)")
    return " AND ".join(["refused IS NULL", *conditions])


def _unmapped(sheet: Sheet, source: Source, asked: set[str]) -> Iterator[tuple[str, str]]:
    for name in source.columns:
        if name not in asked:
            yield name, next((reason for pattern, reason in sheet.unused if pattern.fullmatch(name)), NO_ENTRY)


@contextmanager
def _blaming(place: str, source: Source) -> Iterator[None]:
    try:
        yield
    except Absent as error:
        raise _missing(place, error.name, source.files[0].name, list(source.columns)) from error
    except Malformed as error:
        raise UserError(f"{place} {error}", "correct the mapping") from error


def _missing(place: str, name: str, file: str, known: Sequence[str]) -> UserError:
    return UserError(f"{place} names the column `{name}`, which {file} does not have", nearest(name, known[:20]))
