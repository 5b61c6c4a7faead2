"""The scoring side of a study: every checkpoint that appears is offered to the pool, and what comes back is counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from eval_service.checkpoints import Checkpoint, own_checkpoint
from eval_service.pool import ScoringPool
from eval_service.questions import Questions
from eval_service.scorer import Finished
from jobs.progress import Board
from losslens.cluster.slots import Slots
from losslens.errors import LosslensError
from losslens.families import PlannedRun
from losslens.specs import StudySpec
from losslens.tasks import resolve
from losslens.training.checkpoint import RECORD, run_directory


def questions_of(spec: StudySpec) -> Questions:
    """What the study asks of every checkpoint."""
    evaluation = spec.evaluation
    return Questions(resolve(evaluation.tasks), evaluation.data, evaluation.limit, spec.seed, spec.corpus.seq_len)


class Scoring:
    """A pool on the cluster's scoring slots, for the checkpoints of `runs`."""

    def __init__(self, spec: StudySpec, results: Path, slots: Slots, board: Board, *, engine: str, label: str = "score") -> None:
        self._board, self._label = board, label
        options = slots.scorer_options(spec.cluster.gpus_per_worker)
        self._pool = ScoringPool(results, questions_of(spec), engine, actors=slots.eval, options=options)
        self._known: dict[Path, Checkpoint] = {}
        self._queued = self._done = 0
        self._said: set[str] = set()
        self.failed: list[LosslensError] = []

    def advance(self, directories: Iterable[Path], wait: float = 0.0) -> bool:
        """Offer directories not seen before, take in what has ended; False when nothing is queued."""
        new = [directory for directory in directories if directory not in self._known]
        self._known.update({directory: checkpoint for directory in new if (checkpoint := own_checkpoint(directory))})
        self._queued += self._pool.offer([self._known[directory] for directory in new if directory in self._known])
        for record in self._pool.poll(wait):
            self._take(record)
        if self._queued:
            self._board.show(self._label, self._done, self._queued, _note(self._pool))
        return self._pool.unfinished > 0

    def close(self) -> None:
        """End the engines."""
        self._pool.close()

    def _take(self, record: Finished) -> None:
        self._done += 1
        if record.error:
            self.failed.append(record.error)
            self._board.say(f"not scored: {record.error}")
        elif record.engine not in self._said:
            self._said.add(record.engine)
            self._board.say(f"{self._label} with {record.engine}: {record.reason}")
        if record.warning and record.warning not in self._said:
            self._said.add(record.warning)
            self._board.say(f"{self._label}: {record.warning}")


def _note(pool: ScoringPool) -> str:
    """What the bar counts, and why it may stand still."""
    if pool.unfinished and not pool.scorers and pool.waiting_for_slots:
        return "checkpoints, no scorer has a slot yet"
    return "checkpoints"


def checkpoint_directories(results: Path, runs: Sequence[PlannedRun]) -> list[Path]:
    """Directories of complete checkpoints of these runs, by run and step."""
    return [record.parent for run in runs for record in sorted(run_directory(results, run.run_id).glob(f"step-*/{RECORD}"))]


def to_cross_check(results: Path, runs: Sequence[PlannedRun], spec: StudySpec) -> list[Path]:
    """The last checkpoints of the sizes that the study wants scored by a second engine too."""
    check = spec.evaluation.cross_check
    if check is None:
        return []
    chosen = [run for run in runs if run.size in check.sizes]
    return [directory for run in chosen for directory in checkpoint_directories(results, [run])[-check.checkpoints :]]
