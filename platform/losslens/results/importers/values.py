"""How one value of a row is said in a mapping, and its SQL.

A number or true/false; a text, in which `{column}` stands for a column; `= EXPRESSION`; a list, of which the first that is known
counts, with `null` at its end where none has to be; `{match: REGEX, of: VALUE}`; `{table: LOOKUP, of: VALUE, take: COLUMN}`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from losslens.results.importers.expressions import Absent, Malformed, Scope, Sql, literal, parse, quoted

Value: TypeAlias = Callable[[Scope], Sql]
Table: TypeAlias = Mapping[str, Mapping[str, str | float | bool]]

_HOLE = re.compile(r"\{([^{}]*)\}")
_FORMS = {"match": {"match", "of"}, "table": {"table", "of", "take"}}
ONLY = "value"  # the column of a lookup that has one


@dataclass(frozen=True, slots=True)
class Lookups:
    """The lookups of a mapping by name; `uses` collects each one as the table of the database that will hold it."""

    named: Mapping[str, Table]
    uses: dict[str, Table]

    def placed(self, given: Any) -> tuple[str, Table]:
        """Name in the database and content of a lookup that is named or written out."""
        table = self.named.get(given) if isinstance(given, str) else read_table(given)
        if table is None:
            raise Malformed(f"names the lookup `{given}`, and there are: {', '.join(self.named) or 'none'}")
        name = next((name for name, known in self.uses.items() if known is table), f"lookup_{len(self.uses)}")
        self.uses[name] = table
        return name, table


def read_table(given: Any) -> Table:
    """A lookup: by key a value, or a mapping of columns to values.

    Raises:
        Malformed: anything else.
    """
    if not isinstance(given, dict) or not given:
        raise Malformed("needs keys with values")
    table = {}
    for key, entry in given.items():
        columns = entry if isinstance(entry, dict) else {ONLY: entry}
        for name, value in columns.items():
            if not isinstance(name, str) or not isinstance(value, str | int | float | bool) or not _finite(value):
                raise Malformed(f"has for `{key}` what is neither a number nor a text")
        table[_spelled(key)] = columns
    return table


def columns_of(table: Table) -> list[str]:
    """The columns of a lookup, in the order in which the database has them as c0, c1, ..."""
    return sorted({column for columns in table.values() for column in columns})


def kind_of(table: Table, column: str) -> Literal["text", "number", "truth"]:
    """What a column of a lookup holds; numbers and texts mixed are text."""
    known = [columns[column] for columns in table.values() if column in columns]
    if all(isinstance(value, bool) for value in known):
        return "truth"
    return "text" if any(isinstance(value, str | bool) for value in known) else "number"


def _spelled(key: Any) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)


def _finite(value: Any) -> bool:
    try:
        return isinstance(value, str) or math.isfinite(value)
    except OverflowError:  # a whole number beyond a DOUBLE
        return False


def read_value(given: Any, lookups: Lookups, depth: int = 0) -> Value:
    """What a mapping says of one value.

    Raises:
        Malformed: it is of no known form.
    """
    if depth > 8:
        raise Malformed("is nested too deeply")
    if isinstance(given, bool | int | float):
        if not _finite(given):
            raise Malformed("is no finite number")
        known = literal(given if isinstance(given, bool) else float(given))
        return lambda scope: known
    if isinstance(given, str):
        return _text(given)
    if isinstance(given, list) and given:
        return _first([read_value(one, lookups, depth + 1) for one in given])
    if isinstance(given, dict):
        return _form(given, lookups, depth)
    if given is None and depth:
        return lambda scope: Sql("NULL", "text")
    raise Malformed("is empty: give a number, a text, `= EXPRESSION` or a list of such")


def _text(given: str) -> Value:
    if given.startswith("="):
        return parse(given[1:]).sql
    pieces = _HOLE.split(given)  # text and names by turns
    if any("{" in piece or "}" in piece for piece in pieces[::2]) or "" in pieces[1::2]:
        raise Malformed("has a brace without a column's name")
    if len(pieces) == 3 and not pieces[0] and not pieces[2]:
        return lambda scope: scope[pieces[1]]
    return lambda scope: _joined([scope[piece] if at % 2 else literal(piece) for at, piece in enumerate(pieces) if at % 2 or piece])


def _joined(parts: list[Sql]) -> Sql:
    if all(isinstance(part.constant, str) for part in parts):
        return literal("".join(str(part.constant) for part in parts))
    return Sql("(" + " || ".join(part.string() for part in parts) + ")", "text")


def _first(values: list[Value]) -> Value:
    def first(scope: Scope) -> Sql:
        found, absent = [], None
        for value in values:
            try:
                found.append(value(scope))
            except Absent as error:
                absent = error
        if not found:
            raise absent or Absent("")
        if len(found) == 1 or found[0].constant is not None:
            return found[0]
        kinds = {part.kind for part in found}
        if "number" in kinds:
            return Sql(f"COALESCE({', '.join(part.number() for part in found)})", "number")
        if kinds == {"truth"}:
            return Sql(f"COALESCE({', '.join(part.truth() for part in found)})", "truth")
        return Sql(f"COALESCE({', '.join(part.string() for part in found)})", "text")

    return first


def _form(given: dict[Any, Any], lookups: Lookups, depth: int) -> Value:
    keys = {str(key) for key in given}
    form = next((name for name in _FORMS if name in keys), None)
    if form is None or keys - _FORMS[form] or "of" not in keys:
        raise Malformed("is neither {match, of} nor {table, of, take}")
    of = read_value(given["of"], lookups, depth + 1)
    return _matched(given["match"], of) if form == "match" else _looked_up(*lookups.placed(given["table"]), given.get("take", ONLY), of)


def _matched(pattern: Any, of: Value) -> Value:
    group = 1 if compiled(pattern).groups else 0
    try:
        pc.match_substring_regex(pa.array([""]), pattern)
    except (pa.ArrowException, ValueError) as error:  # RE2, DuckDB's too, knows no look-around and no back-references
        raise Malformed(f"is no regular expression of RE2: {error}") from error
    return lambda scope: Sql(f"NULLIF(regexp_extract({of(scope).string()}, {quoted(pattern)}, {group}), '')", "text")


def compiled(pattern: Any) -> re.Pattern[str]:
    """A regular expression of a mapping.

    Raises:
        Malformed: it is none.
    """
    try:
        return re.compile(pattern)
    except (re.error, TypeError, OverflowError, RecursionError) as error:
        raise Malformed(f"is no regular expression: {error}") from error


def _looked_up(name: str, table: Table, take: Any, of: Value) -> Value:
    if take not in columns_of(table):
        raise Malformed(f"takes `{take}`, and the lookup has: {', '.join(columns_of(table))}")
    kind, column = kind_of(table, take), columns_of(table).index(take)

    def looked_up(scope: Scope) -> Sql:
        key = of(scope)
        if not isinstance(key.constant, str):
            return Sql(f"(SELECT l.c{column} FROM {name} AS l WHERE l.key = {key.string()})", kind)
        entry = table.get(key.constant, {}).get(take)
        return Sql("NULL", kind) if entry is None else literal(stored(entry, kind))

    return looked_up


def stored(value: str | float | bool, kind: str) -> str | float | bool:
    """A value of a lookup as its column holds it."""
    return float(value) if kind == "number" else value if kind == "truth" else str(value)
