"""The answer to a query as one file for other tools: whole or absent, streamed by DuckDB, so that it may be larger than memory."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb

from losslens.errors import EnvironmentFailure, UserError

KINDS = {
    ".parquet": "FORMAT parquet, COMPRESSION zstd",
    ".csv": "FORMAT csv, HEADER",
    ".csv.gz": "FORMAT csv, HEADER, COMPRESSION gzip",
    ".jsonl": "FORMAT json",
    ".jsonl.gz": "FORMAT json, COMPRESSION gzip",
}


def copy(connection: duckdb.DuckDBPyConnection, sql: str, params: Sequence[Any], file: Path) -> int:
    """Write the rows of a statement that only reads to `file`, in the kind that its name ends with; how many. Without rows, no file.

    Raises:
        UserError: a file of no kind of these, or in no folder.
        EnvironmentFailure: it cannot be written.
    """
    kind = next((how for ending, how in KINDS.items() if file.name.endswith(ending)), None)
    if kind is None:
        raise UserError(f"{file} is of no kind that is written.", f"End its name with {', '.join(KINDS)}.")
    temporary = file.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(6)}")
    try:
        temporary.open("xb").close()
        quoted = str(temporary).replace("'", "''")
        ((rows,),) = connection.execute(f"COPY (\n{sql}\n) TO '{quoted}' ({kind})", list(params)).fetchall()
        if rows:
            os.replace(temporary, file)
        return int(rows)
    except OSError as error:
        raise _cannot(file, error.strerror or str(error)) from error
    except duckdb.IOException as error:
        if temporary.name in str(error):
            raise _cannot(file, " ".join(str(error).split())) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _cannot(file: Path, why: str) -> EnvironmentFailure:
    return EnvironmentFailure(f"{file} cannot be written: {why.rstrip('.')}.", "Check its folder, its permissions and the disk.")
