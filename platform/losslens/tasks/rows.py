"""Task data: `<data>/<task>/{test,dev}.jsonl[.gz]`, read strictly, every complaint with its file, line and field.

A benchmark's row is a frozen `msgspec.Struct` in the field names of the benchmark itself; what msgspec and the row's own
`__post_init__` refuse becomes a `UserError`. Fields that a row does not name are ignored.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from losslens.errors import UserError

Split = Literal["test", "dev"]
Text = Annotated[str, msgspec.Meta(min_length=1)]
Options = Annotated[tuple[Text, ...], msgspec.Meta(min_length=2, max_length=26)]
Answers = Annotated[tuple[Text, ...], msgspec.Meta(min_length=1)]


class Row(msgspec.Struct, frozen=True):
    """One line of a task file. Subclasses name the fields and refuse what contradicts itself with a `ValueError`."""


R = TypeVar("R", bound=Row)


def require_gold(field: str, gold: int, options: Sequence[str]) -> None:
    """Refuse a gold index that names no option."""
    if not 0 <= gold < len(options):
        raise ValueError(f"field `{field}` is {gold}, but the row has options 0 to {len(options) - 1}")


def require_once(field: str, text: str, mark: str) -> None:
    """Refuse a text whose blank is missing or ambiguous."""
    if text.count(mark) != 1:
        raise ValueError(f"field `{field}` holds the blank `{mark}` {text.count(mark)} times instead of once")


def read_rows(data: Path, task: str, split: Split, row: type[R]) -> list[R]:
    """All rows of one split, in file order.

    Raises:
        UserError: the file is missing, unreadable, truncated or empty, or a line does not fit `row`.
    """
    path = _find(data, task, split)
    decoder = msgspec.json.Decoder(row)
    rows = []
    for number, line in _lines(path):
        try:
            rows.append(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}, line {number}: {_in_words(error)}", _REMEDY) from error
    if not rows:
        raise UserError(f"{path} has no rows", _REMEDY)
    return rows


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line in words, fields) of every row of a jsonl[.gz] or Parquet file, whatever its fields.

    Raises:
        UserError: as `read_rows`; also for a file of another kind.
    """
    if path.suffix == ".parquet":
        yield from _parquet_records(path)
        return
    if path.suffix != ".jsonl" and path.suffixes[-2:] != [".jsonl", ".gz"]:
        raise UserError(f"{path} is of no kind that task data has", "give a file whose name ends in .jsonl, .jsonl.gz or .parquet")
    decoder = msgspec.json.Decoder(dict[str, Any])
    for number, line in _lines(path):
        try:
            yield f"{path}, line {number}", decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: {_in_words(error)}", "mend the line: each is one JSON object") from error


def _parquet_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa  # slow to import, and only this kind needs it
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", record
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}", "fetch the file again") from error


_REMEDY = "mend the line or fetch the file again; docs/TASKS.md lists the fields of every task"


def _find(data: Path, task: str, split: Split) -> Path:
    candidates = [data / task / f"{split}.jsonl", data / task / f"{split}.jsonl.gz"]
    found = [path for path in candidates if path.is_file()]
    if not found:
        raise UserError(
            f"task `{task}` needs {candidates[0]} or the same with .gz, and neither exists",
            "point the study's evaluation.data at the directory that holds the task folders, or leave the task out",
        )
    if len(found) > 1:
        raise UserError(f"both {found[0]} and {found[1].name} exist", "remove one of them: nothing says which is meant")
    return found[0]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line) of every line that is not blank."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged or truncated after line {number}: {error}", "fetch the file again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}", "check the file and its permissions") from error


def _in_words(error: Exception) -> str:
    """msgspec's complaint with its JSON path as a field name: "... - at `$.choices[1]`" -> "field `choices[1]`: ..."."""
    message = str(error)
    match = re.fullmatch(r"(.*) - at `\$\.?(.*)`", message)
    if match is None:
        return message
    return f"field `{match[2]}`: {match[1]}" if match[2] else match[1]
