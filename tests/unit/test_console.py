"""Rows for eyes and for programs."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.console import Format, human, show
from jobs.progress import Board

ROWS = [
    {"size": "1B", "tokens": 2_999_999_987_712, "lr": 3e-4, "seen": None},
    {"size": "2B", "tokens": 5, "lr": float("nan"), "seen": True},
]


def test_json_is_a_list_of_objects_with_raw_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    show(ROWS, Format.json)
    expected = [ROWS[0], ROWS[1] | {"lr": None}]  # JSON has no NaN
    assert json.loads(capsys.readouterr().out) == expected


def test_csv_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    show(ROWS, Format.csv)
    read = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert read[0] == {"size": "1B", "tokens": "2999999987712", "lr": "0.0003", "seen": ""}


def test_table_shortens_and_chooses(capsys: pytest.CaptureFixture[str]) -> None:
    show(ROWS, Format.table, columns={"tokens": "budget", "seen": "seen"})
    printed = capsys.readouterr().out
    assert "budget" in printed
    assert "3T" in printed
    assert "yes" in printed
    assert "size" not in printed


def test_a_wide_table_is_not_squeezed_into_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    row = {f"column_{i}": "x" * 20 for i in range(30)}
    show([row])
    assert ("x" * 20 + "  ") * 29 in capsys.readouterr().out


@pytest.mark.parametrize("format", Format)
def test_arrow_tables_and_no_rows(format: Format, capsys: pytest.CaptureFixture[str]) -> None:
    at = datetime(2024, 3, 23, 12, 0, tzinfo=UTC)
    show(pa.table({"task": ["mmlu"], "scored_at": [at]}), format)
    assert "mmlu" in capsys.readouterr().out
    show(pa.table({"task": pa.array([], pa.string())}), format)
    assert capsys.readouterr().out == {"table": "", "json": "[]\n", "csv": "task\n"}[format]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (6_243_584_000, "6.24B"),
        (999_999, "999,999"),
        (999_600_000, "1B"),
        (67_000_000_000, "67B"),
        (0.0028, "0.0028"),
        (960_202.4, "960,202"),
    ]
    + [(None, "-"), (True, "yes"), (1.12e23, "1.12e+23"), (-2_500_000, "-2.5M"), (0, "0"), ("x", "x")],
)
def test_human(value: Any, text: str) -> None:
    assert human(value) == text


@given(st.integers(10**6, 10**15))
def test_shortened_integers_keep_three_digits(value: int) -> None:
    text = human(value)
    scale = {"M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1])
    assert (float(text[:-1]) * scale if scale else float(text)) == pytest.approx(value, rel=5.01e-3)


def test_what_is_said_is_not_read_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    Board().say("train s failed: [/build/gloo/pair.cc:537] Read error [127.0.0.1]:60820; it starts again")
    assert "[/build/gloo/pair.cc:537] Read error [127.0.0.1]:60820" in capsys.readouterr().err
