"""Whatever a task file, its data or a template holds: a task comes of it, or one sentence with a remedy."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from losslens.errors import UserError
from tests.unit.test_declared_tasks import CHOICE, OPEN, ROWS, SUMS, built, put

WORDS = st.text(max_size=12) | st.sampled_from(["{country}", "choices", "rows.jsonl", "letter", "index"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
MORE_KEYS = ("version", "shots", "examples", "metrics", "formats", "gold_as", "before", "after", "group", "cue", "accepted")
KEYS = st.sampled_from([*CHOICE, *OPEN, *MORE_KEYS])
CHANGES = st.dictionaries(st.sampled_from([*ROWS[0], *SUMS[0]]), VALUES, max_size=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def tried(file: Path) -> None:
    """It builds, or it is a sentence."""
    try:
        made = built(file)
    except UserError as error:
        said = (str(error), error.remedy)
    else:
        assert all(item.requests for one in made for item in one.items)
        pickle.dumps(made)
        return
    assert all(said)
    assert "\n" not in said[0]


@settings(max_examples=200)
@given(base=st.sampled_from([CHOICE, OPEN]), changes=st.dictionaries(KEYS, VALUES, min_size=1, max_size=3))
def test_a_mutated_declaration(folder: Path, base: dict[str, Any], changes: dict[str, Any]) -> None:
    put(folder, base, ROWS if base is CHOICE else SUMS, ROWS)
    (folder / "task.yaml").write_text(yaml.dump(base | changes, allow_unicode=False), encoding="utf-8")
    tried(folder / "task.yaml")


@settings(max_examples=100)
@given(value=VALUES)
def test_any_yaml(folder: Path, value: Any) -> None:
    (folder / "any.yaml").write_text(yaml.dump(value), encoding="utf-8")
    tried(folder / "any.yaml")


@settings(max_examples=200)
@given(text=st.text(st.sampled_from("{}[]:-?&*!|>'\"%@`#, \n\tabk01.é"), max_size=60) | st.binary(max_size=40))
def test_any_text(folder: Path, text: str | bytes) -> None:
    (folder / "text.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    tried(folder / "text.yaml")


@settings(max_examples=200)
@given(base=st.sampled_from([CHOICE, OPEN]), changes=st.lists(CHANGES, max_size=3))
def test_any_row(folder: Path, base: dict[str, Any], changes: list[dict[str, Any]]) -> None:
    rows = [row | change for row, change in zip(ROWS if base is CHOICE else SUMS, [*changes, {}, {}], strict=False)]
    file = put(folder, base, [])
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tried(file)


@given(template=st.text(st.sampled_from("{}ab.[]0 é"), min_size=1, max_size=15))
def test_any_template(folder: Path, template: str) -> None:
    tried(put(folder, OPEN | {"prompt": template}, [row | {"b": ["x", {"a": "y"}]} for row in SUMS]))
