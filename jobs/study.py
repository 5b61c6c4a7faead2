"""The whole study: corpus, pretraining of every size, scoring while training goes on, analysis, report.

What is done is read from the results directory, so running it again does only what is missing: after a kill it
resumes, after the end it does nothing.
"""

from __future__ import annotations

if __name__ == "__main__":
    import here  # noqa: F401

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from eval_service.backlog import pending
from eval_service.checkpoints import own_checkpoint
from eval_service.choose import available
from eval_service.questions import versions
from eval_service.scorer import already_scored
from jobs.analyse import thresholds
from jobs.corpus import pack
from jobs.exclusive import exclusive
from jobs.filters import Filters
from jobs.progress import Board
from jobs.report import outdated, report
from jobs.scoring import Scoring, checkpoint_directories, questions_of, to_cross_check
from jobs.tracked import tracked
from jobs.training import Training, finished
from losslens.cluster.connect import connected
from losslens.cluster.slots import Slots
from losslens.errors import LosslensError
from losslens.families import PlannedRun, planned_runs
from losslens.results import Results
from losslens.specs import CrossCheckSpec, StudySpec, fingerprint, to_yaml

POLL_S = 0.2


@dataclass
class Summary:
    """What a study found: the report's path, wall seconds by stage, rows of `HEADLINE` and of `AGREEMENT`."""

    report: Path
    seconds: dict[str, float] = field(default_factory=dict)
    thresholds: list[dict[str, object]] = field(default_factory=list)
    agreement: list[dict[str, object]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the block's wall time to a stage."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began


# One row per task and format: its first metric, against one loss. The other metrics and losses are in the report.
HEADLINE = """
SELECT task, format, metric, loss_dataset, verdict, eta, eta_low, eta_high, spearman, n_runs, n_checkpoints
FROM thresholds
WHERE study = ? AND loss_dataset = ? AND loss_unit = 'nats/token'
  AND metric = CASE format WHEN 'text' THEN 'acc_norm' WHEN 'open' THEN 'exact_match' ELSE 'acc' END
ORDER BY list_position(['emergent', 'gradual', 'inverse', 'no_trend', 'not_reached', 'too_few'], verdict), eta DESC, task, format
"""

AGREEMENT = """
SELECT c.run_id, s.engine AS engine, t.engine AS second_engine, count(DISTINCT c.checkpoint_id) AS checkpoints, count(*) AS options,
       max(abs(s.logprob - t.logprob) / greatest(s.tokens, 1)) AS max_difference_per_token,
       avg((s.correct = t.correct)::INT) AS same_verdict
FROM samples s JOIN samples t USING (checkpoint_id, task, task_version, format, shots, item_id, option)
     JOIN checkpoints c USING (checkpoint_id)
WHERE s.engine < t.engine AND s.logprob IS NOT NULL AND t.logprob IS NOT NULL
GROUP BY ALL ORDER BY ALL
"""


def run_study(spec: StudySpec, results: Path) -> Summary:
    """Run the study into `results`, resuming whatever is there.

    Raises:
        Exception: of the first run or checkpoint that failed, after everything else was finished.
    """
    results = results.resolve()
    summary = Summary(results / "report.html")
    with exclusive(results), Board() as board:
        save_spec(spec, results)
        runs = planned_runs(spec)
        failed = [] if complete(spec, results, runs) else _on_cluster(spec, results, runs, summary, board)
        try:
            _analyse(spec, results, summary)
        except LosslensError as error:  # what failed before explains this, and is said first
            failed.append(error)
        board.say("  ".join(f"{name} {seconds:.1f} s" for name, seconds in summary.seconds.items()))
    if failed:
        raise failed[0]
    return summary


def _analyse(spec: StudySpec, results: Path, summary: Summary) -> None:
    """Thresholds, report and the rows that are printed, from whatever has been scored."""
    with summary.stage("analysis"):
        if outdated(Results(results)):
            thresholds(results, Filters(study=spec.name, loss_dataset=",".join(spec.evaluation.loss_datasets)))
    with summary.stage("report"):
        summary.report = report(results, open_=False)
    losses = spec.evaluation.loss_datasets
    shown = "heldout" if "heldout" in losses else losses[0]
    summary.thresholds = Results(results).query(HEADLINE, (spec.name, shown)).to_pylist()
    summary.agreement = Results(results).query(AGREEMENT).to_pylist()


def _on_cluster(spec: StudySpec, results: Path, runs: Sequence[PlannedRun], summary: Summary, board: Board) -> list[Exception]:
    with ExitStack() as stack:
        with summary.stage("connect"):
            slots = stack.enter_context(connected(spec.cluster))
        with summary.stage("corpus"):
            corpora = pack(spec, results, board)
        with summary.stage("training and scoring"):
            training = Training(spec, runs, results, corpora, slots, board)
            failed = train_and_score(spec, results, runs, training, slots, summary, board)
        with summary.stage("cross-check"):
            failed += _cross_check(spec, results, runs, slots, board)
    return failed


def train_and_score(
    spec: StudySpec,
    results: Path,
    runs: Sequence[PlannedRun],
    training: Training,
    slots: Slots,
    summary: Summary,
    board: Board,
) -> list[Exception]:
    """Train all runs of `training` and score their checkpoints as they appear; what failed."""
    scoring = Scoring(spec, results, slots, board, engine=spec.evaluation.engine)
    began = time.monotonic()
    in_training = in_scoring = True
    try:
        with tracked(results, board), training.saved_when_told_to_end():
            while in_training or in_scoring:
                before, in_training = in_training, training.advance()
                if before and not in_training:
                    summary.seconds["  until trained"] = time.monotonic() - began
                in_scoring = scoring.advance(checkpoint_directories(results, runs), wait=POLL_S)
                time.sleep(POLL_S)
    finally:
        scoring.close()
    return [*training.errors(), *scoring.failed]


def _cross_check(spec: StudySpec, results: Path, runs: Sequence[PlannedRun], slots: Slots, board: Board) -> list[Exception]:
    """Score some checkpoints with a second engine too, where this machine has it."""
    check = _second_engine(spec)
    if check is None:
        if spec.evaluation.cross_check:
            board.say("cross-check left out: vLLM is not installed here")
        return []
    scoring = Scoring(spec, results, slots, board, engine=check.engine, label="cross-check")
    try:
        directories = to_cross_check(results, runs, spec)
        while scoring.advance(directories, wait=1.0):
            pass
    finally:
        scoring.close()
    return list(scoring.failed)


def _second_engine(spec: StudySpec) -> CrossCheckSpec | None:
    """The cross-check that the study asks for, where this machine has its engine."""
    check = spec.evaluation.cross_check
    return None if check is None or (check.engine == "vllm" and not available().vllm) else check


def complete(spec: StudySpec, results: Path, runs: Sequence[PlannedRun]) -> bool:
    """Whether every run is trained and every checkpoint scored, so that no cluster is needed."""
    wanted = versions(questions_of(spec).build())  # first of all: a misspelt task or missing data must not wait for a packed corpus
    if not all(finished(results, run) for run in runs):
        return False
    checkpoints = [c for d in checkpoint_directories(results, runs) if (c := own_checkpoint(d))]
    if pending(checkpoints, already_scored(results, spec.evaluation.engine), wanted):
        return False
    check = _second_engine(spec)
    if check is None:
        return True
    second = [c for d in to_cross_check(results, runs, spec) if (c := own_checkpoint(d))]
    return not pending(second, already_scored(results, check.engine), wanted)


def save_spec(spec: StudySpec, results: Path) -> None:
    """The resolved study beside the output, before the first step."""
    file = results / "studies" / f"{spec.name}-{fingerprint(spec)}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(to_yaml(spec), encoding="utf-8")


if __name__ == "__main__":
    from jobs.cli import run_verb

    run_verb("run")
