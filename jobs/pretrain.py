"""One size of a study: pretrained to its budget, resuming from its newest checkpoint."""

from __future__ import annotations

if __name__ == "__main__":
    import here  # noqa: F401

from pathlib import Path

from jobs.corpus import pack
from jobs.exclusive import exclusive
from jobs.progress import Board
from jobs.training import Training
from losslens.cluster.connect import connected
from losslens.errors import UserError
from losslens.families import PlannedRun, planned_runs
from losslens.specs import StudySpec
from losslens.training.outcome import Outcome


def pretrain(spec: StudySpec, results: Path, size: str, seed: int | None = None) -> list[Outcome]:
    """Train every budget (and seed) of one size.

    Raises:
        UserError: the family has no such size or the study no such seed.
        TrainingDiverged, EnvironmentFailure: a run could not be finished; what it saved is kept.
    """
    runs = _chosen(spec, size, seed)
    with exclusive(results), Board() as board, connected(spec.cluster) as slots:
        training = Training(spec, runs, results, pack(spec, results, board), slots, board)
        training.wait()
        return training.outcomes()


def _chosen(spec: StudySpec, size: str, seed: int | None) -> tuple[PlannedRun, ...]:
    runs = planned_runs(spec)
    of_size = tuple(run for run in runs if run.size == size)
    if not of_size:
        raise UserError(f"the family has no size {size!r}", f"choose from {', '.join(dict.fromkeys(run.size for run in runs))}")
    chosen = tuple(run for run in of_size if seed is None or run.seed == seed)
    if not chosen:
        raise UserError(f"the study has no seed {seed}", f"choose from {', '.join(str(run.seed) for run in of_size)}")
    return chosen


if __name__ == "__main__":
    from jobs.cli import run_verb

    run_verb("pretrain")
