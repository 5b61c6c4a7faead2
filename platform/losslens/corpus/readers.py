"""The documents of a piece, streamed: memory is bounded by the largest document, never by the file.

What is one document: a row of Parquet or Arrow, a line of jsonl, and of a text file each stretch of about 64 KiB cut at a
line's end (so that a book in one file can be held out in part and needs no memory of its size).
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from losslens.corpus.sources import Piece, first_line, kind_of
from losslens.errors import UserError

TEXT_DOCUMENT_BYTES = 65_536
_BATCH_BYTES = 4_000_000
_READ_BYTES = 1 << 20
_BROKEN = "fetch the file again or leave it out"


def documents(piece: Piece, text_column: str, where: Mapping[str, str]) -> Iterator[str]:
    """The raw texts of a piece in file order, rows that fail `where` and rows without text left out. A `text_column` with braces is a
    template of columns.

    Raises:
        UserError: a file cut short, a broken line (named by its number), a missing column (with those that are there).
    """
    if piece.kind == "text":
        if where:
            raise UserError(f"{piece.path} is plain text and has no columns to filter by", "remove `where` from that source")
        yield from _text_documents(piece)
    elif piece.kind == "jsonl":
        yield from _json_documents(piece, text_column, where)
    else:
        yield from _table_documents(piece, text_column, where)


class _Text:
    """How a row becomes a text: by one column, or by a template of several, such as `Q: {prompt} A: {response}`.

    Raises:
        UserError: the template names no column, or asks for more than its value.
    """

    def __init__(self, text_column: str) -> None:
        self._parts: tuple[tuple[str, str | None], ...] = ()
        self.columns: tuple[str, ...] = (text_column,)
        if "{" in text_column:
            self._parts = tuple(_template(text_column))
            self.columns = tuple(dict.fromkeys(name for _, name in self._parts if name is not None))

    def of(self, values: Sequence[Any], path: str) -> str | None:
        """The text of a row that has `values` in `columns`; None where one is missing.

        Raises:
            UserError: a value is no text.
        """
        if any(value is None for value in values):
            return None
        texts = {name: _as_text(value, path, name) for name, value in zip(self.columns, values, strict=True)}
        if not self._parts:
            return texts[self.columns[0]]
        return "".join(literal + (texts[name] if name is not None else "") for literal, name in self._parts)


def _template(text: str) -> Iterator[tuple[str, str | None]]:
    """(literal, the column that follows it or None) of each part."""
    remedy = "write columns as {prompt}, and a brace that is meant as {{"
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise UserError(f"the template {text!r} under text_column cannot be read: {error}", remedy) from error
    if all(name is None for _, name, _, _ in parts):
        raise UserError(f"the template {text!r} under text_column names no column", remedy)
    for literal, name, form, conversion in parts:
        if name is not None and (not name or form or conversion):
            raise UserError(f"the template {text!r} under text_column asks for more than a column's value", remedy)
        yield literal, name


def _table_documents(piece: Piece, text_column: str, where: Mapping[str, str]) -> Iterator[str]:
    text = _Text(text_column)
    wanted = [*text.columns, *where]
    try:
        for batch in _parquet_batches(piece, wanted) if piece.kind == "parquet" else _arrow_batches(piece):
            _require_columns(piece.path, wanted, batch.schema.names)
            columns: list[list[Any]] = [batch.column(name).to_pylist() for name in text.columns]
            filters = [(batch.column(name).to_pylist(), value) for name, value in where.items()]
            for i, values in enumerate(zip(*columns, strict=True)):
                if not all(str(column[i]) == value for column, value in filters):
                    continue
                if (found := text.of(values, piece.path)) is not None:
                    yield found
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{piece.path} is damaged: {first_line(error)}", _BROKEN) from error


def _parquet_batches(piece: Piece, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(piece.path, memory_map=True) as file:
        _require_columns(piece.path, columns, file.schema_arrow.names)
        groups = range(piece.start, piece.stop)
        rows = sum(file.metadata.row_group(group).num_rows for group in groups)
        batch_rows = min(max(1, rows * _BATCH_BYTES // max(1, piece.size)), 4096)
        yield from file.iter_batches(batch_size=batch_rows, row_groups=list(groups), columns=sorted(set(columns)), use_threads=False)


def _arrow_batches(piece: Piece) -> Iterator[pa.RecordBatch]:
    """Batches of an Arrow stream (what `datasets` writes) or an Arrow file."""
    with pa.memory_map(piece.path) as source:
        if source.read(6) == b"ARROW1":
            file = pa.ipc.open_file(source)
            yield from (file.get_batch(i) for i in range(file.num_record_batches))
        else:
            source.seek(0)
            yield from pa.ipc.open_stream(source)


def _require_columns(path: str, wanted: Iterable[str], there: list[str]) -> None:
    for name in wanted:
        if name not in there:
            raise UserError(f"{path} has no column {name!r}", f"its columns are {', '.join(there)}; set text_column or where accordingly")


def _json_documents(piece: Piece, text_column: str, where: Mapping[str, str]) -> Iterator[str]:
    text = _Text(text_column)
    wanted = {*text.columns, *where}
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    for number, line in enumerate(_lines(piece)):
        if line.isspace():
            continue
        try:
            record = decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            place = f"{piece.path}, line {_lines_before(piece) + number + 1}"
            raise UserError(f"{place}, is not a JSON object: {first_line(error)}", "mend or remove that line") from error
        if not record.keys() >= wanted:
            place = f"{piece.path}, line {_lines_before(piece) + number + 1}"
            _require_columns(place, [*text.columns, *where], list(record))
        if not all(str(record[name]) == value for name, value in where.items()):
            continue
        if (found := text.of([record[name] for name in text.columns], piece.path)) is not None:
            yield found


def _text_documents(piece: Piece) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()  # keeps a character cut in two, where a line is longer than a document
    gathered: list[bytes] = []
    size = 0
    try:
        for part in _lines(piece, limit=TEXT_DOCUMENT_BYTES):
            gathered.append(part)
            size += len(part)
            if size >= TEXT_DOCUMENT_BYTES:
                yield decoder.decode(b"".join(gathered))
                gathered, size = [], 0
        yield decoder.decode(b"".join(gathered), final=True)
    except UnicodeDecodeError as error:
        near = bytes(error.object[max(0, error.start - 20) : error.start])
        raise UserError(f"{piece.path} is not UTF-8 text: {error.reason} after {near!r}", "convert it to UTF-8") from error


def _lines(piece: Piece, limit: int = -1) -> Iterator[bytes]:
    """The lines that begin within the piece (in parts of at most `limit` bytes); one that began before it belongs to
    the piece before."""
    compression = kind_of(piece.path)[1]
    try:
        if compression:
            with pa.input_stream(piece.path, compression=compression) as compressed:
                reader = io.BufferedReader(_Raw(compressed), _READ_BYTES)
                while line := reader.readline(limit):
                    yield line
        else:
            with Path(piece.path).open("rb", buffering=_READ_BYTES) as file:
                yield from _lines_from(file, piece, limit)
    except OSError as error:
        raise UserError(f"{piece.path} is damaged: {first_line(error)}", _BROKEN) from error


def _lines_from(file: BinaryIO, piece: Piece, limit: int) -> Iterator[bytes]:
    position = piece.start
    if piece.start:
        file.seek(piece.start - 1)
        while (rest := file.readline(_READ_BYTES)) and not rest.endswith(b"\n"):
            pass  # the rest of the line that began before, or just the line feed that ended it
        position = file.tell()
    at_start = True
    while (position < piece.stop or not at_start) and (line := file.readline(limit)):
        position += len(line)
        at_start = line.endswith(b"\n")
        yield line


class _Raw(io.RawIOBase):
    """Arrow's decompressed stream as a raw file: its own `readline` is not implemented."""

    def __init__(self, stream: pa.NativeFile) -> None:
        super().__init__()
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _lines_before(piece: Piece) -> int:
    """Lines of the file that began before the piece: read only to name a broken one."""
    if not piece.start:
        return 0
    head = Piece(piece.path, piece.kind, 0, piece.start, piece.start)
    return sum(1 for _ in _lines(head))


def _as_text(value: Any, path: str, column: str) -> str:
    if not isinstance(value, str):
        raise UserError(
            f"the column {column!r} of {path} holds {type(value).__name__} values, not text", "set text_column to a text column"
        )
    return value
