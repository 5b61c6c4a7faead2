"""TensorBoard's event files. Other writers import torch, which drivers do without, and cannot cut a file back to what was noted.

A file of events is a sequence of records: length (8 bytes), checksum of these, an event, checksum of that. An event is a protocol
buffer of a time, a step and named float32 values (tensorboard/compat/proto/event.proto and summary.proto).
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from losslens.corpus.shards import room_for
from losslens.errors import DataMismatch
from losslens.tracking.points import Point, Run

FOLDER = "tensorboard"
FILE = "events.out.tfevents.0000000000.losslens"  # any name with `tfevents` in it; one file a run, which grows
_LARGEST = 3.4028234663852886e38  # of a float32


class TensorBoard:
    """A folder for `tensorboard --logdir`: one run in it for each of ours."""

    def __init__(self, root: Path) -> None:
        self.home = root / FOLDER

    def send(self, run: Run, points: Sequence[Point], mark: str | None) -> str:
        """Append to the run's file; the mark is its length. What a killed sender wrote behind it is cut off first.

        Raises:
            DataMismatch: the file is shorter than its mark.
            EnvironmentFailure: the disk is full, or may not be written to.
        """
        file, known = self.home / run.name / FILE, int(mark or 0)
        with room_for(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("r+b" if file.exists() else "w+b") as stream:
                if stream.seek(0, os.SEEK_END) < known:
                    raise DataMismatch(f"{file} is shorter than what was written", f"delete {file.parent}: it is written anew")
                stream.truncate(stream.seek(known))
                if not known:
                    stream.write(record(_event(points[0].time if points else 0.0, 0, _text(3, b"brain.Event:2"))))
                stream.writelines(record(event(point.time, x, values)) for point in points for x, values in point.series() if values)
                stream.flush()
                os.fsync(stream.fileno())
                return str(stream.tell())

    def close(self) -> None:
        """Nothing is open."""


def event(time: float, step: int, values: Mapping[str, float]) -> bytes:
    """One event with values by name."""
    scalars = (_text(1, name.encode()) + b"\x15" + struct.pack("<f", _float32(value)) for name, value in values.items())
    return _event(time, step, _text(5, b"".join(_text(1, scalar) for scalar in scalars)))


def _event(time: float, step: int, what: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", time) + b"\x10" + _varint(step) + what


def _text(number: int, content: bytes) -> bytes:
    """Field `number` of a message: bytes after their length."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _float32(value: float) -> float:
    """The value, or infinity where a float32 has no room for it: `struct` refuses that."""
    return value if not math.isfinite(value) or abs(value) <= _LARGEST else math.copysign(math.inf, value)


def record(content: bytes) -> bytes:
    """The record that holds `content`."""
    length = struct.pack("<Q", len(content))
    return length + _checksum(length) + content + _checksum(content)


def _checksum(content: bytes) -> bytes:
    crc = crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)  # masked: TensorFlow's record_writer.h


def _table() -> Iterable[int]:
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        yield value


_TABLE = tuple(_table())


def crc32c(content: bytes) -> int:
    """Castagnoli's checksum (RFC 3720, appendix B.4), which `zlib` and `binascii` do not have."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF
