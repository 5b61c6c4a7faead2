"""Expressions of a mapping: what they mean, that they are refused or parsed, and that nothing of them is run by Python."""

from __future__ import annotations

import contextlib

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from losslens.results.importers.expressions import Malformed, Scope, Sql, parse

SCOPE = Scope(
    {"a": Sql("'3'", "text"), "b": Sql("CAST(0.5 AS DOUBLE)", "number"), "odd/name": Sql("NULL", "text"), "t": Sql("'qa'", "text", "qa")}
)


def value(text: str) -> object:
    return (duckdb.execute(f"SELECT {parse(text).sql(SCOPE).text}").fetchone() or (None,))[0]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("-2 ** 2", -4.0),
        ("2 ** 3 ** 2", 512.0),
        ("10 - 4 - 3", 3.0),
        ("8 / 4 / 2", 1.0),
        ("a * 2 + b", 6.5),
        ("t + 1", None),
        ("`odd/name` + 1", None),
        ("t == 'qa' and not (a > 5 or a < 1)", True),
        ("t in ('x', \"qa\")", True),
        ("a not in (1, 3)", False),
        ("a == 3.0", True),
        ("a >= 10", False),
    ],
)
def test_what_an_expression_means(text: str, meant: object) -> None:
    assert value(text) == meant


@pytest.mark.parametrize(
    "text", ["", "1 +", "a b", "a = 1", "1 < 2 < 3", "a and b", "not a", "(a > 1) + 1", "a;", "'it''s'", "1e999", "(" * 500]
)
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(Malformed):
        parse(text)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab1.5+-*/()<>=!, '`andortin", max_size=30))
def test_any_expression_parses_or_is_refused(text: str) -> None:
    with contextlib.suppress(Malformed):
        parse(text)


NUMBERS = st.integers(0, 9).map(str)
SIGNED = st.sampled_from(["{0} + {1}", "{0} - {1}", "{0} * {1}", "({0})", "-{0}"])
ARITHMETIC = st.recursive(
    st.one_of(NUMBERS, st.sampled_from(["a", "b"])),
    lambda inner: st.tuples(SIGNED, inner, inner).map(lambda one: one[0].format(*one[1:])),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(ARITHMETIC, st.sampled_from(["<", ">=", "==", "!="]), ARITHMETIC)
def test_arithmetic_means_what_it_means_in_python(left: str, sign: str, right: str) -> None:
    scope = Scope({"a": Sql("'3'", "text"), "b": Sql("CAST(0.5 AS DOUBLE)", "number")})
    sql = ", ".join(parse(text).sql(scope).text for text in (f"{left} + 0", f"({left}) + 0 {sign} {right} or 1 > 2"))
    found = duckdb.execute(f"SELECT {sql}").fetchone()
    assert found == (eval(f"{left} + 0", {"a": 3, "b": 0.5}), eval(f"({left}) {sign} {right}", {"a": 3, "b": 0.5}))
