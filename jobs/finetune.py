"""Tuning: checkpoints go on with other data, and every amount of it is scored on the study's tasks.

One run for each checkpoint; the amounts are its checkpoints. What is done is read from the results directory, as in `study.py`.
"""

from __future__ import annotations

if __name__ == "__main__":
    import here  # noqa: F401

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_service.targets import unknown_rows
from jobs.corpus import packed_for
from jobs.exclusive import exclusive
from jobs.parents import Chosen, chosen
from jobs.progress import Board
from jobs.study import Summary, complete, save_spec, train_and_score
from jobs.training import Training
from losslens.cluster.connect import connected
from losslens.cluster.slots import Slots
from losslens.errors import UserError
from losslens.families import PARENT, PlannedRun
from losslens.families.tuned import tuned_run, tuned_study
from losslens.results import Results
from losslens.specs import StudySpec, fingerprint, variants
from losslens.specs.validate import source_name

_TUNED = """
SELECT r.run_id AS run, r.size, r.parent_checkpoint_id AS parent, any_value(l.value) AS parent_loss, max(c.tokens) AS tokens,
       count(DISTINCT c.checkpoint_id) AS checkpoints, count(DISTINCT s.checkpoint_id) AS scored
FROM runs r JOIN checkpoints c USING (run_id) LEFT JOIN scores s USING (checkpoint_id)
     LEFT JOIN losses l ON l.checkpoint_id = c.checkpoint_id AND l.dataset = $2 AND l.unit = 'nats/token'
WHERE list_contains($1, r.run_id)
GROUP BY ALL ORDER BY r.size, parent_loss DESC, r.run_id
"""


@dataclass(frozen=True, slots=True)
class _Group:
    """Runs that share a corpus, and with it a tokenizer. `studies` are what they are trained by, by variant; `spec` is one of them."""

    spec: StudySpec
    runs: tuple[PlannedRun, ...]
    studies: dict[str, StudySpec]
    train_seeds: dict[str, int]


def finetune(spec: StudySpec, targets: Sequence[str], results: Path) -> list[dict[str, Any]]:
    """Tune what the targets name as the study's part `tuning` says, and score it; a row for each run that is there in the end.

    Raises:
        UserError: the study has no such part, or a target cannot be tuned.
        Exception: of the first run or checkpoint that failed, after everything else was finished.
    """
    if spec.tuning is None:
        remedy = "add sources and training under tuning, see docs/FINETUNE.md"
        raise UserError(f"the study {spec.name} does not say how checkpoints are tuned", remedy)
    if not targets:
        raise UserError("nothing to tune", "name a checkpoint with --from")
    results = results.resolve()
    with exclusive(results), Board() as board:
        parents = chosen(spec, targets, results)
        groups = _groups(spec, parents)
        save_spec(spec, results)
        _describe(parents, results)
        for unknown in [of.parent.origin.checkpoint_id for of in parents if not of.parent.origin.losses]:
            board.say(f"no loss of {unknown} is known, so its tuned checkpoints get no losses of a parent")
        summary = Summary(results / "report.html")
        failed = _on_cluster([group for group in groups if not complete(group.spec, results, group.runs)], results, summary, board)
        board.say("  ".join(f"{name} {seconds:.1f} s" for name, seconds in summary.seconds.items()) or "all is tuned and scored")
    if failed:
        raise failed[0]
    run_ids = [run.run_id for group in groups for run in group.runs]
    rows: list[dict[str, Any]] = Results(results).query(_TUNED, [run_ids, f"{PARENT}heldout"]).to_pylist()
    return rows


def _groups(spec: StudySpec, parents: Sequence[Chosen]) -> list[_Group]:
    of = variants(spec)
    made: dict[str, _Group] = {}
    for parent in (each.parent for each in parents):
        its = of[parent.variant]
        key = fingerprint(its.corpus, parent.tokenizer_sha256)
        spec_of = tuned_study(its, parent.tokenizer)
        group = made.get(key) or _Group(spec_of, (), {}, _train_seeds(its))
        runs, studies = (*group.runs, tuned_run(its, parent)), {parent.variant: spec_of, **group.studies}
        made[key] = _Group(group.spec, runs, studies, group.train_seeds)
    return list(made.values())


def _train_seeds(spec: StudySpec) -> dict[str, int]:
    """Rows of generated skills that pretraining has not seen; those that tuning adds differ from those it keeps."""
    assert spec.tuning
    kept, added = ({source_name(source) for source in sources} for sources in (spec.corpus.sources, spec.tuning.sources))
    return dict.fromkeys(kept, spec.seed + 1) | dict.fromkeys(added, spec.seed + 2)


def _describe(parents: Sequence[Chosen], results: Path) -> None:
    """The rows that say what the parents are, unless they are there."""
    stored = Results(results)
    runs, checkpoints = (_column(results, f"SELECT DISTINCT {key} FROM {table}") for table, key in _KEYS)
    for table, rows in unknown_rows([of.found for of in parents], runs, checkpoints):
        stored.write(table, rows)


_KEYS = (("runs", "run_id"), ("checkpoints", "checkpoint_id"))


def _column(results: Path, sql: str) -> set[str]:
    return set(Results(results).query(sql).column(0).to_pylist()) if (results / "parts").is_dir() else set()


def _on_cluster(groups: Sequence[_Group], results: Path, summary: Summary, board: Board) -> list[Exception]:
    if not groups:
        return []
    with ExitStack() as stack:
        with summary.stage("connect"):
            slots = stack.enter_context(connected(groups[0].spec.cluster))
        return [error for group in groups for error in _group(group, results, slots, summary, board)]


def _group(group: _Group, results: Path, slots: Slots, summary: Summary, board: Board) -> Iterator[Exception]:
    with summary.stage("corpus"):
        corpus = packed_for(group.spec, group.runs, results, board, group.train_seeds)
    corpora = dict.fromkeys(group.studies, corpus)
    with summary.stage("tuning and scoring"):
        training = Training(group.spec, group.runs, results, corpora, slots, board, group.studies)
        yield from train_and_score(group.spec, results, group.runs, training, slots, summary, board)


if __name__ == "__main__":
    from jobs.cli import run_verb

    run_verb("finetune")
