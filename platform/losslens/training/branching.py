"""How a run begins at another's state: found, checked and fitted to its own length.

Only the newest states of a run are kept, and those that the study's branches start from (`PlannedRun.kept_states`), so a
branch that is declared after its parent was trained may find nothing; that is the user's to decide, and said in a sentence.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from losslens.errors import DataMismatch, UserError
from losslens.families import PlannedRun
from losslens.training import checkpoint as checkpoints

if TYPE_CHECKING:
    from torch import Tensor  # a driver asks here what is ready, and does without torch


def ready(results: Path, run: PlannedRun) -> bool:
    """Whether what the run begins with is there; a run that leaves no other needs nothing."""
    return run.branch is None or run.branch.step in checkpoints.saved_steps(results, run.branch.parent)


def parent_state(results: Path, run: PlannedRun) -> dict[str, Tensor]:
    """The parent's state where the branch leaves it, with room for the branch's own steps; empty for a run that leaves no other.

    Raises:
        UserError: as `require`. DataMismatch: the state is damaged.
    """
    if run.branch is None:
        return {}
    return fitted(run, checkpoints.load_state_file(parent_directory(results, run)))


def parent_directory(results: Path, run: PlannedRun) -> Path:
    """Where the state lies at which the branch leaves its parent.

    Raises:
        UserError, DataMismatch: as `parent_state`.
    """
    require(results, run)
    assert run.branch
    directory = checkpoints.state_directory(results, run.branch.parent, run.branch.step)
    if damaged := checkpoints.damage(directory):
        raise DataMismatch(f"{damaged} does not match its hash, so no run can branch there", "choose another branch point, or restore it")
    return directory


def fitted(run: PlannedRun, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parent's state with room for the branch's own steps."""
    assert run.branch
    return state | {name: _fitted(state[name], run.branch.step, run.steps) for name in ("losses", "grad_norms")}


def require(results: Path, run: PlannedRun) -> None:
    """Nothing when the run can begin.

    Raises:
        UserError: its parent keeps no state of the step at which it leaves.
    """
    if run.branch is None:
        return
    branch = run.branch
    kept = checkpoints.saved_steps(results, branch.parent)
    if branch.step not in kept:
        have = ", ".join(f"{step * run.batch_tokens:,}" for step in sorted(kept)) or "none"
        raise UserError(
            f"the branch {run.label} has nothing to start from: {branch.parent} keeps no state of step {branch.step}",
            f"branch at one of the tokens kept ({have}), or train the parent anew with the branch declared or cluster.keep_states set",
        )


def _fitted(values: Tensor, step: int, steps: int) -> Tensor:
    """The first `step` of `values`, in a row of `steps`."""
    import torch

    return torch.cat([values[:step], torch.zeros(steps - step, dtype=values.dtype)])
