"""The queue on disk: one SQLite file, which holds every evaluation and its state. What `add` returned from is there after a
kill or a power cut.

One process at a time has it (`jobs/exclusive` sees to it) and several of its threads; WAL with synchronous=FULL flushes
each change before it is acknowledged. A change names the state it starts from, so a DELETE and a scorer's answer that meet
cannot both win.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from eval_service.http.evaluations import Evaluation, State
from losslens.errors import DataMismatch, EnvironmentFailure, UserError
from losslens.results.places import flush_folder

_VERSION = 1
_NAMES = tuple(field.name for field in fields(Evaluation))
_AS_JSON = ("tasks", "reused")
_SCHEMA = """
CREATE TABLE evaluations (
    number INTEGER PRIMARY KEY AUTOINCREMENT, evaluation_id TEXT NOT NULL UNIQUE, checkpoint TEXT NOT NULL, tasks TEXT NOT NULL,
    "limit" INTEGER, submitted_at REAL NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL, checkpoint_id TEXT, engine TEXT,
    reused TEXT NOT NULL, error TEXT, remedy TEXT, started_at REAL, ended_at REAL
);
CREATE INDEX by_state ON evaluations (state, number);
"""


class Ledger:
    """Every evaluation that was ever accepted. Safe to use from several threads.

    Raises, in every method:
        EnvironmentFailure: the file cannot be written (a full disk).
        DataMismatch: the file is damaged.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        with self._blamed():
            self._connection = sqlite3.connect(file, timeout=0.0, isolation_level=None, check_same_thread=False)
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise
        flush_folder(file.parent)

    def add(self, evaluation: Evaluation) -> None:
        """Keep a new evaluation: when this returns it is on the disk."""
        row = _row(evaluation)
        self._write(f"INSERT INTO evaluations ({_columns()}) VALUES ({', '.join('?' * len(_NAMES))})", tuple(row.values()))

    def replace(self, before: Evaluation, after: Evaluation) -> bool:
        """Put `after` in the place of `before`; False, and nothing changed, when it is not as it was before."""
        row = _row(after)
        changes = ", ".join(f'"{name}" = ?' for name in row)
        known = (before.evaluation_id, before.state.value, before.attempts)
        return self._write(
            f"UPDATE evaluations SET {changes} WHERE evaluation_id = ? AND state = ? AND attempts = ?", (*row.values(), *known)
        )

    def get(self, evaluation_id: str) -> Evaluation | None:
        """The evaluation of this id, if there is one."""
        return next(iter(self._read("WHERE evaluation_id = ?", (evaluation_id,))), None)

    def listed(self, state: State | None, limit: int, before: str | None) -> list[Evaluation]:
        """The newest first, at most `limit`, those submitted before the evaluation `before`.

        Raises:
            UserError: there is no evaluation `before`.
        """
        number = self._number(before) if before is not None else 2**63 - 1
        if state is None:
            return self._read("WHERE number < ? ORDER BY number DESC LIMIT ?", (number, limit))
        return self._read("WHERE state = ? AND number < ? ORDER BY number DESC LIMIT ?", (state.value, number, limit))

    def unfinished(self) -> list[Evaluation]:
        """Queued and running ones, the oldest first."""
        return self._read("WHERE state IN ('queued', 'running') ORDER BY number", ())

    def counts(self) -> dict[State, int]:
        """How many there are in each state."""
        with self._lock, self._blamed():
            found = dict(self._connection.execute("SELECT state, count(*) FROM evaluations GROUP BY state").fetchall())
        return {state: found.get(state.value, 0) for state in State}

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()

    def _prepare(self) -> None:
        with self._blamed():
            # EXCLUSIVE before WAL keeps the index of the WAL in memory: network file systems have no shared memory.
            for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
                self._connection.execute(f"PRAGMA {pragma}").fetchall()
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")
            elif version != _VERSION:
                raise DataMismatch(f"{self._file} was made by another version of losslens", "move it away to begin with an empty queue")

    def _number(self, evaluation_id: str) -> int:
        with self._lock, self._blamed():
            row = self._connection.execute("SELECT number FROM evaluations WHERE evaluation_id = ?", (evaluation_id,)).fetchone()
        if row is None:
            raise UserError(f"there is no evaluation {evaluation_id}", "page on with the last id of the list before")
        return int(row[0])

    def _read(self, where: str, values: tuple[Any, ...]) -> list[Evaluation]:
        with self._lock, self._blamed():
            rows = self._connection.execute(f"SELECT {_columns()} FROM evaluations {where}", values).fetchall()
        return [_evaluation(row) for row in rows]

    def _write(self, statement: str, values: tuple[Any, ...]) -> bool:
        with self._lock, self._blamed():
            return self._connection.execute(statement, values).rowcount == 1

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:  # a full disk, a lost disk, a file held by another
            raise EnvironmentFailure(f"the queue {self._file} cannot be written: {error}", "check its disk and permissions") from error
        except sqlite3.DatabaseError as error:
            raise DataMismatch(f"the queue {self._file} is damaged: {error}", "move it away to begin with an empty queue") from error


def _columns() -> str:
    return ", ".join(f'"{name}"' for name in _NAMES)


def _row(evaluation: Evaluation) -> dict[str, Any]:
    row = {name: getattr(evaluation, name) for name in _NAMES}
    return row | {name: json.dumps(row[name]) for name in _AS_JSON} | {"state": evaluation.state.value}


def _evaluation(values: tuple[Any, ...]) -> Evaluation:
    row = dict(zip(_NAMES, values, strict=True))
    return Evaluation(**row | {"tasks": tuple(json.loads(row["tasks"])), "reused": json.loads(row["reused"]), "state": State(row["state"])})
