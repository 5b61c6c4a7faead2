"""Parts: immutable Parquet files, each complete or absent, named by their content.

A part is written to a temporary name, flushed to the disk and renamed; then its directory is flushed. Once `write`
returned, the rows survive a kill or a power cut; a writer killed before leaves a temporary file that nobody reads.
Equal rows give an equal name, so writing twice adds nothing and many processes write at once without a lock.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from losslens.errors import DataMismatch, EnvironmentFailure, UserError
from losslens.results.tables import REQUIRED, TABLES

Rows: TypeAlias = pa.Table | list[dict[str, Any]]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ABANDONED_AFTER = 24 * 3600.0  # seconds: no writer takes that long between opening and renaming
_SCHEMA_PART = "columns.parquet"  # a part of zero rows: DuckDB refuses a glob that matches no file


def folder(root: Path, table: str) -> Path:
    """Where the parts of `table` lie."""
    return root / "parts" / table


def listed(root: Path, table: str) -> list[Path]:
    """The complete parts of `table`, sorted by name; temporary files are not among them."""
    return sorted(folder(root, table).glob("*.parquet"))


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


def write(root: Path, table: str, rows: Rows) -> Path | None:
    """Store `rows` as one part and return its path; None when there are no rows.

    Raises UserError (rows that do not fit, see `conform`), EnvironmentFailure (full disk, no permission) and
    DataMismatch (a part of that name exists with another length: it was damaged).
    """
    whole = conform(table, rows)
    if not whole.num_rows:
        return None
    content = _parquet(whole)
    return _store(folder(root, table) / f"{hashlib.sha256(content).hexdigest()[:32]}.parquet", content)


def write_columns(root: Path) -> None:
    """Make sure that every table has a part, if need be one of zero rows, so that views by glob always bind."""
    for table, schema in TABLES.items():
        path = folder(root, table) / _SCHEMA_PART
        if not path.exists():
            _store(path, _parquet(schema.empty_table()))


def remove_abandoned(root: Path) -> None:
    """Remove temporary files that killed writers left more than a day ago."""
    for path in (*root.glob(".tmp-*"), *root.glob("parts/*/.tmp-*")):
        try:
            if time.time() - path.stat().st_mtime > _ABANDONED_AFTER:
                path.unlink()
        except OSError:  # another process removed it, or the directory is read-only: nothing is lost
            continue


def verify(root: Path) -> Iterator[tuple[Path, str]]:
    """Read every part in full; yields (path, reason) for each that cannot be read as its table's columns."""
    for table, schema in TABLES.items():
        for path in listed(root, table):
            try:
                rows = pq.ParquetFile(path).read()
                for name in set(schema.names) & set(rows.column_names):
                    rows[name].cast(schema.field(name).type)
            except (pa.ArrowException, OSError) as error:
                yield path, " ".join(str(error).split())


def _parquet(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    return bytes(sink.getvalue())


def _store(path: Path, content: bytes) -> Path:
    try:
        _make_durable_folder(path.parent)
        if not path.exists():
            _rename_into_place(path, content)
        elif path.stat().st_size != len(content):
            raise DataMismatch(f"{path} does not hold what its name says.", "Move it away; what it held is written again.")
        flush_folder(path.parent)  # also when another process wrote it: its own flush may not have happened yet
    except OSError as error:
        if error.errno in _FULL:
            raise EnvironmentFailure(f"No space is left to write {path.parent}.", "Free some space and run the command again.") from error
        raise EnvironmentFailure(f"{path.parent} cannot be written: {error.strerror}.", "Check the path and its permissions.") from error
    return path


def _rename_into_place(path: Path, content: bytes) -> None:
    temporary = path.parent / f".tmp-{os.getpid()}-{secrets.token_hex(6)}"
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _make_durable_folder(path: Path) -> None:
    """Create `path` and flush the entries of the folders made on the way, outermost first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        flush_folder(made.parent)


def flush_folder(path: Path) -> None:
    """Have the entries of a folder on the disk: a new file is not durable before its name is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
