"""Decisions of the jobs: which run starts next, who may write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.corpus import pack
from jobs.exclusive import exclusive
from jobs.progress import Board
from jobs.study import run_study
from jobs.training import next_runs, told
from losslens.corpus.tokenizer import make
from losslens.errors import EnvironmentFailure, UserError
from losslens.families import planned_runs
from losslens.specs import TokenizerSpec, load_study

RUNS = planned_runs(load_study("demo"))


@pytest.mark.parametrize("wrong", ["skill_coppy", "hellaswag"])
def test_tasks_are_looked_at_before_a_corpus_is_packed(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(UserError, match=f"task `{wrong}`"):
        run_study(load_study("demo", [f"evaluation.tasks=[skill_copy, {wrong}]"]), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_dir()] == ["studies"]


@given(st.integers(0, 4), st.integers(1, 6), st.integers(1, 3))
def test_next_runs_fill_the_room_longest_first(active: int, slots: int, workers: int) -> None:
    chosen = next_runs(RUNS, active, slots, workers)
    assert len(chosen) == min(len(RUNS), max(0, slots // workers - active))
    assert [run.flops for run in chosen] == sorted((run.flops for run in RUNS), reverse=True)[: len(chosen)]


HOLDER = """
import sys
sys.path[:0] = ["platform", "."]
from pathlib import Path
from jobs.exclusive import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_refused_until_the_first_is_gone_even_by_kill(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {first.pid}"), exclusive(tmp_path):
            pass
        first.kill()
    with exclusive(tmp_path):
        pass


def test_a_results_directory_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFailure, match="cannot be written"), exclusive(tmp_path / "file" / "results"):
        pass


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ({"event": "waiting", "why": "needs 2 train slots, the cluster has 1"}, "waits: needs 2 train slots, the cluster has 1"),
        ({"event": "failed", "fault": "lost", "cause": "gloo", "again": True}, "failed: a worker or its node went away; it starts again"),
        ({"event": "failed", "fault": "known", "cause": "the disk is full", "again": False}, "failed: the disk is full"),
        ({"event": "resize", "reason": "grow", "world_size": 1, "share": 2}, "saved to grow: 1 -> 2 workers"),
        ({"event": "resumed", "step": 1200, "world_size": 2}, "resumes from step 1,200 with 2 workers"),
        ({"event": "damaged", "step": 1300}, "leaves out the state of step 1,300, which does not match its hashes"),
        ({"event": "resumed", "step": 0, "world_size": 2}, ""),
        ({"event": "skipped", "steps": [1300, 1302]}, "skipped 2 updates whose loss or gradient is not finite, from step 1,300 on"),
        ({"event": "spike", "step": 40, "norm": 50.0, "median": 2.0}, "gradient norm 50 at step 40, 25 times the median"),
        (
            {"event": "slow", "step": 40, "rank": 1, "host": "n2", "seconds": 0.5, "median": 0.1},
            "rank 1 on n2 takes 5.0 times as long as the median",
        ),
        ({"event": "passes", "step": 1, "sequences": 8}, "out of memory: goes on with 8 sequences in one pass"),
        ({"event": "stepping", "step": 1}, ""),
    ],
)
def test_what_the_board_says_of_a_run(event: dict[str, object], line: str) -> None:
    assert told(event) == line


def test_a_tokenizer_with_more_ids_than_embeddings_have_rows_is_refused_before_anything_is_packed(tmp_path: Path) -> None:
    make(
        TokenizerSpec(kind="bpe", vocab_size=300), ["the cat sat on the mat. " * 40 + "".join(map(chr, range(200, 900)))], tmp_path / "bpe"
    )
    given = f"corpus.tokenizer={{kind: path, path: {tmp_path / 'bpe'}, vocab_size: %d}}"
    few = load_study("demo", [given % 299])
    with Board() as board, pytest.raises(UserError, match="has 300 ids") as refused:
        pack(few, tmp_path, board)
    assert refused.value.remedy == "set corpus.tokenizer.vocab_size to 300 or more"
    assert not (tmp_path / "corpus").exists()
