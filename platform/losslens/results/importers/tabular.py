"""Published tables as DuckDB reads them: csv, tsv, jsonl and Parquet, each also .gz or .zst, with their columns by name.

Columns of text files stay text until a mapping wants numbers, so one odd cell spoils one row and no file. Files with the same
columns are read as one source.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from losslens.errors import UserError
from losslens.results.importers.expressions import Sql, quoted

_PACKED = {".gz": "gzip", ".zst": "zstd"}
_KINDS = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
ROW = "losslens_row"  # the alias of whatever is selected from: a bare name inside a lookup would mean the lookup's own column
_FILE = "losslens_file"  # the column in which DuckDB tells the file
_WHOLE = {"tinyint", "smallint", "integer", "bigint", "hugeint", "utinyint", "usmallint", "uinteger", "ubigint", "uhugeint"}
_REAL = {"float", "double", "decimal"}
_REMEDY = "mend or copy the file again"


@dataclass(frozen=True, slots=True)
class Column:
    """Where a column is found, and what it holds: text, whole, number or truth."""

    reference: str
    kind: str

    def sql(self, reference: str | None = None) -> Sql:
        """Its value; under another name where a `reference` is given."""
        at = reference or self.reference
        if self.kind == "whole":
            return Sql(f"CAST({at} AS DOUBLE)", "number", spelled=f"CAST({at} AS VARCHAR)")
        return Sql(f"CAST({at} AS DOUBLE)", "number") if self.kind == "number" else Sql(at, "truth" if self.kind == "truth" else "text")


@dataclass(frozen=True, slots=True)
class Source:
    """Files of equal columns. `file`: SQL of the file's name relative to where the import began."""

    sql: str
    file: str
    files: tuple[Path, ...]
    columns: Mapping[str, Column]


def listed(path: Path, globs: Iterable[str]) -> list[Path]:
    """The files at or below `path` that match one of the patterns, sorted."""
    if path.is_file():
        return [path] if any(fnmatchcase(path.name, PurePosixPath(pattern).name) for pattern in globs) else []
    return sorted({file for pattern in globs for file in path.glob(pattern) if file.is_file()})


def is_table(file: Path) -> bool:
    """Whether a file is named like a table."""
    return _named(file)[0] is not None


def sources(connection: duckdb.DuckDBPyConnection, root: Path, files: Sequence[Path], delimiter: str | None) -> list[Source]:
    """The files as sources; `root`: what names are relative to.

    Raises:
        UserError: a file of another kind, without a header, with two columns of one name, or damaged.
    """
    groups: dict[tuple[Any, ...], list[Path]] = {}
    for file in files:
        kind, packed = _named(file)
        if kind == "csv":
            sign = delimiter or ("\t" if ".tsv" in file.suffixes else ",")
            groups.setdefault((kind, packed, sign, *_header(file, sign)), []).append(file)
        elif kind == "jsonl":
            groups.setdefault((kind, packed), []).append(file)
        elif kind == "parquet":
            groups.setdefault((kind, packed, file if packed else _schema(file)), []).append(file)
        else:
            raise UserError(f"{file} is no table: its name ends in none of {', '.join(_KINDS)}, with .gz or .zst or without", "rename it")
    return [_source(connection, root, group, together) for group, together in groups.items()]


def blamed(error: duckdb.Error, files: Sequence[Path]) -> UserError:
    """DuckDB's complaint about files as one sentence."""
    text = str(error)
    file = next((file for file in files if str(file) in text), files[0])
    lines = [line.strip() for line in text.splitlines()]
    said = [lines[0].partition("Error: ")[2] or lines[0], *(line for line in lines[1:] if line.startswith("Expected"))]
    where = str(file) if len(files) == 1 or str(file) in text else f"one of {file} and {len(files) - 1} more files"
    return UserError(f"{where} cannot be read: {'; '.join(said).rstrip('.')}", _REMEDY)


def _named(file: Path) -> tuple[str | None, str | None]:
    """Kind and compression by the name."""
    packed = _PACKED.get(file.suffix.lower())
    return _KINDS.get((file.with_suffix("") if packed else file).suffix.lower()), packed


def _header(file: Path, delimiter: str) -> tuple[str, ...]:
    try:
        with pa.input_stream(str(file)) as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
            names = next(csv.reader(text, delimiter=delimiter), [])
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{file} cannot be read: {str(error).partition(chr(10))[0]}", _REMEDY) from error
    if not any(names):
        raise UserError(f"{file} is empty", "a table begins with a line of column names")
    names = [name or f"column{at}" for at, name in enumerate(names)]  # pandas leaves the index without a name
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{file} has two columns `{twice[0]}`", "rename one")
    return tuple(names)


def _schema(file: Path) -> str:
    try:
        return str(pq.read_schema(file))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file} cannot be read: {str(error).partition(chr(10))[0]}", _REMEDY) from error


def _source(connection: duckdb.DuckDBPyConnection, root: Path, group: tuple[Any, ...], files: list[Path]) -> Source:
    kind, packed = group[:2]
    places = "[" + ", ".join(quoted(glob.escape(str(file))) for file in files) + "]"
    named = f"filename = '{_FILE}'"
    prefix = f"{root}/" if root.is_dir() else f"{root.parent}/"
    name = f"substr({ROW}.{_FILE}, {len(prefix) + 1})"
    if kind == "csv":
        # NULLIF also keeps DuckDB 2.0 from turning TRY_CAST of a column into a reader of numbers, which stops at a text.
        columns = {column: Column(f"NULLIF({ROW}.c{at}, '')", "text") for at, column in enumerate(group[3:])}
        typed = ", ".join(f"'c{at}': 'VARCHAR'" for at in range(len(columns)))
        form = f"auto_detect = false, header = true, delim = {quoted(group[2])}, quote = '\"', escape = '\"', columns = {{{typed}}}"
        return Source(f"read_csv({places}, {form}, compression = '{packed or 'none'}', {named})", name, tuple(files), columns)
    if kind == "jsonl":  # all lines tell the types: a key that first comes late would be lost
        whole = "sample_size = -1, map_inference_threshold = -1, union_by_name = true"
        sql = f"read_ndjson({places}, {whole}, compression = '{packed or 'uncompressed'}', {named})"
    elif packed:
        sql, name = _unpacked(connection, files[0]), quoted(str(files[0])[len(prefix) :])
    else:
        sql = f"read_parquet({places}, hive_partitioning = false, {named})"
    return Source(sql, name, tuple(files), _described(connection, sql, files))


def _unpacked(connection: duckdb.DuckDBPyConnection, file: Path) -> str:
    """The name of a Parquet file that is compressed as a whole, in the database."""
    try:
        with pa.input_stream(str(file)) as stream:
            table = pq.read_table(pa.BufferReader(stream.read()))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file} cannot be read: {str(error).partition(chr(10))[0]}", _REMEDY) from error
    name = f"unpacked_{hashlib.sha256(str(file).encode()).hexdigest()[:16]}"
    connection.register(name, table)
    return name


def _described(connection: duckdb.DuckDBPyConnection, sql: str, files: Sequence[Path]) -> dict[str, Column]:
    try:
        relation = connection.sql(f"SELECT * FROM {sql}")
    except duckdb.Error as error:
        raise blamed(error, files) from error
    found: dict[str, Column] = {}
    for name, kind in zip(relation.columns, relation.types, strict=True):
        if name != _FILE:
            found |= _flat(name, f'{ROW}."' + name.replace('"', '""') + '"', kind)
    return found


def _flat(name: str, reference: str, kind: Any) -> dict[str, Column]:
    """A column; of a nested one its leaves, as `outer.inner`."""
    if kind.id == "struct":
        leaves = [_flat(f"{name}.{inner}", reference + '."' + inner.replace('"', '""') + '"', within) for inner, within in kind.children]
        return {leaf: column for one in leaves for leaf, column in one.items()}
    if str(kind) == "JSON":  # of several types: numbers in some rows, texts in others
        return {name: Column(f"({reference} ->> '$')", "text")}
    if kind.id in _WHOLE or kind.id in _REAL:
        return {name: Column(reference, "whole" if kind.id in _WHOLE else "number")}
    return {name: Column(reference if kind.id in ("varchar", "boolean") else f"CAST({reference} AS VARCHAR)", _kind(kind.id))}


def _kind(duckdb_type: str) -> str:
    return "truth" if duckdb_type == "boolean" else "text"
