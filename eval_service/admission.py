"""Which directories may be scored for somebody who is not the user of this machine: a decision about a path and its files.

Paths come over the network, so they must lie under a root that the operator named, whatever symlinks say; weights are
safetensors, and no file may ask for code of its own. Asked when a path arrives and again right before its files are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from eval_service.checkpoints import read_config, read_json, weight_files
from losslens.errors import UserError

_SETTINGS = ("config.json", "tokenizer_config.json", "generation_config.json", "processor_config.json")
_INDEX = "model.safetensors.index.json"


class OutsideRoots(UserError):
    """A path that is not under any allowed root. What lies there is not told."""


def admit(path: str, roots: Sequence[Path]) -> Path:
    """The checkpoint directory that `path` names, resolved.

    Raises:
        OutsideRoots: the directory, or a file in it, lies under none of `roots`, which are resolved.
        UserError: it is no directory of a model, its weights are not safetensors, or it asks for code of its own.
    """
    directory = _resolved(path)
    if ".." in Path(path).parts or not _inside(directory, roots):
        raise OutsideRoots(f"{path} is not under an allowed root", "give a path under one of the service's --root directories")
    try:
        if not directory.is_dir():
            raise UserError(f"{path} is not a directory", "give a Hugging Face model directory")
        for entry in directory.iterdir():
            if not _inside(_resolved(str(entry)), roots):
                raise OutsideRoots(f"{path} holds {entry.name}, which leads out of the allowed roots", "copy the file itself there")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "check the path and its permissions") from error
    read_config(directory)
    if not weight_files(directory):
        raise UserError(f"{path} holds no model.safetensors", "save the weights as safetensors; pickles are not read")
    for name, why in _foreign(directory):
        raise UserError(f"{path}/{name} {why}", "only models that transformers itself knows are scored here")
    return directory


def _resolved(path: str) -> Path:
    try:
        return Path(path).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, a loop of symlinks
        raise UserError(f"{path[:200]!r} is no path: {error}", "give a Hugging Face model directory") from error


def _inside(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


def _foreign(directory: Path) -> Iterator[tuple[str, str]]:
    """Files that name code to run or weights elsewhere, and the words for it."""
    for name in _SETTINGS:
        if (directory / name).is_file() and "auto_map" in read_json(directory / name):
            yield name, "asks for code of its own (auto_map), which is never run"
    if (directory / _INDEX).is_file():
        shards = read_json(directory / _INDEX).get("weight_map")
        if not isinstance(shards, dict) or any(not isinstance(shard, str) or Path(shard).name != shard for shard in shards.values()):
            yield _INDEX, "does not name files beside it"
