"""The views over the parts: in memory for our own queries, and as `results.duckdb` for any DuckDB client.

Views name the parts by an absolute glob: the file answers from any working directory and sees parts that are written
after it. So it needs mending only when the directory has moved or the views themselves changed; `origin` in it says
where it believes to be and which text made it.
"""

from __future__ import annotations

import atexit
import contextlib
import glob
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from losslens.errors import DataMismatch
from losslens.results import parts
from losslens.results.places import Folder, Place, remove_abandoned
from losslens.results.tables import TABLES

FILE = "results.duckdb"
_STORAGE = "v1.0.0"  # DuckDB's file format: clients from 1.0 on can open it
_LOCK_PATIENCE = 2.0  # seconds to wait for another process that holds the file for writing

_SQL_TYPES = {
    pa.string(): "VARCHAR",
    pa.int64(): "BIGINT",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
    pa.timestamp("us", tz="UTC"): "TIMESTAMPTZ",
}


def connect(place: Place, sql: str) -> duckdb.DuckDBPyConnection:
    """A connection to a private database with the views over the parts that exist now, as far as `sql` can reach them.

    A table that the statement cannot mean is left empty: its parts need not be looked at. Nothing is written to the place.
    """
    if isinstance(place, Folder):
        present = tuple(table for table in reached(sql) if any(parts.folder(place.path, table).glob("*.parquet")))
        return _settled(_over(place.path, present, os.getpid()).cursor())
    return separate(place, reached(sql))


def separate(place: Place, tables: Iterable[str]) -> duckdb.DuckDBPyConnection:
    """A database of its own over `tables`, wherever the parts lie: Arrow lists and reads them."""
    connection = _private({})
    for table in tables:
        if paths := parts.paths(place, table):
            connection.register(f"parts_of_{table}", dataset(place, table, paths))
            connection.execute(_source(table, f"SELECT * FROM parts_of_{table}"))
    return connection


@lru_cache(maxsize=4)
def _over(root: Path, present: tuple[str, ...], _process: int) -> duckdb.DuckDBPyConnection:
    """Views by glob stay current, so they are made once in a process: making them takes longer than most queries."""
    return _private({table: _glob(root, table) for table in present})


atexit.register(_over.cache_clear)  # DuckDB's binding reports connections that outlive the interpreter as leaks


def _private(sources: Mapping[str, str]) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(":memory:", config={"autoinstall_known_extensions": False, "autoload_known_extensions": False})
    _settled(connection).execute(definition(sources))
    return connection


def _settled(connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """With settings that belong to a connection, not to its database. DuckDB's bar would go to stdout, between rows of JSON."""
    with contextlib.suppress(duckdb.InvalidInputException):  # in a notebook without ipywidgets, where there is no bar either
        connection.execute("SET enable_progress_bar = false")
    return connection.execute("SET TimeZone = 'UTC'; SET parquet_metadata_cache = true")


def dataset(place: Place, table: str, paths: list[str]) -> ds.Dataset:
    """Parts as one Arrow dataset in the table's columns; what a part lacks is NULL."""
    return ds.dataset([place.at(path) for path in paths], schema=TABLES[table], format="parquet", filesystem=place.files)


def definition(sources: Mapping[str, str]) -> str:
    """The SQL that makes every view and macro; `sources`: where tables come from, those not in it are empty.

    The views bind to empty tables first: binding a view opens the parts, and `curve` alone would open them five times.
    """
    made = [_source(table, None) for table in TABLES] + _texts() + [_source(table, rows) for table, rows in sources.items()]
    return "\n".join(["CREATE SCHEMA IF NOT EXISTS parts;", *made])


def _texts() -> list[str]:
    return [files(__package__).joinpath("sql", name).read_text(encoding="utf-8") for name in ("views.sql", "macros.sql")]


def reached(sql: str) -> list[str]:
    """The tables that a statement may read: all whose name, or that of a view or macro which reads them, it contains."""
    words = set(re.findall(r"\w+", sql.lower()))
    todo, met = [*words & _reads().keys()], set(words & TABLES.keys())
    seen = set(todo)
    while todo:
        inner = _reads()[todo.pop()]
        met |= inner & TABLES.keys()
        todo += (inner & _reads().keys()) - seen
        seen |= inner
    return [table for table in TABLES if table in met]


@cache
def _reads() -> dict[str, frozenset[str]]:
    """Which names occur in the definition of each view and macro."""
    found = [made for text in _texts() for made in re.split(r"CREATE OR REPLACE (?:VIEW|MACRO) ", re.sub(r"--.*", "", text))[1:]]
    return {re.findall(r"\w+", made)[0]: frozenset(re.findall(r"\w+", made)[1:]) for made in found}


def _glob(root: Path, table: str) -> str:
    """The rows of all parts; columns that some lack are matched by name."""
    pattern = os.path.join(glob.escape(str(parts.folder(root, table))), "*.parquet").replace("'", "''")
    return f"SELECT * FROM read_parquet('{pattern}', union_by_name = true, hive_partitioning = false)"


def _source(table: str, rows: str | None) -> str:
    """`parts.<table>`: all rows of all parts in the contract's columns and types; other columns are ignored."""
    columns = {field.name: _SQL_TYPES[field.type] for field in TABLES[table]}
    empty = "SELECT " + ", ".join(f"CAST(NULL AS {kind}) AS {_name(name)}" for name, kind in columns.items()) + " WHERE false"
    given = f"{empty} UNION ALL BY NAME {rows}" if rows else empty
    casts = ", ".join(f"CAST(p.{_name(name)} AS {kind}) AS {_name(name)}" for name, kind in columns.items())
    return f"CREATE OR REPLACE VIEW parts.{table} AS SELECT {casts} FROM ({given}) AS p;"


def _name(column: str) -> str:
    return f'"{column}"'


def current(root: Path) -> bool | None:
    """Whether results.duckdb has the views of this place and this version; None when it does not exist or is held."""
    if not (root / FILE).exists():
        return None
    connection = _open(root, read_only=True, patience=0.0)
    if connection is None:
        return None
    with connection:
        try:
            return connection.execute("SELECT text_sha256 FROM parts.origin").fetchall() == [(_fingerprint(root),)]
        except duckdb.CatalogException:  # a DuckDB file of somebody else's making: gets our views beside its own
            return False


def refresh(root: Path) -> bool:
    """Make or mend results.duckdb; False when another process held it for longer than we wait: then it stays as it is.

    A new file appears by a rename. An existing one is changed in place, so what users added to it stays.
    """
    parts.write_columns(Folder(root))
    remove_abandoned(root)
    if (root / FILE).exists():
        return current(root) is True or _mend(root)
    temporary = root / f".tmp-{os.getpid()}-{secrets.token_hex(6)}.duckdb"
    try:
        with duckdb.connect(":memory:") as connection:
            connection.execute(f"ATTACH '{str(temporary).replace(chr(39), chr(39) * 2)}' AS made (STORAGE_VERSION '{_STORAGE}')")
            connection.execute("USE made")
            _define(connection, root)
            connection.execute("USE memory")
            connection.execute("DETACH made")
        os.replace(temporary, root / FILE)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _mend(root: Path) -> bool:
    connection = _open(root, read_only=False, patience=_LOCK_PATIENCE)
    if connection is None:
        return False
    with connection:
        _define(connection, root)
    return True


def _define(connection: duckdb.DuckDBPyConnection, root: Path) -> None:
    connection.execute("BEGIN")
    connection.execute(_everything(root))
    connection.execute("CREATE OR REPLACE TABLE parts.origin (root VARCHAR, text_sha256 VARCHAR)")
    connection.execute("INSERT INTO parts.origin VALUES (?, ?)", [str(root), _fingerprint(root)])
    connection.execute("COMMIT")


def _everything(root: Path) -> str:
    return definition({table: _glob(root, table) for table in TABLES})


def _fingerprint(root: Path) -> str:
    return hashlib.sha256(_everything(root).encode()).hexdigest()


def _open(root: Path, *, read_only: bool, patience: float) -> duckdb.DuckDBPyConnection | None:
    """A connection to results.duckdb, or None while another process holds its lock. Raises DataMismatch when damaged."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return duckdb.connect(root / FILE, read_only=read_only)
        except duckdb.ConnectionException:  # this process has it open in the other mode
            pass
        except duckdb.IOException as error:
            if "lock" not in str(error):
                raise DataMismatch(f"{root / FILE} cannot be opened.", "Delete it: it is made again from the parts.") from error
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.05)
