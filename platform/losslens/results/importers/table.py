"""A published table and its mapping -> runs, checkpoints, losses and scores, in a private DuckDB.

Nothing is done row by row in Python: a mapping becomes SQL over each group of files. Rows that cannot be used are counted by
their reason. The rows come out sorted, so that importing the same files again gives the same parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from losslens.errors import EnvironmentFailure, UserError
from losslens.results.importers import Imported, Unused
from losslens.results.importers.expressions import quoted
from losslens.results.importers.mapping import CHECKPOINT_FIELDS, RUN_FIELDS, Mapped, Sheet
from losslens.results.importers.table_plan import NO_ENTRY, plan
from losslens.results.importers.tabular import ROW, Source, blamed, is_table, listed, sources
from losslens.results.importers.values import Table, columns_of, kind_of, stored
from losslens.results.tables import TABLES

ENGINE = "published/"  # before the study's name in `scores.engine`
_SQL = {pa.string(): "VARCHAR", pa.int64(): "BIGINT", pa.float64(): "DOUBLE", pa.bool_(): "BOOLEAN"}
_LOOKUP = {"text": pa.string(), "number": pa.float64(), "truth": pa.bool_()}
_TABLES = ("runs", "checkpoints", "losses", "scores")
_KEYS = {"losses": ("dataset", "unit"), "scores": ("task", "task_version", "format", "shots", "metric")}
_NAMES = {"losses": ("dataset", "unit"), "scores": ("task", "metric")}  # what a row left out is called by
_TIES = {"losses": "value, stderr, tokens, bytes", "scores": "value, stderr, n, chance"}
_NOTHING = dict.fromkeys(("dataset", "unit", "task", "format", "shots", "metric"))
_UNITS = ("nats/token", "bits/byte", "bits/char", "nats/token_vs_unigram")
_FORMATS = ("letter", "text", "open", "pair")


def _one_of(name: str, known: Sequence[str]) -> tuple[str, str]:
    return f"{name} NOT IN ({', '.join(map(quoted, known))})", f"its {name} is none of {', '.join(known)}"


_REASONS = {
    "losses": (
        ("value IS NULL", "its value is no number"),
        ("NOT isfinite(value)", "its value is not finite"),
        ("dataset IS NULL", "its dataset is not known"),
        ("unit IS NULL", "its unit is not known"),
        _one_of("unit", _UNITS),
    ),
    "scores": (
        ("value IS NULL", "its value is no number"),
        ("NOT isfinite(value)", "its value is not finite"),
        ("task IS NULL", "its task is not known"),
        ("metric IS NULL", "its metric is not known"),
        ("format IS NULL", "its format is not known"),
        _one_of("format", _FORMATS),
        ("chance IS NULL OR NOT isfinite(chance)", "its chance level is not known"),
        ("n IS NULL OR n < 1", "it does not say of how many items it is the mean"),
        ("stderr IS NULL OR NOT isfinite(stderr) OR stderr < 0", "it has no standard error"),
        ("higher_is_better IS NULL", "it does not say whether higher is better"),
    ),
}


def read(path: Path, mapped: Mapped) -> Imported:
    """All that `path`, a file or a directory, holds according to the mapping.

    Raises:
        UserError: no file that the mapping names, one that is damaged or lacks a column that the mapping names, or runs that
            are described in two ways.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist", "give a table, or a directory that holds some")
    private: dict[str, Any] = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
    with duckdb.connect(":memory:", config=private) as connection:
        connection.execute("SET TimeZone = 'UTC'; SET temp_directory = ''; SET preserve_insertion_order = false")
        try:
            return _Import(connection, mapped, Imported(path)).all_of(path.resolve())
        except duckdb.OutOfMemoryException as error:
            raise EnvironmentFailure(f"{path} does not fit into memory", "import its files one by one") from error


def summary(imported: Imported) -> list[dict[str, Any]]:
    """How many losses and scores of each kind there are: a table of millions is not for printing."""
    found: list[dict[str, Any]] = []
    for table, names in (("losses", ("dataset", "unit")), ("scores", ("task", "format", "shots", "metric"))):
        rows = imported.rows.get(table)
        if isinstance(rows, pa.Table):
            counted = rows.group_by(list(names)).aggregate([([], "count_all"), ("value", "min"), ("value", "max")])
            ordered = counted.sort_by([(name, "ascending") for name in names]).to_pylist()
            found += [
                {"table": table, **_NOTHING, **{name: row[name] for name in names}}
                | {"rows": row["count_all"], "lowest": row["value_min"], "highest": row["value_max"]}
                for row in ordered
            ]
    return found


@dataclass(frozen=True, slots=True)
class _Import:
    """One import: the database it works in and what it has found."""

    connection: duckdb.DuckDBPyConnection
    mapped: Mapped
    imported: Imported

    def all_of(self, root: Path) -> Imported:
        """Read every table, then check, sort and count what they gave."""
        for name, table in self.mapped.lookups.items():
            self.connection.register("given", _arrow(table))
            self._run(f"CREATE TEMP TABLE {name} AS SELECT * FROM given")
        for found in _TABLES:
            columns = ", ".join(f'"{field.name}" {_SQL[field.type]}' for field in TABLES[found] if field.type in _SQL)
            self._run(f"CREATE TEMP TABLE found_{found} ({columns})")
        taken: set[Path] = set()
        for sheet in self.mapped.sheets:
            taken |= self._take_sheet(sheet, root)
        if not taken:
            globs = ", ".join(glob for sheet in self.mapped.sheets for glob in sheet.files)
            raise UserError(f"nothing at {self.imported.file} matches {globs}", "correct the path, or `files` in the mapping")
        if root.is_dir():
            for file in sorted(set(filter(is_table, root.rglob("*"))) - taken):
                self._leave("the mapping does not name this file", 1, file.name)
        self._describe("runs", "run_id", RUN_FIELDS)
        self._describe("checkpoints", "checkpoint_id", ("run_id", *CHECKPOINT_FIELDS))
        self._measure("losses")
        self._measure("scores")
        return replace(self.imported, files=len(taken))

    def _take_sheet(self, sheet: Sheet, root: Path) -> set[Path]:
        """Add what the files of one kind hold; which those are."""
        files = listed(root, sheet.files)
        matched: set[str] = set()
        for source in sources(self.connection, root, files, sheet.delimiter):
            try:
                matched |= self._take(sheet, source)
            except duckdb.OutOfMemoryException:
                raise
            except duckdb.Error as error:
                raise blamed(error, source.files) from error
        for entry in sheet.entries:
            if files and entry.columns is not None and entry.place not in matched:
                self._leave("no column is called so", 1, f"`{entry.columns.pattern}`")
        return set(files)

    def _take(self, sheet: Sheet, source: Source) -> frozenset[str]:
        """Add what one source holds; the places of the entries that found a column."""
        planned = plan(sheet, source, self.mapped.study, ENGINE + self.mapped.study)
        self.connection.execute(f"CREATE OR REPLACE TEMP TABLE base AS {planned.base}")
        run = ("run_id", *(name for name in RUN_FIELDS if name in sheet.run))
        checkpoint = ("checkpoint_id", "run_id", *(name for name in CHECKPOINT_FIELDS if name in sheet.checkpoint))
        for table, names in (("runs", run), ("checkpoints", checkpoint)):
            listed_names = ", ".join(names)
            self._run(f"INSERT INTO found_{table} ({listed_names}) SELECT DISTINCT {listed_names} FROM base WHERE refused IS NULL")
        for insert in planned.inserts:
            self._run(f"INSERT INTO found_{insert.kind} ({', '.join(insert.columns)}) {insert.select}")
        for reason, count in self._run("SELECT refused, count(*) FROM base WHERE refused IS NOT NULL GROUP BY 1"):
            self._leave(reason, count)
        for (count,) in self._run(f"SELECT count(*) FROM base AS {ROW} WHERE {planned.untaken}"):
            self._leave(NO_ENTRY, count)
        if planned.unmapped:
            ((count,),) = self._run("SELECT count(*) FROM base")
            for column, reason in planned.unmapped:
                self._leave(reason, count, column)
        return planned.matched

    def _describe(self, table: str, key: str, fields: Sequence[str]) -> None:
        """The rows of `runs` or `checkpoints`: one for each, which may be put together from several tables."""
        chosen = ", ".join(f"max({name}) AS {name}" for name in fields)
        disagree = " || ".join(f"CASE WHEN min({name}) <> max({name}) THEN '{name} ' ELSE '' END" for name in fields)
        clash = self._run(f"SELECT {key}, {disagree} AS clash FROM found_{table} GROUP BY 1 HAVING clash <> '' ORDER BY 1 LIMIT 1")
        if clash:
            name = clash[0][1].split()[0]
            values = self._run(f"SELECT DISTINCT {name} FROM found_{table} WHERE {key} = {quoted(clash[0][0])} ORDER BY 1 LIMIT 2")
            two = " and ".join(str(value) for (value,) in values)
            raise UserError(
                f"{clash[0][0]} has two values of {name}: {two}", f"map `{name}` to what is one for all its rows, or leave it out"
            )
        origin = "".join(f", {'NULL' if said is None else quoted(said)} AS {name}" for name, said in self.mapped.origin.items())
        extra = origin if table == "runs" else ""
        described = f"SELECT {key}, {chosen}{extra} FROM found_{table} GROUP BY {key} ORDER BY {key}"
        self._keep(table, self.connection.sql(described).to_arrow_table())

    def _measure(self, table: str) -> None:
        """The rows of `losses` or `scores` that can be used, each key once; the others are counted."""
        refusal = "CASE " + " ".join(f"WHEN {condition} THEN {quoted(why)}" for condition, why in _REASONS[table]) + " END"
        names = ", ".join(f"COALESCE({name}, '')" for name in _NAMES[table])
        usable = f"FROM found_{table} WHERE ({refusal}) IS NULL"
        refused = self._run(f"SELECT {refusal} AS why, {names}, count(*) FROM found_{table} WHERE why IS NOT NULL GROUP BY ALL")
        for why, task, metric, count in refused:
            self._leave(why, count, task, metric)
        keys = (*_KEYS[table], "checkpoint_id")  # the task first: a query for one task skips the row groups of the others
        order = ", ".join(keys)
        rows = self.connection.sql(f"SELECT * {usable} ORDER BY {order}").to_arrow_table()
        if _repeats(rows, keys):
            again = f"SELECT count(*), count(DISTINCT value), {names} {usable} GROUP BY {order} HAVING count(*) > 1"
            for count, values, task, metric in self._run(again):
                reason = "another row says the same" if values == 1 else "another row gives a lower value for the same"
                self._leave(reason, count - 1, task, metric)
            once = f"QUALIFY row_number() OVER (PARTITION BY {order} ORDER BY {_TIES[table]}) = 1"
            rows = self.connection.sql(f"SELECT * {usable} {once} ORDER BY {order}").to_arrow_table()
        self._keep(table, rows)

    def _keep(self, table: str, rows: pa.Table) -> None:
        if rows.num_rows:
            self.imported.rows[table] = rows

    def _run(self, statement: str) -> list[Any]:
        return self.connection.execute(statement).fetchall()

    def _leave(self, reason: str, count: int, task: str = "", metric: str = "") -> None:
        if count:
            self.imported.unused.append(Unused(task, metric, reason, count))


def _repeats(rows: pa.Table, keys: Sequence[str]) -> bool:
    """Whether neighbours in sorted rows have the same key; cheaper than counting keys."""
    same = None
    for column in (rows[name].combine_chunks() for name in keys):
        before, after = column.slice(0, max(len(column) - 1, 0)), column.slice(1)
        alike = pc.or_(pc.fill_null(pc.equal(before, after), False), pc.and_(pc.is_null(before), pc.is_null(after)))
        same = alike if same is None else pc.and_(same, alike)
    return bool(pc.any(same, min_count=0).as_py())


def _arrow(table: Table) -> pa.Table:
    """A lookup as the database holds it: `key`, c0, c1, ..."""
    columns: dict[str, pa.Array] = {"key": pa.array(list(table), pa.string())}
    for at, column in enumerate(columns_of(table)):
        kind = kind_of(table, column)
        values = [stored(entry[column], kind) if column in entry else None for entry in table.values()]
        columns[f"c{at}"] = pa.array(values, _LOOKUP[kind])
    return pa.table(columns)
