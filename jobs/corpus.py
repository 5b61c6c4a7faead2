"""The corpus of a study: tokenised and packed once, shared by all its runs; variants that differ in it have one each."""

from __future__ import annotations

if __name__ == "__main__":
    import here  # noqa: F401

from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.exclusive import exclusive
from jobs.progress import Board
from losslens.cluster.connect import connected
from losslens.corpus.pack import build
from losslens.corpus.tokenizer import existing
from losslens.errors import UserError
from losslens.families import PlannedRun, planned_runs
from losslens.specs import StudySpec, TokenizerSpec, variants


def build_corpus(spec: StudySpec, results: Path) -> None:
    """Pack what the study's runs read under `results`. A packed corpus is left as it is."""
    with exclusive(results), Board() as board, connected(spec.cluster):
        pack(spec, results, board)


def pack(spec: StudySpec, results: Path, board: Board) -> dict[str, Path]:
    """As `build_corpus`, on a connected cluster; the directory by variant.

    Raises:
        UserError: the corpus is empty, unreadable or smaller than a global batch, or a tokenizer that is given has too many ids.
    """
    of = variants(spec)
    runs = planned_runs(spec)
    packed: dict[str, Path] = {}
    for variant, its in of.items():
        sharing = [run for run in runs if of[run.variant].corpus == its.corpus]  # generated text is made for the longest of them
        _fits(its.corpus.tokenizer)
        packed[variant] = packed_for(its, sharing, results, board)
    return packed


def packed_for(
    spec: StudySpec, runs: Sequence[PlannedRun], results: Path, board: Board, train_seeds: Mapping[str, int] | None = None
) -> Path:
    """The directory of the corpus that these runs of a study without variants share; errors as `pack`. `train_seeds`: see `build`."""
    corpus = build(
        spec.corpus,
        seed=spec.seed,
        rows=max(run.steps * run.global_batch for run in runs),
        root=results / "corpus",
        progress=lambda note, share: board.show("corpus", round(100 * share), 100, note),
        train_seeds=train_seeds,
    )
    corpus.require(max(run.global_batch for run in runs))
    return corpus.dir


def _fits(tokenizer: TokenizerSpec) -> None:
    """Nothing where embeddings have a row for each id of a tokenizer that is given."""
    directory = Path(str(tokenizer.path)).expanduser()
    if tokenizer.kind != "path" or not (directory / "tokenizer.json").is_file():  # a slow one is made fast as it is packed with
        return
    ids, rows = existing(directory)[1], tokenizer.vocab_size
    if ids > rows:
        sentence = f"the tokenizer in {tokenizer.path} has {ids:,} ids, and corpus.tokenizer.vocab_size gives embeddings {rows:,} rows"
        raise UserError(sentence, f"set corpus.tokenizer.vocab_size to {ids} or more")


if __name__ == "__main__":
    from jobs.cli import run_verb

    run_verb("corpus")
