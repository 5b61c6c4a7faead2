"""A table or view of the results as one file for other tools."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from losslens.errors import UserError
from losslens.results import Results


def export(results: Path, table: str, out: Path, columns: Mapping[str, list[str]], *, force: bool = False) -> dict[str, Any]:
    """Write the rows whose columns have one of the given values, sorted, to `out`; what was written.

    Raises:
        UserError: no such table or column, no such rows, a file of another kind, or one that is there already.
        DataMismatch: a part cannot be read.
        EnvironmentFailure: the file cannot be written.
    """
    if out.exists() and not force:
        raise UserError(f"{out} is there already", "choose another name, or replace it with --force")
    conditions, values = ["true"], list[str]()
    for name, wanted in columns.items():
        conditions.append(f"{_quoted(name)} IN ({', '.join(f'${len(values) + number}' for number in range(1, len(wanted) + 1))})")
        values += wanted
    rows = Results(results).export(f"SELECT * FROM {_quoted(table)} WHERE {' AND '.join(conditions)} ORDER BY ALL", out, values)
    if not rows:
        asked = ", ".join(f"{name} {' or '.join(wanted)}" for name, wanted in columns.items())
        look = f"""losslens sql "SELECT DISTINCT {", ".join(columns) or "*"} FROM {table}" shows what there is"""
        raise UserError(f"{table} has no rows" + (f" of {asked}" if asked else ""), look)
    return {"file": str(out), "table": table, "rows": rows, "bytes": out.stat().st_size}


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
