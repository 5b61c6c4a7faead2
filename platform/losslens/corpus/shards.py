"""Files that are whole or absent: written under a temporary name, flushed to disk, renamed. A full disk leaves nothing behind."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from losslens.errors import EnvironmentFailure

TEMPORARY = ".tmp-"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_ENTRY = {errno.EACCES, errno.EROFS, errno.EPERM}
_HASH_BLOCK = 1 << 20


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Says what a failed write within the block means.

    Raises:
        EnvironmentFailure: the disk is full, or may not be written to.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise EnvironmentFailure(f"there is no room left to write {path}", "free some space and run again: it resumes") from error
        if error.errno in _NO_ENTRY:
            raise EnvironmentFailure(f"{path} may not be written", "choose a results directory you may write to") from error
        raise


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends well, and vanishes when it does not.

    Raises:
        EnvironmentFailure: the disk is full, or may not be written to.
    """
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name}")
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Writes a whole file or none."""
    with replacing(path) as file:
        file.write(content)


def write_array(path: Path, array: NDArray[np.generic]) -> None:
    """Writes a whole .npy file or none."""
    content = io.BytesIO()  # straight into a file, numpy reports a full disk without saying that it is one
    np.lib.format.write_array(content, array, allow_pickle=False)
    write_bytes(path, content.getbuffer())


class RowFile:
    """A .npy file [rows, width] that grows row by row: its header, which numpy pads for this use, is set at the end."""

    def __init__(self, file: BinaryIO, width: int, dtype: np.dtype[np.generic]) -> None:
        self.rows = 0
        self._file, self._width, self._dtype = file, width, dtype
        file.write(self._header())

    def append(self, rows: NDArray[np.generic]) -> None:
        """Adds rows [n, width]; they are converted to the file's dtype."""
        assert rows.shape[1:] == (self._width,), "rows of another width"
        self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).data)
        self.rows += len(rows)

    def finish(self) -> None:
        """Writes the final number of rows into the header."""
        self._file.seek(0)
        self._file.write(self._header())
        self._file.seek(0, os.SEEK_END)

    def _header(self) -> bytes:
        header = io.BytesIO()
        described = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self.rows, self._width)}
        np.lib.format.write_array_header_1_0(header, described)
        return header.getvalue()


def joined_sha256(hashes: Sequence[str]) -> str:
    """One hash for those of several files, such as a model's weights, in order of their names."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def remove_unfinished(directory: Path) -> None:
    """Removes temporary files and folders that killed writers left below a directory."""
    for path in list(directory.rglob(f"{TEMPORARY}*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
