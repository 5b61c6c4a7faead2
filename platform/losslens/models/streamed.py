"""A safetensors file written tensor by tensor, in any order: for models that no process holds whole.

The file is, byte for byte, the one that `safetensors.torch.save_file` writes. Format: eight bytes that hold the length of a JSON
header, the header (names, types, shapes, places), the tensors' bytes (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor


class StreamedSafetensors:
    """A new file for float32 tensors of the given shapes; to be used in a `with` block, which it must leave complete."""

    def __init__(self, path: Path, shapes: Mapping[str, Sequence[int]]) -> None:
        self._file = path.open("wb")
        self._missing = set(shapes)
        self._places: dict[str, tuple[int, int]] = {}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in sorted(shapes):  # save_file's order within one type
            first, end = end, end + 4 * torch.Size(shapes[name]).numel()
            header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [first, end]}
            self._places[name] = first, end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._begin = self._file.tell()

    def write(self, name: str, tensor: Tensor) -> None:
        """Put a tensor in its place."""
        first, end = self._places[name]
        content = tensor.detach().to("cpu", torch.float32).contiguous().view(-1).view(torch.uint8).numpy().data
        assert content.nbytes == end - first
        self._file.seek(self._begin + first)
        self._file.write(content)
        self._missing.remove(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        assert kind or not self._missing, f"not written: {sorted(self._missing)}"
