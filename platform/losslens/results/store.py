"""Results: the one door to a results directory. Write rows, ask SQL, get Arrow tables."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from losslens.errors import DataMismatch, EnvironmentFailure, LosslensError, UserError
from losslens.results import compaction, database, exports, layout, parts, statements
from losslens.results.places import Folder, place

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Results:
    """A results directory. Cheap to make, holds no handle and pickles: give it to any process.

    Every call sees all parts that any process has written by then.
    """

    def __init__(self, root: Path | str) -> None:
        self.place = place(root)
        self._looked = False  # whether results.duckdb has been checked to belong to this place

    @property
    def root(self) -> Path:
        """The directory. Raises UserError when the results lie in object storage."""
        if isinstance(self.place, Folder):
            return self.place.path
        raise UserError(f"{self.place} is no directory.", "Give a directory on this machine here.")

    def __str__(self) -> str:
        return str(self.place)

    def write(self, table: str, rows: parts.Rows) -> str | None:
        """Append `rows` to `table` as one immutable part; its path in the results, or None when there are no rows.

        When it returns, the rows are on the disk. Equal rows written again add nothing. Errors: see `parts.write`.
        """
        return parts.write(self.place, table, rows)

    def query(self, sql: str, params: Sequence[Any] = ()) -> pa.Table:
        """The answer to one read-only statement over the views of the contract.

        Raises UserError (no such directory, one of a newer losslens, a statement that is wrong or does more than read) and
        DataMismatch (a part that cannot be read, by name).
        """
        found: pa.Table = self._asked(sql, lambda connection: connection.sql(sql, params=list(params)).to_arrow_table())
        return found

    def export(self, sql: str, file: Path, params: Sequence[Any] = ()) -> int:
        """Write the answer to one read-only statement into a file, whose kind is its ending; how many rows. Without rows, no file.

        Raises as `query`, and UserError (no such kind of file), EnvironmentFailure (it cannot be written).
        """
        return self._asked(sql, lambda connection: exports.copy(connection, sql, params, file))

    def _asked(self, sql: str, take: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        self._require_parts()
        self._mend_if_moved()
        try:
            return self._answer(sql, take)
        except duckdb.IOException:  # compaction removed a part after it was listed: list again
            pass
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise self._blamed(error) from error
        try:
            return self._answer(sql, take)
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise self._blamed(error) from error

    def _answer(self, sql: str, take: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        with database.connect(self.place, sql) as connection:
            statements.require_reading(connection, sql)
            return take(connection)

    def curve(
        self,
        *,
        task: str | Sequence[str] | None = None,
        format: str | Sequence[str] | None = None,
        metric: str | Sequence[str] | None = None,
        loss_dataset: str | Sequence[str] | None = None,
        study: str | Sequence[str] | None = None,
    ) -> pa.Table:
        """The rows of view `curve` whose columns equal the given value or one of the given values.

        Raises UserError, naming the values there are, when a filter matches nothing.
        """
        order = "study, run_id, step, tokens, loss_dataset, loss_unit, task, format, shots, metric, checkpoint_id"
        filters = {"task": task, "format": format, "metric": metric, "loss_dataset": loss_dataset, "study": study}
        wanted = {name: [value] if isinstance(value, str) else list(value) for name, value in filters.items() if value is not None}
        places = count(1)  # `IN` and not list_contains: DuckDB skips what lies in other row groups
        where = "".join(f" AND {name} IN ({', '.join(f'${next(places)}' for _ in values) or 'NULL'})" for name, values in wanted.items())
        given = [value for values in wanted.values() for value in values]
        found = self.query(f"SELECT * FROM curve WHERE true{where} ORDER BY {order}", given)
        if wanted and not found.num_rows:
            raise self._nothing_for(wanted)
        return found

    def compact(self, grace: float = compaction.GRACE) -> list[compaction.Compacted]:
        """Merge small parts and bring older ones to this layout; one entry per table. Readers and writers go on meanwhile.

        Parts that were merged go `grace` seconds later, at the next call after that. Errors: see `compaction.compact`.
        """
        self._require_parts()
        return compaction.compact(self.place, grace)

    def refresh(self) -> None:
        """Make or mend results.duckdb. When another process keeps it locked it is left as it is: its views read parts
        by glob and stay current. Object storage gets none: DuckDB would need an extension to read from there."""
        self._require_parts()
        if not isinstance(self.place, Folder):
            return
        try:
            if not database.refresh(self.root):
                _log.warning("%s is in use by another process and was left as it is.", self.root / database.FILE)
        except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
            raise EnvironmentFailure(f"{self.root / database.FILE} cannot be written.", "Check its disk and permissions.") from error
        except duckdb.Error as error:
            raise self._blamed(error) from error

    def _require_parts(self) -> None:
        if not self.place.there():
            raise UserError(f"{self} holds no results.", "Name a directory that holds parts/, or run a study into it first.")
        layout.require_known(self.place)

    def _mend_if_moved(self) -> None:
        if self._looked or not isinstance(self.place, Folder):
            return
        self._looked = True
        if database.current(self.root) is not False:
            return
        try:
            self.refresh()
        except EnvironmentFailure as failure:  # reading does not need the file
            _log.warning("%s still reads the place where it was made: %s", self.root / database.FILE, failure)
        else:
            _log.warning("%s was made elsewhere or by another version: its views now read this directory.", self.root / database.FILE)

    def _blamed(self, error: Exception) -> LosslensError:
        """Whose fault a DuckDB error is: a part that cannot be read, otherwise the statement."""
        if not isinstance(error, duckdb.ParserException | duckdb.CatalogException | duckdb.BinderException):
            for path, reason in parts.verify(self.place):
                return DataMismatch(f"{path} cannot be read: {reason}.", "Restore it, or move it away to do without its rows.")
        if isinstance(error, duckdb.Error):
            return statements.explained(error)
        return EnvironmentFailure(f"{self} cannot be read: {' '.join(str(error).split())}.", "Try again; check the storage.")

    def _nothing_for(self, wanted: dict[str, list[str]]) -> UserError:
        for name, values in wanted.items():
            known = self.query(f"SELECT DISTINCT {name} FROM curve ORDER BY 1").column(0).to_pylist()
            if not set(values) & set(known):
                there = ", ".join(str(value) for value in known) or "none"
                return UserError(f"No scored checkpoint has {name} {', '.join(values)}.", f"There are: {there}.")
        return UserError("No scored checkpoint fits all filters at once.", "Drop one of them.")
