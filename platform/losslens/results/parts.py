"""Parts: immutable Parquet files, each complete or absent, named by their content.

Once `write` returned, the rows survive a kill or a power cut; a writer killed before leaves a temporary file that nobody reads.
Equal rows give an equal name, so writing twice adds nothing and many processes write at once without a lock.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from losslens.errors import UserError
from losslens.results import layout
from losslens.results.places import Folder, Place, listing
from losslens.results.tables import REQUIRED, TABLES

Rows: TypeAlias = pa.Table | list[dict[str, Any]]

ROW_GROUP = 122_880  # rows: DuckDB's own; a query for one task skips groups by their least and greatest task
OURS = re.compile(r"(?:g(?P<generation>\d+)-)?[0-9a-f]{32}\.parquet")  # what `write` and `compaction` call parts; others name theirs
_SCHEMA_PART = "columns.parquet"  # a part of zero rows: DuckDB refuses a glob that matches no file


def folder(root: Path, table: str) -> Path:
    """Where the parts of `table` lie."""
    return root / "parts" / table


def listed(root: Path, table: str) -> list[Path]:
    """The complete parts of `table`, sorted by name; temporary files are not among them."""
    return sorted(folder(root, table).glob("*.parquet"))


def paths(place: Place, table: str) -> list[str]:
    """The complete parts of `table` anywhere, relative to the place."""
    return [f"parts/{table}/{e.name}" for e in listing(place, f"parts/{table}") if e.name.endswith(".parquet") and e.name[0] != "."]


def conform(table: str, rows: Rows) -> pa.Table:
    """`rows` in exactly the columns of `table`: missing ones NULL, types cast.

    Raises UserError for a column the table does not have, a value that does not fit its column, and a NULL or a
    number that is not finite where the table requires a value (a score without n, chance and standard error).
    """
    schema = TABLES[table]
    names = rows.column_names if isinstance(rows, pa.Table) else sorted({key for row in rows for key in row})
    if strangers := [name for name in names if name not in schema.names]:
        raise UserError(f"The table {table} has no column {strangers[0]!r}.", f"Its columns are {', '.join(schema.names)}.")
    try:
        if isinstance(rows, pa.Table):
            columns = [rows[f.name].cast(f.type) if f.name in names else pa.nulls(len(rows), f.type) for f in schema]
            whole = pa.Table.from_arrays(columns, schema=schema)
        else:
            whole = pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
        raise UserError(f"Rows do not fit the columns of {table}: {error}.", "Correct the values or their types.") from error
    _require(table, whole)
    return whole.combine_chunks()


def _require(table: str, rows: pa.Table) -> None:
    for name in REQUIRED[table]:
        column = rows[name]
        known = pc.is_finite(column) if pa.types.is_floating(column.type) else pc.is_valid(column)
        if not pc.all(pc.fill_null(known, False), min_count=0).as_py():
            raise UserError(f"A row of {table} has no {name}.", "Give it a value, or leave the row out: NULL is not guessed.")


def write(place: Place, table: str, rows: Rows) -> str | None:
    """Store `rows` as one part and return its path in the place; None when there are no rows.

    Raises UserError (rows that do not fit, see `conform`), EnvironmentFailure and DataMismatch (see `Place.put`).
    """
    whole = conform(table, rows)
    if not whole.num_rows:
        return None
    layout.claim(place)
    content = _parquet(whole)
    path = f"parts/{table}/{hashlib.sha256(content).hexdigest()[:32]}.parquet"
    place.put(path, content)
    return path


def write_columns(place: Folder) -> None:
    """Make sure that every table has a part, if need be one of zero rows, so that views by glob always bind."""
    for table, schema in TABLES.items():
        path = f"parts/{table}/{_SCHEMA_PART}"
        if not (place.path / path).exists():
            place.put(path, _parquet(schema.empty_table()))


def verify(place: Place) -> Iterator[tuple[str, str]]:
    """Read every part in full; yields (where, reason) for each that cannot be read as its table's columns."""
    for table, schema in TABLES.items():
        for path in paths(place, table):
            try:
                with place.files.open_input_file(place.at(path)) as file:
                    rows = pq.ParquetFile(file).read()
                for name in set(schema.names) & set(rows.column_names):
                    rows[name].cast(schema.field(name).type)
            except (pa.ArrowException, OSError) as error:
                yield f"{place}/{path}", " ".join(str(error).split())


def _parquet(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(rows.replace_schema_metadata(layout.STAMP), sink, compression="zstd", row_group_size=ROW_GROUP)
    return bytes(sink.getvalue())
