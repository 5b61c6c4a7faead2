"""Checkpoint directories: what they say about themselves, and proof that their files are what was written.

Wrong weights score at chance with status "success", the worst fault for a study of when a task leaves chance: so the
files are hashed against `losslens.json`, and cut-short files are refused before any engine sees them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from losslens.errors import DataMismatch, UserError

_CARD = "losslens.json"
_FLOATS = ("F32", "F16", "BF16")
_AT_ONCE = 1 << 24  # bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as a plain value. `shape` is equal for checkpoints that one warm engine serves (hash of the config);
    `created_at` ISO 8601 or empty: the oldest is scored first."""

    checkpoint_id: str
    path: str
    created_at: str = ""
    shape: str = ""


def read_card(directory: Path) -> dict[str, Any] | None:
    """What `losslens.json` says, or None for a model that was not trained here."""
    file = directory / _CARD
    return read_json(file) if file.is_file() else None


def read_config(directory: Path) -> dict[str, Any]:
    """config.json as it is written.

    Raises:
        UserError: there is none or it cannot be read.
    """
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory} holds no config.json", "give a Hugging Face model directory")
    return read_json(directory / "config.json")


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}", "the file is cut short or damaged: copy it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} does not hold a JSON object", "copy the checkpoint again")
    return value


def shape_key(directory: Path) -> str:
    """Equal for directories whose configs are equal."""
    config = {k: v for k, v in read_config(directory).items() if k not in ("_name_or_path", "transformers_version")}
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def own_checkpoint(directory: Path) -> Checkpoint | None:
    """The checkpoint that `losslens.json` in this directory names, if there is one."""
    card = read_card(directory)
    if card is None or "checkpoint_id" not in card:  # another trainer's, which tells step and losses alone
        return None
    return Checkpoint(card["checkpoint_id"], str(directory), str(card.get("created_at", "")), shape_key(directory))


def verify_files(directory: Path) -> None:
    """Every file the card lists has the hash it lists, and no weights file is cut short.

    Raises:
        DataMismatch: naming the file that is missing or not what was written.
        UserError: a weights file that is not safetensors or is cut short, where no card tells.
    """
    card = read_card(directory) or {}
    for name, expected in card.get("files", {}).items():
        _verify_hash(directory / name, expected)
    if not weight_files(directory):
        raise UserError(f"{directory} holds no model.safetensors", "save the weights as safetensors; pickles are not read")
    for file in weight_files(directory):
        tensor_shapes(file)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model, one or shards."""
    return sorted(directory.glob("model*.safetensors"))


def read_ahead(directory: Path) -> None:
    """Have the system read a model's weights into its cache, without waiting; where it cannot be asked to, nothing happens."""
    for file in weight_files(directory) if hasattr(os, "posix_fadvise") else ():
        with contextlib.suppress(OSError), file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a safetensors file, from its header alone.

    Raises:
        UserError: naming the file, also when its length does not match its header.
    """
    return {name: tuple(tensor["shape"]) for name, tensor in _header(file)[1].items()}


def verify_tensors(directory: Path, loaded: Mapping[str, int], fused: Mapping[str, Sequence[str]] = MappingProxyType({})) -> None:
    """Every loaded tensor has the bits of the file: `loaded` maps names to `losslens.models.scoring.bit_sum`.

    `fused` says which part of a name stands for which saved ones (`qkv_proj`: `q_proj`, `k_proj`, `v_proj`). The files are read
    here byte by byte, not by the library that loaded them. Names that only one side knows are left to the probe: older
    formats are renamed when they are loaded, tied tensors are saved once.

    Raises:
        DataMismatch: naming the first tensor that differs.
    """
    saved = {name: (value, file) for file in weight_files(directory) for name, value in _bit_sums(file)}
    for name, value in loaded.items():
        parts = [name] if name in saved else _parts(name, fused)
        if all(part in saved for part in parts) and sum(saved[part][0] for part in parts) % 2**64 != value:
            raise DataMismatch(
                f"the tensor {name} that was loaded is not the one in {saved[parts[0]][1]}",
                "it is not scored: score again, and look at the machine's memory",
            )


def _parts(name: str, fused: Mapping[str, Sequence[str]]) -> list[str]:
    for whole, parts in fused.items():
        if f".{whole}." in name:
            return [name.replace(f".{whole}.", f".{part}.") for part in parts]
    return [name]


def _bit_sums(file: Path) -> Iterator[tuple[str, int]]:
    """(name, sum of float32 bit patterns modulo 2^64) of every floating tensor."""
    start, tensors = _header(file)
    data = np.memmap(file, np.uint8, "r")
    for name, tensor in tensors.items():
        first, last = tensor["data_offsets"]
        if tensor["dtype"] in _FLOATS:
            yield (
                name,
                sum(_bits(data[start + at : start + min(at + _AT_ONCE, last)], tensor["dtype"]) for at in range(first, last, _AT_ONCE))
                % 2**64,
            )


def _bits(raw: NDArray[np.uint8], dtype: str) -> int:
    if dtype == "BF16":
        return int(raw.view("<u2").astype(np.uint64).sum()) << 16  # float32 without its last sixteen bits
    bits = raw.view("<f4" if dtype == "F32" else "<f2").astype(np.float32).view(np.uint32)
    return int(bits.sum(dtype=np.uint64))


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    """(where the data begins, each tensor's dtype, shape and byte range).

    Layout: 8 bytes little-endian header length, a JSON header with each tensor's byte range, the data
    (https://huggingface.co/docs/safetensors). A file whose length does not match its header is refused.
    """
    try:
        with file.open("rb") as stream:
            (header_bytes,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(header_bytes))
        tensors = {name: value for name, value in header.items() if name != "__metadata__"}
        end = max((value["data_offsets"][1] for value in tensors.values()), default=0)
        whole = all(isinstance(value["dtype"], str) and isinstance(value["shape"], list) for value in tensors.values())
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise _unreadable(file) from error
    if not whole or file.stat().st_size != 8 + header_bytes + end:
        raise _unreadable(file)
    return 8 + header_bytes, tensors


def count_params(directory: Path) -> tuple[int, int]:
    """(all parameters, those outside input embedding and output head), by counting saved tensors."""
    sizes = {name: math.prod(shape) for file in weight_files(directory) for name, shape in tensor_shapes(file).items()}
    embedding = sum(size for name, size in sizes.items() if re.search(r"embed_tokens|embed_in|embed_out|lm_head|\bwte\b|\bwpe\b", name))
    return sum(sizes.values()), sum(sizes.values()) - embedding


def _verify_hash(file: Path, expected: str) -> None:
    remedy = "it is not scored: restore the file, or delete the checkpoint and train it again"
    if not file.is_file():
        raise DataMismatch(f"{file} is missing although the checkpoint lists it", remedy)
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise DataMismatch(f"{file} is not what was written: its SHA-256 differs from the one in {_CARD}", remedy)


def _unreadable(file: Path) -> UserError:
    return UserError(f"the weights {file} cannot be read", "the file is cut short or damaged: copy it or train it again")
