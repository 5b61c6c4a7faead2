"""The reference, made from the code at each build: verbs, study keys, tables, routes, exit codes, Python. None of it is kept.

What has no description is refused, so that no verb, key, table or route goes unexplained.
"""

from __future__ import annotations

import ast
import inspect
import io
import pkgutil
import re
import sys
import textwrap
import tokenize
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin

import duckdb
import msgspec
import msgspec.inspect as shapes
import pyarrow as pa
import typer
from typer.models import ArgumentInfo, OptionInfo
from typer.utils import get_params_from_function

import losslens.analysis
from eval_service.http.app import Front, create_app
from jobs.cli import app
from jobs.failures import ToldToEnd, explain
from losslens.errors import LosslensError
from losslens.results import database, tables
from losslens.results.meanings import MEANINGS
from losslens.specs import StudySpec

MODULES = (
    "losslens.results.store",
    "losslens.specs.load",
    "losslens.families.plan",
    *(f"losslens.analysis.{module.name}" for module in pkgutil.iter_modules(losslens.analysis.__path__)),
    "losslens.tasks.requests",
    "eval_service.engine",
    "losslens.errors",
)
"""What is public in Python beside the command line."""

_SQL = re.compile(r"((?:^-- .*\n)*)^CREATE OR REPLACE (?:VIEW|MACRO) (\w+)", re.M)


class Undescribed(Exception):
    """Something that users see has no description."""


def pages() -> dict[str, str]:
    """Every page as Markdown, by the name of its file."""
    return {
        "cli.md": cli(app),
        "study.md": study(StudySpec),
        "results.md": results(tables.TABLES, docs_of_tables(), MEANINGS),
        "http.md": http(create_app(Front(*[cast(Any, None)] * 7)).openapi()),
        "exit-codes.md": exit_codes(),
        "python.md": python(MODULES),
    }


def write(folder: Path) -> None:
    """Have the pages in `folder` and nothing else; a page that did not change keeps its time."""
    folder.mkdir(parents=True, exist_ok=True)
    made = pages()
    for stale in {path.name for path in folder.iterdir()} - made.keys():
        (folder / stale).unlink()
    for name, text in made.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def described(text: str | None, what: str) -> str:
    """`text` in one line. Raises Undescribed when there is none."""
    if not text or not text.strip():
        raise Undescribed(f"{what} has no description")
    return " ".join(text.split())


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines] + [""]


# The command line


def cli(verbs: typer.Typer) -> str:
    """Every verb with its arguments and options."""
    lines = ["# Command line", "", "`losslens VERB ...`; `losslens VERB --help` says the same.", ""]
    if verbs.registered_callback:
        lines += ["Before or after any verb:", "", *_options("losslens", cast(Any, verbs.registered_callback.callback))]
    for command in verbs.registered_commands:
        name, call = str(command.name), cast(Callable[..., None], command.callback)
        lines += [f"## {name}", "", described(call.__doc__, f"the verb {name}"), "", *_options(name, call)]
    return "\n".join(lines)


def _options(verb: str, call: Callable[..., None]) -> list[str]:
    rows = [_option(verb, name, meta.annotation, meta.default) for name, meta in get_params_from_function(call).items()]
    return table(("option", "type", "default", "meaning"), rows)


def _option(verb: str, name: str, annotation: Any, info: OptionInfo | ArgumentInfo) -> tuple[str, ...]:
    shown = info.metavar or name.upper()
    if isinstance(info, OptionInfo):
        flags = ", ".join(info.param_decls or ())
        shown = flags if annotation is bool or not info.metavar else f"{flags} {info.metavar}"
    meaning = described(info.help, f"{shown} of {verb}")
    return f"`{shown}`", _kind(annotation) + _between(info.min, info.max), _default(info.default), meaning


def _kind(annotation: Any) -> str:
    """A Python type as users meet it."""
    inner = [arg for arg in get_args(annotation) if arg is not types.NoneType]
    origin = get_origin(annotation)
    if origin is Literal:
        return _choices(inner)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_kind, inner))
    if origin is list:
        return f"{_kind(inner[0])}, repeatable"
    if issubclass(annotation, Enum):
        return _choices([member.value for member in annotation])
    return {bool: "flag", int: "whole number", float: "number", Path: "path", str: "text"}[annotation]


def _choices(values: Iterable[Any]) -> str:
    return ", ".join(f"`{_yaml(value)}`" for value in values)


def _between(low: float | None, high: float | None) -> str:
    if high is None:
        return "" if low is None else f", from {low}"
    return f", to {high}" if low is None else f", {low} to {high}"


def _default(value: Any) -> str:
    if value is ...:
        return "needed"
    if value is None or value is False:
        return ""
    return f"`{value.value if isinstance(value, Enum) else value}`"


# A study file


def study(root: type[msgspec.Struct]) -> str:
    """Every key of a study file, a section for each mapping in it."""
    lines = ["# Study file", "", "Unknown keys are errors. Counts of tokens and bytes may be written `2.5M` or `67B`. A default of", ""]
    lines[-2] += " `null` means what the key's own line says of it."
    todo: list[tuple[str, Any]] = [("", root)]
    met: dict[Any, str] = {}
    while todo:
        path, part = todo.pop(0)
        if part in met:
            lines += [f"## {path}", "", f"As `{met[part]}`.", ""]
            continue
        met[part] = path
        lines += [f"## {path}" if path else "## The file", "", described(part.__doc__, path or "the study"), ""]
        lines += table(("key", "type", "default", "meaning"), (_key(part, field) for field in _fields(part)))
        inner = [(f"{path}.{field.name}".lstrip(".") + many, one) for field in _fields(part) for one, many in _parts(field.type)]
        todo = inner + todo
    return "\n".join(lines)


def _fields(part: type[msgspec.Struct]) -> tuple[shapes.Field, ...]:
    return cast(shapes.StructType, shapes.type_info(part)).fields


def _key(part: type[msgspec.Struct], field: shapes.Field) -> tuple[str, ...]:
    meaning = _comments(part).get(field.name, "")
    if not meaning and (f"`{field.name}`" in (part.__doc__ or "") or any(_parts(field.type))):
        meaning = "see above" if f"`{field.name}`" in (part.__doc__ or "") else "see below"
    return f"`{field.name}`", _shape(field.type), _given(field), described(meaning, f"the key {field.name} of {part.__name__}")


def _comments(part: type[msgspec.Struct]) -> dict[str, str]:
    """What stands behind each field on its last line."""
    source = textwrap.dedent(inspect.getsource(part))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    behind = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    [made] = ast.parse(source).body
    fields = [node for node in cast(ast.ClassDef, made).body if isinstance(node, ast.AnnAssign)]
    return {cast(ast.Name, node.target).id: behind.get(node.end_lineno or 0, "").removeprefix("#").strip() for node in fields}


def _given(field: shapes.Field) -> str:
    if field.required:
        return "needed"
    value = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return "its keys' own" if isinstance(value, msgspec.Struct) else f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    return str(value) if isinstance(value, str) else msgspec.json.encode(value).decode().replace(",", ", ")


def _parts(shape: shapes.Type) -> Iterator[tuple[Any, str]]:
    """The mappings with keys of their own in a type, and what their path ends with."""
    match shape:
        case shapes.StructType():
            yield shape.cls, ""
        case shapes.UnionType():
            for one in shape.types:
                yield from _parts(one)
        case shapes.VarTupleType() | shapes.ListType():
            yield from ((inner, f"[]{many}") for inner, many in _parts(shape.item_type))


def _shape(shape: shapes.Type) -> str:
    """A type as it is written in YAML."""
    match shape:
        case shapes.IntType() | shapes.FloatType():
            return ("whole number" if isinstance(shape, shapes.IntType) else "number") + _bounds(shape)
        case shapes.StrType():
            return f"text that matches `{shape.pattern}`" if shape.pattern else "text"
        case shapes.BoolType():
            return "`true`, `false`"
        case shapes.LiteralType():
            return _choices(shape.values)
        case shapes.UnionType():
            return " or ".join(_shape(one) for one in sorted(shape.types, key=lambda one: isinstance(one, shapes.NoneType)))
        case shapes.VarTupleType() | shapes.ListType():
            return f"list of: {_shape(shape.item_type)}"
        case shapes.TupleType():
            return f"list of {len(shape.item_types)}: {', '.join(map(_shape, shape.item_types))}"
        case shapes.DictType():
            return f"mapping from {_shape(shape.key_type)} to: {_shape(shape.value_type)}"
        case shapes.StructType():
            return "mapping"
        case shapes.NoneType():
            return "`null`"
    return "anything"


def _bounds(shape: shapes.IntType | shapes.FloatType) -> str:
    said = (("above", shape.gt), ("from", shape.ge), ("below", shape.lt), ("to", shape.le))
    known = [f"{word} {bound:,}" for word, bound in said if bound is not None and abs(bound) < sys.float_info.max]
    return "".join(f" {word}" for word in known)


# Tables


def results(stored: Mapping[str, pa.Schema], about: Mapping[str, str], meanings: Mapping[str, str]) -> str:
    """Every stored table, view and macro with its columns. `about` says what tables are, `meanings` what columns are."""
    said = {name: " ".join(comment.replace("-- ", "").split()) for comment, name in _SQL.findall(_sql_text())}
    lines = ["# Tables", "", "What `losslens sql` and `losslens.results.Results` answer from; docs/RESULTS.md says where it is kept.", ""]
    lines += ["## Stored tables", "", "The view of a name shows one row for each key; `parts.NAME` has all rows as they were written.", ""]
    with duckdb.connect(":memory:") as connection:
        connection.execute(database.definition({}))
        for name in stored:
            lines += [f"### {name}", "", described(about.get(name), f"the table {name}"), said.get(name, ""), ""]
            lines += _columns(connection, name, f"parts.{name}", meanings, tables.REQUIRED.get(name, ()))
        views = [view for (view,) in connection.execute(_VIEWS).fetchall() if view not in stored]
        for heading, names in (("Views", {view: view for view in views}), ("Macros", _macros(connection))):
            lines += [f"## {heading}", ""]
            for shown, source in names.items():
                name = shown.partition("(")[0]
                lines += [f"### {shown}", "", described(said.get(name), f"the view or macro {name}"), ""]
                lines += _columns(connection, name, source, meanings)
    return "\n".join(lines)


_VIEWS = "SELECT view_name FROM duckdb_views() WHERE schema_name = 'main' AND NOT internal ORDER BY 1"
_MACROS = "SELECT function_name, parameters FROM duckdb_functions() WHERE function_type = 'table_macro' AND NOT internal ORDER BY 1"


def _macros(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    found = connection.execute(_MACROS).fetchall()
    return {f"{name}({', '.join(asked)})": f"{name}({', '.join(['NULL'] * len(asked))})" for name, asked in found}


def _columns(
    connection: duckdb.DuckDBPyConnection, name: str, source: str, meanings: Mapping[str, str], needed: Iterable[str] = ()
) -> list[str]:
    rows = []
    for column, kind, *_ in connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall():
        meaning = described(meanings.get(f"{name}.{column}", meanings.get(column)), f"the column {column} of {name}")
        rows.append((f"`{column}`", kind, "yes" if column in needed else "", meaning))
    if needed:
        return table(("column", "type", "never NULL in our rows", "meaning"), rows)
    return table(("column", "type", "meaning"), (row[:2] + row[3:] for row in rows))


def _sql_text() -> str:
    folder = files("losslens.results") / "sql"
    return "".join((folder / name).read_text(encoding="utf-8") for name in ("views.sql", "macros.sql"))


def docs_of_tables() -> dict[str, str]:
    """The text below the schema of each table."""
    body = ast.parse(inspect.getsource(tables)).body
    below_name = {}
    for made, below in pairwise(body):
        if isinstance(made, ast.Assign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            below_name[cast(ast.Name, made.targets[0]).id] = str(below.value.value)
    return {name: text for const, text in below_name.items() for name, schema in tables.TABLES.items() if schema is getattr(tables, const)}


# Routes


def http(openapi: Mapping[str, Any]) -> str:
    """Every route of the scoring service, with what it takes and answers."""
    lines = ["# HTTP", "", "The routes of `losslens serve`; the service itself answers `/openapi.json`.", ""]
    for path, ways in openapi["paths"].items():
        for method, route in ways.items():
            name = f"{method.upper()} {path}"
            lines += [f"## {name}", "", described(route.get("description"), name), ""]
            asked = [
                (f"`{one['name']}`", one["in"], _json(one["schema"]), "yes" if one.get("required") else "", one.get("description", ""))
                for one in route.get("parameters", ())
            ]
            lines += table(("parameter", "in", "type", "needed", "meaning"), asked) if asked else []
            if body := route.get("requestBody"):
                lines += [f"Body: {_content(body)}.", ""]
            answers = [(status, _content(answer), answer["description"]) for status, answer in route["responses"].items()]
            lines += table(("status", "body", "meaning"), sorted(answers))
    lines += ["## Bodies", ""]
    for name, schema in openapi["components"]["schemas"].items():
        lines += [f"### {name}", "", described(schema.get("description"), f"the body {name}"), ""]
        rows = [(f"`{key}`", _json(value), value.get("description", "")) for key, value in schema.get("properties", {}).items()]
        lines += table(("key", "type", "meaning"), rows) if rows else [f"{_json(schema)}", ""]
    return "\n".join(lines)


def _content(message: Mapping[str, Any]) -> str:
    kinds = message.get("content", {})
    return ", ".join(_json(value["schema"]) if value.get("schema") else kind for kind, value in kinds.items())


def _json(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "anyOf" in schema:
        return " or ".join(map(_json, schema["anyOf"]))
    if "enum" in schema:
        return _choices(schema["enum"])
    if schema.get("type") == "array":
        return f"list of: {_json(schema['items'])}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"mapping to: {_json(schema['additionalProperties'])}"
    bounds = _between(schema.get("minimum"), schema.get("maximum"))
    return str(schema.get("format") or schema.get("type", "anything")) + bounds


# What ends a command, and Python


def exit_codes() -> str:
    """What the shell receives."""
    rows = [("0", "", "done"), ("1", "", "a fault of ours: its traceback is shown")]
    rows += [(str(kind.exit_code), kind.__name__, described(kind.__doc__, kind.__name__)) for kind in _kinds(LosslensError)]
    for told in (KeyboardInterrupt(), ToldToEnd()):
        failure = explain(told)
        assert failure is not None
        rows.append((str(failure.exit_code), type(told).__name__, f"{failure.sentence}; {failure.remedy}"))
    lines = ["# Exit codes", "", "2 to 4 come with one sentence and a remedy on stderr; `--debug` shows the traceback too.", ""]
    return "\n".join([*lines, *table(("code", "error", "meaning"), sorted(rows, key=lambda row: int(row[0])))])


def _kinds(base: type[LosslensError]) -> Iterator[type[LosslensError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)


def python(modules: Iterable[str]) -> str:
    """What Sphinx's autodoc shows of each module: its public functions and classes, with their signatures."""
    lines = ["# Python", "", "What may be imported: tables in, tables out. Everything else is inner and may change.", ""]
    for module in modules:
        lines += [f"## {module}", "", "```{eval-rst}", f".. automodule:: {module}", "   :members:", "```", ""]
    return "\n".join(lines)
