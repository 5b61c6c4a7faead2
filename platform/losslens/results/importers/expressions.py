"""Arithmetic and conditions of a mapping: a small grammar of its own, parsed here and turned into SQL, never run by Python.

Names, numbers, 'text', + - * / **, == != < <= > >=, in (...), not, and, or. A name with other signs than letters, digits,
dots and underscores stands in backticks; `{task}_se` in backticks is the column that begins with what `task` is. Names are looked up
in a `Scope`, so nothing of an expression reaches SQL as it stands.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

_LONGEST = 2000  # signs; what a person writes is far below
_DEEPEST = 40
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d][\w.]*)|`(?P<quoted>[^`]+)`"
    r"|'(?P<text>[^']*)'|\"(?P<text2>[^\"]*)\"|(?P<sign>\*\*|==|!=|<=|>=|[-+*/<>(),]))"
)
_HOLE = re.compile(r"\{([^{}]+)\}")
_WORDS = ("and", "or", "not", "in")
_COMPARING = {"==": "=", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_BY_STRENGTH = (("+", "-"), ("*", "/"))


class Malformed(ValueError):
    """An expression that is none; says what is wrong with it."""


class Absent(LookupError):
    """A name that the table does not have."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True, slots=True)
class Sql:
    """A piece of SQL and what it gives; `constant` where that is known without any row."""

    text: str
    kind: Literal["text", "number", "truth"]
    constant: str | float | bool | None = None
    spelled: str | None = None  # how a column of whole numbers reads as text, where `text` is its DOUBLE

    def number(self) -> str:
        """As a DOUBLE; NULL where it is none."""
        return self.text if self.kind == "number" else f"TRY_CAST({self.text} AS DOUBLE)"

    def whole(self) -> str:
        """As a BIGINT, rounded; NULL where it is no finite number."""
        return f"TRY_CAST({self.number()} AS BIGINT)"

    def string(self) -> str:
        """As text."""
        return self.spelled or (self.text if self.kind == "text" else f"CAST({self.text} AS VARCHAR)")

    def truth(self) -> str:
        """As a BOOLEAN; NULL where it is none."""
        return self.text if self.kind == "truth" else f"TRY_CAST({self.text} AS BOOLEAN)"


def literal(value: str | float | bool) -> Sql:
    """A constant."""
    if isinstance(value, bool):
        return Sql(str(value).lower(), "truth", value)
    if isinstance(value, str):
        return Sql(quoted(value), "text", value)
    return Sql(f"CAST({value!r} AS DOUBLE)", "number", value)


def quoted(text: str) -> str:
    """`text` as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


class Scope:
    """The names an expression may use; remembers which of the table's own columns were asked for."""

    def __init__(self, names: Mapping[str, Sql], asked: set[str] | None = None) -> None:
        self.names = names
        self.asked: set[str] = set() if asked is None else asked

    def __getitem__(self, name: str) -> Sql:
        if name not in self.names:
            raise Absent(name)
        self.asked.add(name)
        return self.names[name]

    def within(self, names: Mapping[str, Sql]) -> Scope:
        """This scope and more names, which hide equal ones."""
        return Scope({**self.names, **names}, self.asked)


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression: an operator or kind of leaf, and its parts."""

    sign: str
    parts: tuple[Any, ...]

    @property
    def is_condition(self) -> bool:
        """Whether it holds or does not, rather than being a number or text."""
        return self.sign in _COMPARING or self.sign in _WORDS

    def sql(self, scope: Scope) -> Sql:
        """What it is over the names of `scope`.

        Raises:
            Absent: a name that is not there.
        """
        if self.sign == "name":
            return scope[_HOLE.sub(lambda hole: _part_of_name(scope, hole[1]), self.parts[0])]
        if self.sign == "literal":
            return literal(self.parts[0])
        parts = [part.sql(scope) for part in self.parts]
        if self.sign in _COMPARING:
            return _compared(_COMPARING[self.sign], *parts)
        if self.sign == "in":
            return Sql("(" + " OR ".join(_compared("=", parts[0], part).text for part in parts[1:]) + ")", "truth")
        if self.sign == "not":
            return Sql(f"(NOT {parts[0].truth()})", "truth")
        if self.sign in _WORDS:
            return Sql(f"({parts[0].truth()} {self.sign.upper()} {parts[1].truth()})", "truth")
        if self.sign == "negative":
            return Sql(f"(- {parts[0].number()})", "number")
        return Sql(f"({parts[0].number()} {self.sign} {parts[1].number()})", "number")


def _part_of_name(scope: Scope, name: str) -> str:
    part = scope[name].constant
    if not isinstance(part, str):
        raise Malformed(f"makes a column's name of `{name}`, which differs from row to row: only what `columns` matched can stand there")
    return part


def _compared(sign: str, left: Sql, right: Sql) -> Sql:
    """As numbers where one side is a number or an order is asked for, else as text."""
    numeric = "number" in (left.kind, right.kind) or (sign not in ("=", "<>") and "text" not in (_kind(left), _kind(right)))
    one, other = (left.number(), right.number()) if numeric else (left.string(), right.string())
    return Sql(f"({one} {sign} {other})", "truth")


def _kind(side: Sql) -> str:
    return "text" if isinstance(side.constant, str) else "number"


def parse(text: str) -> Expression:
    """The expression that `text` spells.

    Raises:
        Malformed: saying what was found and where.
    """
    if len(text) > _LONGEST:
        raise Malformed(f"is longer than {_LONGEST} signs")
    return _Parser(text).whole()


class _Parser:
    """Recursive descent, one token ahead."""

    def __init__(self, text: str) -> None:
        self.tokens = _tokens(text)
        self.depth = 0

    def whole(self) -> Expression:
        found = self.alternatives()
        if self.tokens:
            raise Malformed(f"has `{self.tokens[0][1]}` where it should end")
        return found

    def alternatives(self) -> Expression:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise Malformed("is nested too deeply")
        left = self.conjunction()
        while self.take("or"):
            left = Expression("or", (_condition(left), _condition(self.conjunction())))
        self.depth -= 1
        return left

    def conjunction(self) -> Expression:
        left = self.denial()
        while self.take("and"):
            left = Expression("and", (_condition(left), _condition(self.denial())))
        return left

    def denial(self) -> Expression:
        if not self.take("not"):
            return self.comparison()
        self.depth += 1
        if self.depth > _DEEPEST:
            raise Malformed("is nested too deeply")
        found = Expression("not", (_condition(self.denial()),))
        self.depth -= 1
        return found

    def comparison(self) -> Expression:
        left = self.binary(0)
        if sign := self.take(*_COMPARING):
            return Expression(sign, (_quantity(left), _quantity(self.binary(0))))
        negated = self.tokens[:1] == [("word", "not")] and bool(self.take("not"))
        if not self.take("in"):
            if negated:
                raise Malformed("has `not` without `in` after a value")
            return left
        among = Expression("in", (_quantity(left), *self.listed()))
        return Expression("not", (among,)) if negated else among

    def listed(self) -> list[Expression]:
        self.require("(")
        entries = [self.binary(0)]
        while self.take(","):
            entries.append(self.binary(0))
        self.require(")")
        return entries

    def binary(self, strength: int) -> Expression:
        if strength == len(_BY_STRENGTH):
            return self.signed()
        left = self.binary(strength + 1)
        while sign := self.take(*_BY_STRENGTH[strength]):
            left = Expression(sign, (_quantity(left), _quantity(self.binary(strength + 1))))
        return left

    def signed(self) -> Expression:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise Malformed("is nested too deeply")
        if self.take("-"):
            found = Expression("negative", (_quantity(self.signed()),))
        else:
            found = self.atom()
            if self.take("**"):
                found = Expression("**", (_quantity(found), _quantity(self.signed())))
        self.depth -= 1
        return found

    def atom(self) -> Expression:
        if self.take("("):
            inner = self.alternatives()
            self.require(")")
            return inner
        kind, value = self.tokens.pop(0) if self.tokens else ("", "")
        if kind == "number":
            if not math.isfinite(float(value)):
                raise Malformed(f"has `{value}`, which is too large")
            return Expression("literal", (float(value),))
        if kind in ("name", "text"):
            return Expression("name" if kind == "name" else "literal", (value,))
        raise Malformed(f"has `{value}` where a value should be" if value else "ends where a value should be")

    def take(self, *signs: str) -> str:
        """The next token if it is one of these signs or words, else nothing."""
        if self.tokens and self.tokens[0][0] in ("sign", "word") and self.tokens[0][1] in signs:
            return self.tokens.pop(0)[1]
        return ""

    def require(self, sign: str) -> None:
        if not self.take(sign):
            raise Malformed(f"lacks a `{sign}`")


def _tokens(text: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while rest := text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            raise Malformed("has a single `=`: write `==` to compare" if rest[0] == "=" else f"has `{rest[0]}`, which means nothing here")
        kind = str(match.lastgroup)
        value = match[kind]
        kind = {"quoted": "name", "text2": "text"}.get(kind, kind)
        found.append(("word" if kind == "name" and value in _WORDS and match["name"] else kind, value))
        at = match.end()
    return found


def _quantity(part: Expression) -> Expression:
    if part.is_condition:
        raise Malformed("calculates with a condition")
    return part


def _condition(part: Expression) -> Expression:
    if not part.is_condition:
        raise Malformed("uses what is no condition with and, or, not")
    return part
