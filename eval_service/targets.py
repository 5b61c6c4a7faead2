"""What `evaluate` is pointed at -> checkpoints, and the rows that describe models which were not trained here.

There are two kinds of target: directories, here, and the revisions of a Hub model, in `eval_service.hub`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from eval_service.backlog import Assignment
from eval_service.checkpoints import Checkpoint, count_params, read_card, read_config, shape_key, tensor_shapes, weight_files
from eval_service.position import TRAINER_STATE, StepNames, chosen, position
from losslens.corpus.shards import joined_sha256
from losslens.errors import LosslensError, UserError

HUB = "hf:"  # a target that begins so is a model on the Hugging Face Hub
_READ = frozenset({".json", ".safetensors", ".model", ".txt", ".jinja"})  # suffixes of what scoring reads of a directory
_TARGETS = "give a study's results, a directory of checkpoints, a Hugging Face model directory or hf:ORG/NAME"


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint, the rows of `runs`, `checkpoints` and `losses` that say what it is, and the sequence length it was
    trained with, where that is known."""

    checkpoint: Checkpoint
    run: dict[str, Any]
    row: dict[str, Any]
    seq_len: int | None
    losses: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """What cannot be scored, a checkpoint's id or a directory, and why."""

    what: str
    error: LosslensError


@dataclass(frozen=True, slots=True)
class Look:
    """What a target holds now. `waiting` says what is still being written, and why it is thought so; `news` whether
    anything differs from the look before."""

    checkpoints: list[Checkpoint]
    refused: list[Refused]
    waiting: dict[str, str] = field(default_factory=dict)
    news: bool = False


class Target(Protocol):
    """Where checkpoints come from. `pause_s`: seconds between two looks."""

    pause_s: float

    def look(self) -> Look:
        """What is there now; weights are not fetched for it."""
        ...

    def bring(self, work: Sequence[Assignment]) -> Generator[Found | Refused, None, None]:
        """One by one the checkpoints of `work`, each to be read until the next is asked for; close it when done."""
        ...


class Directories:
    """Model directories on this machine; with `watch`, those that have been whole and unchanged for two looks.

    Raises:
        UserError: the target does not exist, or holds no model and is not watched; no directory matches `revisions`.
    """

    pause_s = 2.0

    def __init__(self, target: Path, names: StepNames, revisions: Sequence[str] = (), *, watch: bool = False) -> None:
        self._target, self._names, self._revisions, self._watch = target, names, revisions, watch
        self._found: dict[str, Found] = {}
        self._seen: dict[Path, _State] = {}
        self._list()

    def look(self) -> Look:
        """Identify what is there."""
        refused: list[Refused] = []
        waiting: dict[str, str] = {}
        self._found.clear()
        before, self._seen = self._seen, {}
        for directory in self._list():
            try:
                self._seen[directory] = state(directory)
                if self._watch and (why := unsettled(directory, self._seen[directory], before.get(directory))):
                    waiting[str(directory)] = why
                    continue
                found = identify(directory, alone=directory == self._target, names=self._names)
                self._found[found.checkpoint.checkpoint_id] = found
            except (LosslensError, FileNotFoundError) as error:
                if self._watch and not (directory / "config.json").is_file():  # a trainer removes old checkpoints
                    waiting[str(directory)] = "it disappears"
                elif isinstance(error, LosslensError):
                    refused.append(Refused(str(directory), error))
                else:
                    raise
        return Look([found.checkpoint for found in self._found.values()], refused, waiting, self._seen != before)

    def bring(self, work: Sequence[Assignment]) -> Generator[Found | Refused, None, None]:
        """They are here already."""
        yield from (self._found[assignment.checkpoint.checkpoint_id] for assignment in work)

    def _list(self) -> list[Path]:
        found = directories(self._target, self._names, watch=self._watch)
        if not self._revisions:
            return found
        names = set(chosen((directory.name for directory in found), self._revisions))
        if not names and not self._watch:
            raise UserError(f"no directory in {self._target} matches {', '.join(self._revisions)}", "see --revisions")
        return [directory for directory in found if directory.name in names]


def is_study(target: Path) -> bool:
    """Whether this is a results directory."""
    return (target / "parts").is_dir() or (target / "checkpoints").is_dir()


def directories(target: Path, names: StepNames | None = None, *, watch: bool = False) -> list[Path]:
    """Model directories of a study's results, of a directory of checkpoints (two levels deep), or the model itself.

    A model with directories inside whose names have a step is a directory of checkpoints: so a trainer leaves its output.
    One that is watched may be empty yet.

    Raises:
        UserError: the target does not exist, or is none of the three.
    """
    names = names or StepNames()
    if not target.is_dir():
        raise UserError(f"{target} is not a directory", _TARGETS)
    inside = target / "checkpoints" if is_study(target) else target
    found = [c.parent for depth in ("*", "*/*") for c in inside.glob(f"{depth}/config.json") if _complete(c.parent.relative_to(inside))]
    if (target / "config.json").is_file():
        found = [directory for directory in found if names.read(directory.name).step is not None] or [target]
    if not found and not is_study(target) and not watch:
        raise UserError(f"{target} holds no model", _TARGETS)
    return sorted(found)


_State = tuple[tuple[str, int, int], ...]


def state(directory: Path) -> _State:
    """Name, bytes and time of change of each file that scoring reads."""
    files = ((file.name, file.stat()) for file in sorted(directory.iterdir()) if file.suffix in _READ)
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)


def unsettled(directory: Path, now: _State, before: _State | None) -> str | None:
    """Why this directory is still being written; None when it is whole. What we wrote ourselves appears whole.

    transformers' Trainer writes weights and training_args.bin first and its state last, the optimizer's between them.
    """
    files = {name for name, _, _ in now}
    if "losslens.json" in files and "checkpoint_id" in (read_card(directory) or {}):
        return None
    if now != before:
        return "it has just changed"
    if directory.name.startswith("checkpoint-") and (directory / "training_args.bin").is_file() and TRAINER_STATE not in files:
        return f"{TRAINER_STATE} is missing"
    try:
        read_config(directory)
        for name in _expected_weights(directory):
            if name not in files:
                return f"{name} is missing"
            tensor_shapes(directory / name)
    except UserError as error:
        return error.message
    return None


def identify(directory: Path, *, alone: bool, names: StepNames | None = None) -> Found:
    """Who this model is. One without our `losslens.json` is named after its directory (its parent's, unless it stands
    `alone`), the hash of its config and that of its weights.

    Raises:
        UserError: config or weights cannot be read.
    """
    config, card = read_config(directory), read_card(directory)
    about = {**described(directory), "source": "evaluate", "source_url": str(directory)}
    weights = weights_sha256(directory)
    row: dict[str, Any] = {"path": str(directory), "weights_sha256": weights}
    shape = shape_key(directory)
    if card is not None and "checkpoint_id" in card:
        checkpoint = Checkpoint(card["checkpoint_id"], str(directory), card["created_at"], shape)
        known = {name: card[name] for name in ("run_id", "step", "tokens", "flops")}
        run = {"run_id": card["run_id"], "study": card["study"], "size": card["size"], **about}
        at = datetime.fromisoformat(card["created_at"])
        row |= {"checkpoint_id": checkpoint.checkpoint_id, **known, "created_at": at}
        return Found(checkpoint, run, row, config.get("max_position_embeddings"))
    at = datetime.fromtimestamp(max(file.stat().st_mtime for file in weight_files(directory)), UTC)
    where = position(directory, card, names or StepNames())
    size = directory.name if alone else "-".join(part for part in (directory.parent.name, where.branch) if part)
    run_id = f"{size}-{shape[:8]}"
    checkpoint = Checkpoint(f"{run_id}/{directory.name}-{weights[:8]}", str(directory), at.isoformat(), shape)
    known = {"run_id": run_id, "step": where.step, "tokens": where.tokens, "flops": where.flops}
    row |= {"checkpoint_id": checkpoint.checkpoint_id, **known, "created_at": at}
    return Found(checkpoint, {"run_id": run_id, "size": size, **about}, row, None, where.losses)


def described(directory: Path) -> dict[str, Any]:
    """Columns of `runs` that config and weights tell."""
    config = read_config(directory)
    params, params_non_embedding = count_params(directory)
    return {
        "architecture": next(iter(config.get("architectures") or ()), config.get("model_type")),
        "params": params,
        "params_non_embedding": params_non_embedding,
        "vocab_size": config.get("vocab_size"),
        "seq_len": config.get("max_position_embeddings"),
    }


def weights_sha256(directory: Path) -> str:
    """One hash of all weight files; a file that has not changed since is not read again.

    Raises:
        UserError: there are none.
    """
    files = weight_files(directory)
    if not files:
        raise UserError(f"{directory} holds no model.safetensors", "save the weights as safetensors; pickles are not read")
    return joined_sha256([_sha256(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files])


@lru_cache(maxsize=4096)
def _sha256(path: str, _modified: int, _size: int) -> str:
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _expected_weights(directory: Path) -> list[str]:
    """Weight files by the index of a sharded model, else the one that every model has."""
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(file.name for file in weight_files(directory)) or ["model.safetensors"]
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} cannot be read", "the file is cut short or damaged: copy it again") from error
    return sorted(map(str, names))


def _complete(relative: Path) -> bool:
    """Names that begin with a dot are directories still being written."""
    return not any(part.startswith(".") for part in relative.parts)


def unknown_rows(found: list[Found], runs: set[str], checkpoints: set[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(table, rows) that describe what is found and not yet in the results."""
    new = [f for f in found if f.checkpoint.checkpoint_id not in checkpoints]
    new_runs = {f.run["run_id"]: f.run for f in new if f.run["run_id"] not in runs}
    yield "runs", list(new_runs.values())
    yield "losses", [{"checkpoint_id": f.checkpoint.checkpoint_id, **loss} for f in new for loss in f.losses]
    yield "checkpoints", [f.row for f in new]  # last: what has its row has all the others
