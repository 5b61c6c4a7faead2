"""Where results lie: a folder on a disk or NFS, or a prefix in S3-compatible object storage. Both hold files that are whole or absent.

A folder gets files by flush and rename, a bucket by one upload, which nobody sees before it is complete. Neither needs a lock.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import pyarrow as pa
from pyarrow import fs

from losslens.errors import DataMismatch, EnvironmentFailure, UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ABANDONED_AFTER = 24 * 3600.0  # seconds: no writer takes that long between opening and renaming


@dataclass(frozen=True, slots=True)
class Entry:
    """A file: its name, bytes, and when it appeared (seconds since the epoch, by the clock of the storage)."""

    name: str
    size: int
    made: float


class Place(Protocol):
    """What a results directory needs of its storage. Paths are relative to it: `parts/scores/NAME`."""

    @property
    def files(self) -> fs.FileSystem:
        """The storage as Arrow reads it; paths in it come from `at`."""

    def at(self, path: str) -> str:
        """`path` as the storage calls it."""

    def there(self) -> bool:
        """Whether it holds `parts/`."""

    def put(self, path: str, content: bytes | Path) -> None:
        """Have the bytes, or those of a file in `scratch`, at `path`: durable on return, never seen in part.

        Raises EnvironmentFailure (full, no permission) and DataMismatch (`path` exists with another length: it was damaged).
        """

    def scratch(self) -> AbstractContextManager[Path]:
        """A private folder for files that `put` takes; gone afterwards."""


def place(root: Path | str) -> Place:
    """The place that `root` names: `s3://BUCKET/PREFIX`, otherwise a folder."""
    text = str(root)
    if text.startswith("s3:/"):
        return Bucket("s3://" + text.removeprefix("s3:").lstrip("/"))  # Path() folds the two slashes
    return Folder(Path(root).resolve())


def listing(where: Place, path: str) -> list[Entry]:
    """The files directly in `path`, by name; none when it does not exist."""
    found = where.files.get_file_info(fs.FileSelector(where.at(path), allow_not_found=True))
    return sorted((Entry(i.base_name, i.size, i.mtime_ns / 1e9) for i in found if i.type == fs.FileType.File), key=lambda e: e.name)


def remove(where: Place, path: str) -> None:
    """Remove a file; nothing when another process was first."""
    with suppress(FileNotFoundError):
        where.files.delete_file(where.at(path))


@dataclass(frozen=True, slots=True)
class Folder:
    """A directory. On NFS a rename is as whole as on a disk; other machines may see it late, by the time that NFS caches listings."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def files(self) -> fs.FileSystem:
        """A local file system."""
        return fs.LocalFileSystem()

    def at(self, path: str) -> str:
        """The absolute path."""
        return str(self.path / path)

    def there(self) -> bool:
        """See `Place`."""
        return (self.path / "parts").is_dir()

    def put(self, path: str, content: bytes | Path) -> None:
        """See `Place`; by a rename."""
        target = self.path / path
        try:
            _make_durable_folder(target.parent)
            if not target.exists():
                _rename_into_place(target, content)
            elif target.stat().st_size != _length(content):
                raise DataMismatch(f"{target} does not hold what its name says.", "Move it away; what it held is written again.")
            flush_folder(target.parent)  # also when another process wrote it: its own flush may not have happened yet
        except OSError as error:
            raise _cannot(f"{target.parent}", error) from error

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """See `Place`; where `put` can rename from."""
        folder = self.path / f".tmp-{os.getpid()}-{secrets.token_hex(6)}"
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise _cannot(f"{self.path}", error) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A prefix in object storage: `s3://BUCKET/PREFIX?region=...&endpoint_override=HOST:PORT&scheme=http`, the credentials from where
    AWS clients look for them. Picklable: a process that gets it opens its own connection."""

    uri: str

    def __str__(self) -> str:
        return self.uri.partition("?")[0].rstrip("/")

    @property
    def files(self) -> fs.FileSystem:
        """The connection of this process."""
        return _opened(self.uri, os.getpid())[0]

    def at(self, path: str) -> str:
        """Bucket and key."""
        return f"{_opened(self.uri, os.getpid())[1]}/{path}"

    def there(self) -> bool:
        """See `Place`."""
        try:
            info = self.files.get_file_info(self.at("parts"))
        except OSError as error:
            raise _cannot(f"{self}", error) from error
        return bool(info.type == fs.FileType.Directory)

    def put(self, path: str, content: bytes | Path) -> None:
        """See `Place`; by an upload."""
        try:
            there = self.files.get_file_info(self.at(path))
            if there.type == fs.FileType.NotFound:
                whole = _buffer(content)  # before the upload begins, and written in one call: what fails leaves nothing
                with self.files.open_output_stream(self.at(path)) as sink:
                    sink.write(whole)
            elif there.size != _length(content):
                raise DataMismatch(f"{self}/{path} does not hold what its name says.", "Move it away; what it held is written again.")
        except OSError as error:
            raise _cannot(f"{self}", error) from error

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """See `Place`; on this machine."""
        with tempfile.TemporaryDirectory(prefix="losslens-") as folder:
            yield Path(folder)


@lru_cache(maxsize=8)
def _opened(uri: str, _process: int) -> tuple[fs.FileSystem, str]:
    """The connection of this process: one inherited by a fork would hang."""
    try:
        files, prefix = fs.FileSystem.from_uri(uri)
    except (OSError, ValueError) as error:
        raise UserError(f"{uri} cannot be opened: {' '.join(str(error).split())}.", "Write s3://BUCKET/PREFIX?region=NAME.") from error
    return files, prefix.rstrip("/")


def _buffer(content: bytes | Path) -> pa.Buffer:
    return pa.py_buffer(content) if isinstance(content, bytes) else pa.memory_map(str(content)).read_buffer()


def _length(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _cannot(where: str, error: OSError) -> EnvironmentFailure:
    if error.errno in _FULL:
        return EnvironmentFailure(f"No space is left to write {where}.", "Free some space and run the command again.")
    said = error.strerror or " ".join(str(error).split())
    return EnvironmentFailure(
        f"{where} cannot be reached or written: {said.rstrip('.')}.", "Check the path, its permissions and credentials."
    )


def _rename_into_place(target: Path, content: bytes | Path) -> None:
    temporary = content if isinstance(content, Path) else target.parent / f".tmp-{os.getpid()}-{secrets.token_hex(6)}"
    try:
        with open(temporary, "xb" if isinstance(content, bytes) else "rb+") as file:
            if isinstance(content, bytes):
                file.write(content)
                file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _make_durable_folder(path: Path) -> None:
    """Create `path` and flush the entries of the folders made on the way, outermost first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        flush_folder(made.parent)


def flush_folder(path: Path) -> None:
    """Have the entries of a folder on the disk: a new file is not durable before its name is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_abandoned(root: Path) -> None:
    """Remove temporary files that killed writers left more than a day ago."""
    for path in (*root.glob(".tmp-*"), *root.glob("parts/*/.tmp-*"), *root.glob("parts/.tmp-*")):
        try:
            if time.time() - path.stat().st_mtime > _ABANDONED_AFTER:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError:  # another process removed it, or the directory is read-only: nothing is lost
            continue
