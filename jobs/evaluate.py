"""Score a study's checkpoints, a directory of checkpoints or any Hugging Face model, in this process."""

from __future__ import annotations

if __name__ == "__main__":
    import here  # noqa: F401

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from eval_service.backlog import Assignment, pending
from eval_service.cache import Cache, parse_size
from eval_service.loss_corpus import LossCorpus, require_one_meaning
from eval_service.losses import stored_methods
from eval_service.position import DEFAULT_PATTERN, StepNames
from eval_service.questions import Questions
from eval_service.scorer import Finished, Scorer, already_scored, require_unchanged
from eval_service.targets import HUB, Directories, Found, Refused, Target, is_study, unknown_rows
from jobs.progress import Board
from losslens.errors import DataMismatch, LosslensError, UserError
from losslens.results import Results
from losslens.specs import load_study
from losslens.tasks import resolve

_KEYS = {"runs": "run_id", "checkpoints": "checkpoint_id"}


@dataclass(frozen=True, slots=True)
class Choice:
    """Which checkpoints of a target: names by shell patterns, and how step and tokens are read from them. Revisions of a
    Hub model pass through `cache`, of at most `cache_size`."""

    revisions: tuple[str, ...] = ()
    step_pattern: str = DEFAULT_PATTERN
    tokens_per_step: int | None = None
    cache: Path | None = None
    cache_size: str = "50GB"


def evaluate(
    target: str,
    tasks: Sequence[str],
    engine: str,
    limit: int | None,
    watch: bool,
    results: Path,
    data: Path | None,
    *,
    losses: Sequence[LossCorpus] = (),
    choice: Choice | None = None,
    until_idle: float | None = None,
    present: Callable[[pa.Table], None] | None = None,
) -> pa.Table:
    """Score what is not scored yet, measure `losses`, and return the scores of everything found (without tasks, the losses).

    A study's scores go into its own results, all others into `results`. A checkpoint that cannot be scored is named on
    stderr and the others go on; in the end it decides the exit code, after `present` was given the scores. Watching ends
    with Ctrl-C, or when there was nothing new for `until_idle` seconds.

    Raises:
        UserError: no such target, an unknown task (with the nearest name), task data that is missing.
        LosslensError: some checkpoint could not be scored, of the kind of the first such failure.
    """
    if not tasks and not losses:
        raise UserError("nothing is asked", "give --tasks A,B, or --loss NAME=PATH, or both")
    if until_idle is not None and not watch:
        raise UserError("--until-idle says when watching ends", "give --watch with it")
    place = None if target.startswith(HUB) else Path(target).resolve()
    root = place if place is not None and is_study(place) else results
    chosen = _target(target, place, choice or Choice(), watch, root)
    evaluation = _Evaluation(chosen, root, Questions(resolve(tasks), str(data) if data else None, limit, _seed(place)), engine, losses)
    try:
        with Board() as board:
            evaluation.once(board)
            if watch:
                _watch(evaluation, chosen.pause_s, until_idle, board)
    finally:
        evaluation.close()
    rows = evaluation.scores()
    if evaluation.failures:
        if present is not None:
            present(rows)
        raise _summary(evaluation.failures, evaluation.seen)
    return rows


def _target(target: str, place: Path | None, choice: Choice, watch: bool, root: Path) -> Target:
    names = StepNames(choice.step_pattern, choice.tokens_per_step)
    size = parse_size(choice.cache_size)
    if place is not None:
        return Directories(place, names, choice.revisions, watch=watch)
    from eval_service.hub import Hub
    from eval_service.walk import Revisions, default_cache

    cache = Cache(choice.cache or default_cache(), size)
    return Revisions(Hub(target.removeprefix(HUB)), choice.revisions or ("main",), names, cache, lambda: _stored(root))


def _watch(evaluation: _Evaluation, pause_s: float, until_idle: float | None, board: Board) -> None:
    """Look again and again; what was never whole has failed in the end."""
    news = time.monotonic()
    while until_idle is None or time.monotonic() - news < until_idle:
        time.sleep(pause_s if until_idle is None else min(pause_s, until_idle))
        if evaluation.once(board):
            news = time.monotonic()
    evaluation.give_up_waiting(board)


class _Evaluation:
    """What has been found, scored and failed so far."""

    def __init__(self, target: Target, root: Path, questions: Questions, engine: str, losses: Sequence[LossCorpus] = ()) -> None:
        self._target, self._root, self._questions, self._engine, self._losses = target, root, questions, engine, losses
        self._scorers: dict[int | None, Scorer] = {}
        self._versions = self._scorer(None).versions()
        require_unchanged(root, self._versions)
        measured = stored_methods(root)
        for corpus in losses:
            require_one_meaning(corpus, measured.get(corpus.name, {}).values())
        self._known: dict[str, set[str]] = {}
        self._waiting: dict[str, str] = {}
        self.failures: dict[str, LosslensError] = {}
        self.seen: set[str] = set()

    def once(self, board: Board) -> bool:
        """Score what the target lacks now; whether anything was new."""
        self._known = {table: _column(self._root, f"SELECT DISTINCT {key} FROM {table}") for table, key in _KEYS.items()}
        look = self._target.look()
        for refused in look.refused:
            self._fail(refused, board)
        self._waiting = look.waiting
        for checkpoint in look.checkpoints:
            self.seen.add(checkpoint.checkpoint_id)
            self.failures.pop(checkpoint.path, None)  # it was still being written
        measured = {(checkpoint_id, name) for name, methods in stored_methods(self._root).items() for checkpoint_id in methods}
        work = pending(look.checkpoints, already_scored(self._root, self._engine), self._versions, measured, self._losses)
        work = [assignment for assignment in work if assignment.checkpoint.checkpoint_id not in self.failures]
        wanted = {assignment.checkpoint.checkpoint_id: assignment for assignment in work}
        with contextlib.closing(self._target.bring(work)) as arriving:
            for done, arrived in enumerate(arriving):
                if isinstance(arrived, Refused):
                    self._fail(arrived, board)
                    continue
                checkpoint = arrived.checkpoint
                board.show("score", done, len(work), checkpoint.checkpoint_id)
                self._describe(arrived)
                self._score(replace(wanted[checkpoint.checkpoint_id], checkpoint=checkpoint), arrived, board)
                board.show("score", done + 1, len(work), checkpoint.checkpoint_id)
        return look.news or bool(work)

    def give_up_waiting(self, board: Board) -> None:
        """What is still being written when watching ends will not be scored."""
        for what, why in self._waiting.items():
            self._fail(Refused(what, UserError(f"{what} was never whole: {why}", "let its trainer end, then evaluate it again")), board)

    def scores(self) -> pa.Table:
        """Stored scores of the tasks, for everything found; where no task was asked for, the losses."""
        if not self.seen or not (self._root / "parts").is_dir():
            return pa.table({})
        if not self._versions:
            return Results(self._root).query(
                "SELECT checkpoint_id, dataset, unit, value, stderr, tokens, bytes FROM losses "
                "WHERE list_contains($1, checkpoint_id) AND list_contains($2, split_part(dataset, '/', 1)) ORDER BY ALL",
                [sorted(self.seen), [corpus.name for corpus in self._losses]],
            )
        return Results(self._root).query(
            "SELECT checkpoint_id, task, format, shots, metric, value, stderr, n, chance, engine FROM scores "
            "WHERE list_contains($1, checkpoint_id) AND list_contains($2, task || ':' || format) ORDER BY ALL",
            [sorted(self.seen), [str(asked) for asked in self._versions]],
        )

    def close(self) -> None:
        """Free every engine."""
        for scorer in self._scorers.values():
            scorer.close()

    def _describe(self, found: Found) -> None:
        """Write the rows that say what it is, unless they are there."""
        for table, rows in unknown_rows([found], self._known["runs"], self._known["checkpoints"]):
            Results(self._root).write(table, rows)
        self._known["runs"].add(found.run["run_id"])
        self._known["checkpoints"].add(found.checkpoint.checkpoint_id)

    def _score(self, assignment: Assignment, found: Found, board: Board) -> None:
        record: Finished = self._scorer(found.seq_len).score(assignment)
        if record.error is not None:
            self._fail(Refused(assignment.checkpoint.checkpoint_id, record.error), board)
        else:
            board.say(f"{record.checkpoint_id}: {record.engine} ({record.reason}), {record.seconds:.1f} s")
            if record.warning:
                board.say(f"  {record.warning}")
            for dataset, unit, value in record.losses:
                board.say(f"  {dataset}: {value:.4f} {unit}")

    def _scorer(self, seq_len: int | None) -> Scorer:
        """Scorers differ by the length of generated rows alone."""
        if seq_len not in self._scorers:
            questions = Questions(self._questions.tasks, self._questions.data, self._questions.limit, self._questions.seed, seq_len)
            self._scorers[seq_len] = Scorer(self._root, questions, self._engine)
        return self._scorers[seq_len]

    def _fail(self, refused: Refused, board: Board) -> None:
        if refused.what not in self.failures:
            self.failures[refused.what] = refused.error
            board.say(f"not scored: {refused.error}")


def _column(root: Path, sql: str) -> set[str]:
    return set(Results(root).query(sql).column(0).to_pylist()) if (root / "parts").is_dir() else set()


def _stored(root: Path) -> Mapping[str, tuple[str, str]]:
    """Path and weights_sha256 of the checkpoints that the results know."""
    if not (root / "parts").is_dir():
        return {}
    rows = Results(root).query("SELECT checkpoint_id, path, weights_sha256 FROM checkpoints").to_pylist()
    return {row["checkpoint_id"]: (row["path"] or "", row["weights_sha256"] or "") for row in rows}


def _seed(place: Path | None) -> int:
    """The seed that chose the items of a `--limit` in the study, so that the same items are asked again; 0 elsewhere."""
    files = sorted((place / "studies").glob("*.yaml")) if place is not None else []
    seeds = {load_study(str(file)).seed for file in files}
    if len(seeds) > 1:
        raise UserError(f"{place} holds studies of different seeds", "evaluate one study's directory of checkpoints at a time")
    return seeds.pop() if seeds else 0


def _summary(failures: dict[str, LosslensError], seen: set[str]) -> LosslensError:
    """One error of the first failure's kind that stands for all."""
    first = next(iter(failures.values()))
    if len(failures) == 1:
        return first
    kind = type(first) if type(first) in (UserError, DataMismatch) else LosslensError
    return kind(f"{len(failures)} models could not be scored; the first: {first}", first.remedy)


if __name__ == "__main__":
    from jobs.cli import run_verb

    run_verb("evaluate")
