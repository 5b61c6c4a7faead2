"""The reference shows whatever the code offers, and refuses what nobody has described."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pyarrow as pa
import pytest
import typer
from fastapi import FastAPI

from docs import reference
from docs.reference import Undescribed
from jobs.cli import app
from losslens.errors import DataMismatch, EnvironmentFailure, TrainingDiverged, UserError
from losslens.results import tables
from losslens.results.meanings import MEANINGS
from losslens.specs import StudySpec

PAGES = reference.pages()


def verbs(help: str | None = "How many.", about: str | None = "Count to N.") -> typer.Typer:
    """A command line of one verb."""
    made = typer.Typer()

    def count(
        upto: int,
        way: Annotated[Literal["up", "down"], typer.Option("--way", help="Where to.")] = "up",
        to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="A | in the text.")] = None,
    ) -> None: ...

    count.__doc__ = about
    count.__annotations__["upto"] = Annotated[int, typer.Argument(metavar="N", help=help, min=1)]  # `help` is not a global name
    made.command("count")(count)
    return made


def test_a_new_verb_appears_with_its_options() -> None:
    text = reference.cli(verbs())
    assert "## count\n\nCount to N.\n" in text
    assert "| `N` | whole number, from 1 | needed | How many. |" in text
    assert "| `--way` | `up`, `down` | `up` | Where to. |" in text
    assert "| `--to FILE` | path |  | A \\| in the text. |" in text


@pytest.mark.parametrize(("made", "what"), [(verbs(about=None), "the verb count"), (verbs(help=None), "N of count")])
def test_a_verb_or_option_that_nobody_described_is_refused(made: typer.Typer, what: str) -> None:
    with pytest.raises(Undescribed, match=f"^{what} has no description$"):
        reference.cli(made)


def test_every_verb_is_there() -> None:
    assert app.registered_commands
    assert [command.name for command in app.registered_commands if f"\n## {command.name}\n" not in PAGES["cli.md"]] == []


class Wheel(msgspec.Struct):
    """A wheel of `spokes` spokes."""

    spokes: Annotated[int, msgspec.Meta(gt=0)] = 32
    rim: Literal["wood", "steel"] | None = None  # null: none


class Cart(msgspec.Struct):
    """A cart."""

    load: float  # in kg
    wheels: tuple[Wheel, ...] = ()


class Sledge(msgspec.Struct):
    """A sledge."""

    runners: int = 2


def test_a_new_key_appears_with_type_default_and_meaning() -> None:
    text = reference.study(Cart)
    assert "| `load` | number | needed | in kg |" in text
    assert "| `wheels` | list of: mapping | `[]` | see below |" in text
    assert "\n## wheels[]\n\nA wheel of `spokes` spokes.\n" in text
    assert "| `spokes` | whole number above 0 | `32` | see above |" in text
    assert "| `rim` | `steel`, `wood` or `null` | `null` | null: none |" in text


def test_a_key_that_nobody_described_is_refused() -> None:
    with pytest.raises(Undescribed, match=r"^the key runners of Sledge has no description$"):
        reference.study(Sledge)


def keys(part: type[msgspec.Struct]) -> set[str]:
    """Every key of a study file, at any depth."""
    own = msgspec.structs.fields(part)
    return {field.name for field in own} | {key for field in own for inner in parts(field.type) for key in keys(inner)}


def parts(annotation: Any) -> list[type[msgspec.Struct]]:
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return [annotation]
    return [found for argument in getattr(annotation, "__args__", ()) for found in parts(argument)]


def test_every_key_of_a_study_is_there() -> None:
    assert {key for key in keys(StudySpec) if f"| `{key}` |" not in PAGES["study.md"]} == set()


def test_a_new_table_appears_and_needs_descriptions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tables.TABLES, "planets", pa.schema([("orbit", pa.float64())]))
    about, meanings = reference.docs_of_tables() | {"planets": "What goes round."}, MEANINGS | {"orbit": "in AU"}
    text = reference.results(tables.TABLES, about, meanings)
    assert "\n### planets\n\nWhat goes round.\n" in text
    assert "| `orbit` | DOUBLE | in AU |" in text
    with pytest.raises(Undescribed, match=r"^the column orbit of planets has no description$"):
        reference.results(tables.TABLES, about, MEANINGS)
    with pytest.raises(Undescribed, match=r"^the table planets has no description$"):
        reference.results(tables.TABLES, reference.docs_of_tables(), meanings)


def test_tables_views_and_macros_are_there_and_no_meaning_is_left_over() -> None:
    text = PAGES["results.md"]
    for name in (*tables.TABLES, "curve", "rescored", "crossings(task, metric, level)"):
        assert f"\n### {name}\n" in text
    assert "| `eta_low` | DOUBLE |  | lower end of its 95 % interval |" in text
    assert {name for name in MEANINGS if f"| `{name.rpartition('.')[2]}` |" not in text} == set()


def test_routes() -> None:
    made = FastAPI()

    @made.get("/moons/{name}")
    def moons(name: str, most: int = 3) -> list[str]:
        """Who goes round a planet."""
        return [name] * most

    schema = made.openapi()
    schema["components"]["schemas"] = {"Moon": {"type": "string", "enum": ["Io"], "description": "A moon."}}
    text = reference.http(schema)
    assert "## GET /moons/{name}\n\nWho goes round a planet.\n" in text
    assert "| `name` | path | string | yes |  |" in text
    del schema["paths"]["/moons/{name}"]["get"]["description"]
    with pytest.raises(Undescribed, match=r"^GET /moons/\{name\} has no description"):
        reference.http(schema)
    assert "## POST /evaluations\n" in PAGES["http.md"]


def test_exit_codes() -> None:
    codes = [line.split(" | ")[0].strip("| ") for line in PAGES["exit-codes.md"].splitlines() if line.startswith("| ")]
    assert list(dict.fromkeys(codes)) == ["code", "---", "0", "1", "2", "3", "4", "130", "143"]
    for kind in (UserError, EnvironmentFailure, DataMismatch, TrainingDiverged):
        assert f"| {kind.exit_code} | {kind.__name__} | {kind.__doc__} |" in PAGES["exit-codes.md"]


@pytest.mark.parametrize("module", reference.MODULES)
def test_documented_modules_are_there_and_described(module: str) -> None:
    assert importlib.import_module(module).__doc__


def test_pages_are_rewritten_only_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "pages", lambda: {"cli.md": "verbs", "study.md": "keys"})
    folder = tmp_path / "made"
    reference.write(folder)
    (folder / "of-old.md").write_text("", encoding="utf-8")
    os.utime(folder / "cli.md", (1, 1))
    (folder / "study.md").write_text("", encoding="utf-8")
    reference.write(folder)
    assert {path.name for path in folder.iterdir()} == {"cli.md", "study.md"}
    assert (folder / "cli.md").stat().st_mtime == 1
    assert (folder / "study.md").read_text(encoding="utf-8") == "keys"
