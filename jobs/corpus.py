"""The corpus of a study: tokenised and packed once, shared by all its runs; variants that differ in it have one each."""

from __future__ import annotations

if __name__ == "__main__":
    import here  # noqa: F401

from collections.abc import Sequence
from pathlib import Path

from jobs.exclusive import exclusive
from jobs.progress import Board
from losslens.cluster.connect import connected
from losslens.corpus import PackedCorpus
from losslens.corpus.pack import build
from losslens.families import PlannedRun, planned_runs
from losslens.specs import StudySpec, variants


def build_corpus(spec: StudySpec, results: Path) -> None:
    """Pack what the study's runs read under `results`. A packed corpus is left as it is."""
    with exclusive(results), Board() as board, connected(spec.cluster):
        pack(spec, results, board)


def pack(spec: StudySpec, results: Path, board: Board) -> dict[str, Path]:
    """As `build_corpus`, on a connected cluster; the directory by variant.

    Raises:
        UserError: the corpus is empty, unreadable or smaller than a global batch.
    """
    of = variants(spec)
    runs = planned_runs(spec)
    packed: dict[str, Path] = {}
    for variant, its in of.items():
        sharing = [run for run in runs if of[run.variant].corpus == its.corpus]  # generated text is made for the longest of them
        packed[variant] = _pack(its, sharing, results, board).dir
    return packed


def _pack(spec: StudySpec, runs: Sequence[PlannedRun], results: Path, board: Board) -> PackedCorpus:
    corpus = build(
        spec.corpus,
        seed=spec.seed,
        rows=max(run.steps * run.global_batch for run in runs),
        root=results / "corpus",
        progress=lambda note, share: board.show("corpus", round(100 * share), 100, note),
    )
    corpus.require(max(run.global_batch for run in runs))
    return corpus


if __name__ == "__main__":
    from jobs.cli import run_verb

    run_verb("corpus")
