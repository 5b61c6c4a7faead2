"""Which files a source is made of, and how they are cut into pieces that can be read independently of each other.

A piece is a range of a file: row groups of a Parquet file, bytes of a plain jsonl or text file, or a whole file where the
format allows no entry in the middle (gz, zst, Arrow streams). Nothing here reads documents; see readers.py.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from losslens.corpus.dataset_files import of_split
from losslens.errors import UserError
from losslens.specs import SourceSpec

Kind = Literal["parquet", "arrow", "jsonl", "text"]
_Shape = TypeVar("_Shape")

KINDS: dict[str, Kind] = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_INFLATION = 4  # text bytes for each compressed byte, to plan with
_EDGE_BYTES = 65_536
_SUPPORTED = "Parquet, Arrow, jsonl or txt, the last two also as .gz or .zst"


@dataclass(frozen=True, slots=True)
class Piece:
    """Part [start, stop) of a file, in row groups (Parquet) or bytes (plain jsonl and text); else the whole file.

    `size` is about how many bytes of text it holds.
    """

    path: str
    kind: Kind
    start: int
    stop: int
    size: int


def kind_of(path: str | Path) -> tuple[Kind | None, str | None]:
    """(format, compression) by the file's name; (None, ...) where it is none of ours."""
    name = Path(path)
    compression = COMPRESSIONS.get(name.suffix)
    kind = KINDS.get(name.with_suffix("").suffix if compression else name.suffix)
    return (None if compression and kind in ("parquet", "arrow") else kind), compression


def files(source: SourceSpec) -> list[Path]:
    """The source's files, sorted by path.

    Raises:
        UserError: no such file or folder, a glob or folder without a readable file, or a split that is not there.
    """
    if source.hf is not None:
        return _dataset_files(Path(source.hf).expanduser(), source.split)
    path = Path(str(source.path)).expanduser()
    if glob.has_magic(str(path)) and not path.exists():
        found = [match for match in map(Path, glob.glob(str(path), recursive=True)) if match.is_file()]
        if not found:
            raise UserError(f"no file matches {source.path}", "correct the pattern under corpus.sources, or the working directory")
        return _readable(found, str(path))
    if path.is_dir():
        return _readable(_below(path), str(path))
    if not path.is_file():
        raise UserError(f"there is no file or folder {source.path}", "correct the path under corpus.sources, or the working directory")
    if kind_of(path)[0] is None:
        raise UserError(f"{source.path} is of no format that can be read", f"give {_SUPPORTED}")
    return [path]


def digest(paths: Iterable[Path]) -> str:
    """A fingerprint of files that costs no full read: of each its name, size, first and last 64 KiB.

    A change of the same size in the middle of a file goes unnoticed; copying or touching a file changes nothing.
    """
    total = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        total.update(f"{path.name}\0{size}\0".encode())
        with _opened(path) as file:
            total.update(file.read(_EDGE_BYTES))
            file.seek(max(0, size - _EDGE_BYTES))
            total.update(file.read(_EDGE_BYTES))
    return total.hexdigest()


def pieces(paths: Iterable[Path], target: int) -> Iterator[Piece]:
    """The files cut into pieces of about `target` bytes of text, in order.

    Raises:
        UserError: a Parquet file that is cut short or is none.
    """
    for path in paths:
        kind, compression = kind_of(path)
        assert kind is not None, "files() lets only known kinds through"
        if kind == "parquet":
            yield from _row_groups(path, target)
            continue
        size = path.stat().st_size
        if compression or kind == "arrow":
            yield Piece(str(path), kind, 0, size, size * (_INFLATION if compression else 1))
            continue
        for start in range(0, size, target):
            stop = min(start + target, size)
            yield Piece(str(path), kind, start, stop, stop - start)


def _row_groups(path: Path, target: int) -> Iterator[Piece]:
    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a whole Parquet file: {first_line(error)}", "fetch the file again or leave it out") from error
    start = size = 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if size >= target or group == metadata.num_row_groups - 1:
            yield Piece(str(path), "parquet", start, group + 1, size)
            start, size = group + 1, 0


def _below(folder: Path) -> list[Path]:
    return [
        path for path in folder.rglob("*") if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _readable(found: Iterable[Path], where: str) -> list[Path]:
    readable = sorted(path for path in found if kind_of(path)[0] is not None)
    if not readable:
        raise UserError(f"{where} holds no file of a format that can be read", f"give {_SUPPORTED}")
    return readable


def _dataset_files(folder: Path, split: str) -> list[Path]:
    """Files of one split of a Hugging Face dataset directory: `save_to_disk`'s or a plain folder of data files."""
    if not folder.is_dir():
        raise UserError(f"there is no dataset directory {folder}", "download the dataset first and give its directory under corpus.sources")
    if (folder / "dataset_dict.json").is_file():
        splits = _saved_json(folder / "dataset_dict.json", _Splits).splits
        if split not in splits:
            raise UserError(f"{folder} has no split {split!r}", f"choose split from {', '.join(splits)}")
        return _saved_files(folder / split)
    if (folder / "state.json").is_file():
        return _saved_files(folder)
    return of_split(folder, _readable(_below(folder), str(folder)), split)


class _Splits(msgspec.Struct):
    """What `DatasetDict.save_to_disk` writes as dataset_dict.json."""

    splits: list[str]


class _State(msgspec.Struct):
    """What `Dataset.save_to_disk` writes as state.json, as far as it concerns us."""

    files: list[dict[str, str]] = msgspec.field(name="_data_files")


def _saved_files(folder: Path) -> list[Path]:
    state = _saved_json(folder / "state.json", _State)
    found = [folder / entry["filename"] for entry in state.files]
    for path in found:
        if not path.is_file():
            raise UserError(f"the dataset {folder} lacks its file {path.name}", "save or copy the dataset again")
    return found


def _saved_json(path: Path, shape: type[_Shape]) -> _Shape:
    try:
        return msgspec.json.decode(path.read_bytes(), type=shape)
    except (OSError, msgspec.MsgspecError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}", "save or copy the dataset again") from error


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "make the file readable or leave it out") from error


def first_line(error: Exception) -> str:
    """The first line of a library's message, without its full stop."""
    return (str(error).splitlines() or ["unknown"])[0].rstrip(". ")
