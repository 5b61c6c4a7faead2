"""Checkpoints and states: directories that appear whole or not at all.

    <results>/checkpoints/<run_id>/step-00000100/         a Hugging Face directory: what is scored, kept for good
    <results>/checkpoints/<run_id>/state/step-00000117/   what training resumes from; the newest two are kept, and branch points

A directory is written under a `.tmp-` name, synchronised to disk, and renamed; `losslens.json` in it names the hash of
every file but its README.md. States are also written between checkpoints (before a planned resize, and now and then), so that the steps at
which a run is scored do not depend on what happened to it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from losslens.corpus.shards import sha256
from losslens.errors import EnvironmentFailure
from losslens.families import PlannedRun

if TYPE_CHECKING:
    from torch import Tensor  # drivers and controllers read here what is there, and do without torch

logger = logging.getLogger(__name__)

FORMAT = 1
STATES_KEPT = 2
RECORD = "losslens.json"
README = "README.md"  # of a checkpoint: not hashed, people write into it
STATE = "state.safetensors"


@dataclass(frozen=True, slots=True)
class Loss:
    """One row of `losses`, without its checkpoint. `stderr` over sequences; NULL where one sequence is all there is."""

    dataset: str
    unit: str
    value: float
    stderr: float | None
    tokens: int
    bytes: int | None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is known of one complete checkpoint; `flops` are training FLOPs so far (`Shape.flops_per_token` x tokens)."""

    path: Path
    checkpoint_id: str
    run_id: str
    study: str
    size: str
    step: int
    tokens: int
    flops: float
    weights_sha256: str
    created_at: str
    losses: tuple[Loss, ...]


def run_directory(results: Path, run_id: str) -> Path:
    """Where a run keeps its checkpoints."""
    return results / "checkpoints" / run_id


def completed(results: Path, run_id: str) -> list[Checkpoint]:
    """The run's complete checkpoints by step. Half-written directories are not among them."""
    return [read(path) for path in sorted(run_directory(results, run_id).glob("step-*")) if (path / RECORD).is_file()]


def read(path: Path) -> Checkpoint:
    """The record of a complete checkpoint directory."""
    record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    losses = tuple(Loss(**loss) for loss in record["losses"])
    fields = ("checkpoint_id", "run_id", "study", "size", "step", "tokens", "flops", "weights_sha256", "created_at")
    return Checkpoint(path=path, losses=losses, **{name: record[name] for name in fields})


def write(
    results: Path,
    run: PlannedRun,
    step: int,
    weights: Mapping[str, Tensor],
    losses: Sequence[Loss],
    tokenizer: Path,
    eos_token_id: int,
) -> Checkpoint:
    """Write the checkpoint after update `step`; an earlier complete one of the same step is kept as it is.

    Raises:
        EnvironmentFailure: the disk is full or not writable; nothing half-written is left that looks complete.
    """
    from losslens.models.export import write_hugging_face

    return write_with(results, run, step, lambda path: write_hugging_face(path, weights, run.shape, tokenizer, eos_token_id), losses)


def write_with(results: Path, run: PlannedRun, step: int, fill: Callable[[Path], None], losses: Sequence[Loss]) -> Checkpoint:
    """As `write`, with a function that puts the Hugging Face files into the directory; not called where there is a checkpoint."""
    final = run_directory(results, run.run_id) / f"step-{step:08d}"
    tokens = step * run.batch_tokens
    record = {
        "checkpoint_id": f"{run.run_id}/{final.name}",
        "run_id": run.run_id,
        "study": run.study,
        "size": run.size,
        "step": step,
        "tokens": tokens,
        "flops": run.shape.flops_per_token * tokens,
        "created_at": datetime.now(UTC).isoformat(),
        "losses": [asdict(loss) for loss in losses],
    }
    if not (final / RECORD).is_file():
        from losslens.models.readme import readme  # here: with torch, which drivers do without

        with _appearing(final, record) as directory:
            fill(directory)
            (directory / README).write_text(readme(record, run.shape), encoding="utf-8")
            _sync(directory / README)
    return read(final)


def write_state(results: Path, run: PlannedRun, step: int, state: Mapping[str, Tensor]) -> None:
    """Write what training goes on from after update `step`, and forget all but the newest states and those that the run is to keep.

    Raises:
        EnvironmentFailure: as `write`.
    """

    def fill(directory: Path) -> dict[str, str]:
        from safetensors.torch import save_file

        save_file(dict(state), directory / STATE)
        return {}

    write_state_with(results, run, step, fill)


def write_state_with(results: Path, run: PlannedRun, step: int, fill: Callable[[Path], Mapping[str, str]]) -> None:
    """As `write_state`, with a function that puts files into the directory, and returns the hashes of those that it has
    synchronised to disk; not called where there is such a state."""
    final = state_directory(results, run.run_id, step)
    if (final / RECORD).is_file() and damage(final):
        (final / RECORD).unlink()  # it was skipped when this attempt resumed; now its step is reached again
    if not (final / RECORD).is_file():
        hashes: dict[str, str] = {}
        with _appearing(final, {"step": step, "samples": step * run.global_batch}, hashes) as directory:
            hashes.update(fill(directory))
    sound = [path for path in state_directories(results, run.run_id) if step_of(path) <= step]  # later ones were skipped as damaged
    for old in sound[STATES_KEPT:]:
        if step_of(old) in run.kept_states:
            continue
        (old / RECORD).unlink(missing_ok=True)  # first: without it the state no longer counts
        shutil.rmtree(old, ignore_errors=True)


def states(results: Path, run_id: str) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """(step, state) of what can be resumed from, newest first; a damaged state is named in the log and skipped."""
    for directory in state_directories(results, run_id):
        damaged = damage(directory)
        if damaged:
            logger.warning("%s does not match its hash; resuming from the state before it", damaged)
            continue
        yield step_of(directory), load_state_file(directory)


def load_state_file(directory: Path) -> dict[str, Tensor]:
    """The tensors of a complete state."""
    if (directory / STATE).is_file():
        from safetensors.torch import load_file

        return load_file(directory / STATE)
    from losslens.training.sharded_state import read_rows  # here: what shards need takes a second to import

    return read_rows(directory, lambda name, whole: None)


def state_directories(results: Path, run_id: str) -> list[Path]:
    """Complete states, newest first."""
    found = (run_directory(results, run_id) / "state").glob("step-*")
    return sorted((path for path in found if (path / RECORD).is_file()), reverse=True)


def step_of(directory: Path) -> int:
    """The step after which a state was saved."""
    return int(directory.name.removeprefix("step-"))


def saved_step(results: Path, run_id: str) -> int:
    """The step of the newest state; 0 when there is none."""
    return next((step_of(directory) for directory in state_directories(results, run_id)), 0)


def saved_steps(results: Path, run_id: str) -> frozenset[int]:
    """The steps of all complete states."""
    return frozenset(step_of(directory) for directory in state_directories(results, run_id))


def state_directory(results: Path, run_id: str, step: int) -> Path:
    """Where the state after update `step` lies."""
    return run_directory(results, run_id) / "state" / f"step-{step:08d}"


@contextlib.contextmanager
def _appearing(final: Path, record: dict[str, Any], hashes: Mapping[str, str] | None = None) -> Iterator[Path]:
    """A directory to fill, which becomes `final` with its record at the end of the block; `hashes` are those that are known by then."""
    temporary = final.parent / f".tmp-{final.name}-{uuid.uuid4().hex[:8]}"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _record(temporary, record, hashes or {})
        if final.exists():
            shutil.rmtree(final)  # without its record: being forgotten when a kill came
        temporary.rename(final)
        _sync(final.parent)
    except OSError as error:
        raise EnvironmentFailure(
            f"the checkpoint {final} cannot be written: {error.strerror or error}",
            "free disk space, then run the same command again: it resumes from the checkpoint before",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def damage(directory: Path, part: int = 0, parts: int = 1) -> Path | None:
    """The first file that is missing or does not match its hash in the directory's record; None when all do. Of several `parts`,
    into which the files are dealt out, one `part` is looked at."""
    record: dict[str, Any] = json.loads((directory / RECORD).read_text(encoding="utf-8"))
    for name, expected in list(record["files"].items())[part::parts]:
        file: Path = directory / name
        if not file.is_file() or sha256(file) != expected:
            return file
    return None


def _record(directory: Path, content: dict[str, Any], known: Mapping[str, str]) -> None:
    """Synchronise the directory's files and write their hashes, and `content`, into its record."""
    files = sorted(file for file in directory.iterdir() if file.is_file() and file.name != README)
    hashes = {file.name: known.get(file.name) or synced_hash(file) for file in files}
    weights = {"weights_sha256": hashes["model.safetensors"]} if "model.safetensors" in hashes else {}
    record = directory / RECORD
    record.write_text(json.dumps({"format": FORMAT, **content, **weights, "files": hashes}, indent=1), encoding="utf-8")
    _sync(record)
    _sync(directory)


def synced_hash(file: Path) -> str:
    """The hash of a file that is on the disk by now."""
    _sync(file)
    return sha256(file)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
