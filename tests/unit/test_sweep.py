"""What a sweep tries and how it reads its trials' ends: all decided without Ray."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.proposals import Choice, Range, Space, Trial, default_space, grace_tokens, parse_params, points, propose, size_of
from jobs.sweep import Decision, Sweep, ending, require_all_ended, rows, sweep
from jobs.trial import judged, why
from losslens.errors import EnvironmentFailure, UserError
from losslens.specs import dialect, load_study
from losslens.training.checkpoint import Checkpoint, Loss, run_directory
from tests.conftest import Process

DEMO = load_study("demo")
D48 = size_of(DEMO, "d48")
LR = {"training.optimizer.lr": Range("log", 1e-4, 1e-1)}


def proposed(spaces: Mapping[str, Space], samples: int = 4, seed: int = 0, size: str = "d48", *overrides: str) -> tuple[Trial, ...]:
    return propose("demo", overrides, size_of(load_study("demo", overrides), size), spaces, samples=samples, seed=seed)


@pytest.mark.parametrize(
    ("text", "space"),
    [
        ("log:1e-4:1e-2", Range("log", 1e-4, 1e-2)),
        ("uniform:0:0.1", Range("uniform", 0, 0.1)),
        ("int:8:64", Range("int", 8, 64)),
        ("choice:adamw, muon", Choice(("adamw", "muon"))),
        ("choice:null,1.0", Choice(("null", "1.0"))),
    ],
)
def test_spaces_are_read(text: str, space: Space) -> None:
    assert parse_params([f"a.b={text}"]) == {"a.b": space}


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        (["lr"], "not of the form KEY=SPACE"),
        (["=log:1:2"], "not of the form KEY=SPACE"),
        (["lr=1e-3"], "names no kind of space"),
        (["lr=normal:0:1"], "names no kind of space"),
        (["lr=log:1e-3"], "two numbers"),
        (["lr=log:1e-3:1e-2:1e-1"], "two numbers"),
        (["lr=log:1e-2:1e-3"], "the lower one first"),
        (["lr=uniform:1:1"], "the lower one first"),
        (["lr=uniform:0:.inf"], "two numbers"),
        (["lr=uniform:a:b"], "two numbers"),
        (["lr=uniform:{:1"], "two numbers"),
        (["lr=int:true:2"], "two numbers"),
        (["lr=log:0:1"], "above zero"),
        (["lr=int:1:2.5"], "whole numbers"),
        (["lr=choice:a"], "two or more"),
        (["lr=choice:a,a"], "two or more"),
        (["lr=choice:a,,b"], "two or more"),
        (["lr=choice:a,{b: c}"], "two or more"),
        (["lr=log:1:2", "lr=log:1:3"], "names lr twice"),
    ],
)
def test_a_space_that_cannot_be_is_refused(params: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as refused:
        parse_params(params)
    assert refused.value.remedy


SHARE = st.floats(0, 1, exclude_max=True)


@given(st.sampled_from(["log", "uniform"]), st.floats(1e-9, 1e6), st.floats(1.001, 1e6), SHARE)
def test_numbers_stay_in_their_range_and_are_read_back(kind: str, low: float, factor: float, share: float) -> None:
    space = Range("log" if kind == "log" else "uniform", low, low * factor)
    assert low <= dialect.read(space.at(share)) <= low * factor


def test_ranges_are_even_in_their_own_measure() -> None:
    assert Range("log", 1e-4, 1e-2).at(0.5) == "0.001"
    assert Range("uniform", 0, 3).at(1 / 3) == "1.0"
    assert [Range("int", 8, 10).at(share / 6) for share in range(6)] == ["8", "8", "9", "9", "10", "10"]
    assert [Choice(("a", "b")).at(share / 4) for share in range(4)] == ["a", "a", "b", "b"]


@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**32))
def test_more_samples_keep_the_first_ones(samples: int, dimensions: int, seed: int) -> None:
    assert points(samples, dimensions, seed) == points(2 * samples, dimensions, seed)[:samples]
    assert sorted(int(2 * point[0]) for point in points(2, 1, seed)) == [0, 1]  # they spread at once


def test_a_trial_is_the_run_that_set_gives() -> None:
    trials = proposed(LR, samples=5, seed=3)
    assert len({trial.run.run_id for trial in trials}) == 5
    for trial in trials:
        value = trial.values()["training.optimizer.lr"]
        assert 1e-4 <= value <= 1e-1 and trial.settings == {"training.optimizer.lr": repr(value)}
        assert trial.spec == load_study("demo", [f"training.optimizer.lr={value}"])
    assert trials == proposed(LR, samples=5, seed=3)
    assert trials != proposed(LR, samples=5, seed=4)


def test_equal_points_are_one_trial() -> None:
    trials = proposed({"training.optimizer.name": Choice(("adamw", "muon"))}, samples=6)
    assert sorted(trial.settings["training.optimizer.name"] for trial in trials) == ["adamw", "muon"]
    assert trials[0].label.startswith("d48 name=")


def test_the_default_is_the_rate_around_the_studys_own() -> None:
    assert default_space(DEMO, D48) == {"training.optimizer.lr": Range("log", 0.014 / 8, 0.014 * 8)}
    own = load_study("demo", ["family.sizes.d48.peak_lr=0.5"])
    assert default_space(own, size_of(own, "d48")) == {"family.sizes.d48.peak_lr": Range("log", 0.0625, 4.0)}
    dotted = load_study("demo", ["family.sizes.1.name=1.5B", "family.sizes.1.peak_lr=0.5", "evaluation.cross_check=null"])
    assert list(default_space(dotted, size_of(dotted, "1.5B"))) == ["family.sizes.1.peak_lr"]  # dots would read as further keys


def test_a_name_that_several_entries_share_is_refused() -> None:
    with pytest.raises(UserError, match="2 entries called"):
        size_of(load_study("paper"), "1.5B")


CHOICE = Choice(("1", "2"))


@pytest.mark.parametrize(
    ("key", "complaint"),
    [
        ("training.optimiser.lr", "unknown key 'optimiser'"),
        ("evaluation.limit", "does not change a run"),
        ("cluster.threads", "does not change a run"),
        ("results", "does not change a run"),
        ("seed", "orders the corpus"),
        ("seeds", "the study's first seed"),
        ("name", "names the study"),
        ("corpus.seq_len", "share one corpus"),
        ("family.sizes.d64.peak_lr", "does not change the runs of size d48"),
        ("training.tokens", "has a tokens of its own"),
        ("family.sizes.d48.heads", "heads do not divide"),
    ],
)
def test_a_key_that_cannot_be_swept_is_refused(key: str, complaint: str) -> None:
    space = Choice(("'1'", "'2'")) if key in ("name", "results") else Choice(("5", "7")) if key.endswith("heads") else CHOICE
    with pytest.raises(UserError, match=complaint) as refused:
        proposed({key: space})
    assert refused.value.remedy


def test_a_rate_that_a_size_overrides_is_refused_and_the_right_key_named() -> None:
    with pytest.raises(UserError, match="peak_lr of its own") as refused:
        proposed(LR, 2, 0, "d48", "family.sizes.d48.peak_lr=0.5")
    assert "family.sizes.d48.peak_lr" in refused.value.remedy


def test_a_sweep_takes_one_budget_and_the_first_seed() -> None:
    with pytest.raises(UserError, match="one budget"):
        proposed(LR, 2, 0, "d48", "family.sizes.d48.tokens=[1M, 2M]")
    assert {trial.run.seed for trial in proposed(LR, 2, 0, "d48", "seeds=3", "seed=5")} == {5}


def test_grace_is_a_share_or_steps() -> None:
    run = proposed(LR, 2)[0].run
    assert grace_tokens(0.25, run) == round(run.tokens / 4)
    assert grace_tokens(1, run) == run.batch_tokens
    assert grace_tokens(1e9, run) == run.tokens
    for wrong in (0, -1, math.nan):
        with pytest.raises(UserError, match="above zero"):
            grace_tokens(wrong, run)


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1e6, math.log(128)])
def test_no_run_is_judged_worse_than_guessing(loss: float) -> None:
    assert judged(loss, 128) == math.log(128)
    assert judged(2.5, 128) == 2.5


def test_endings() -> None:
    assert ending(True, {"diverged": "never"}) == Decision("finished")
    assert ending(False, {"loss": 1.0, "diverged": "the loss is nan"}) == Decision("diverged", "the loss is nan")
    assert ending(False, {"failed": "the disk is full"}) == Decision("failed", "the disk is full")
    assert ending(False, {"loss": 1.0}) == Decision("stopped")
    assert why(EnvironmentFailure("no room", "free some")) == "no room"
    assert why(ValueError("a fault of ours")) == "ValueError: a fault of ours"


def at(trial: Trial, step: int, loss: float) -> Checkpoint:
    run = trial.run
    losses = (Loss("train", "nats/token", 9.0, None, 1, None), Loss("heldout", "nats/token", loss, None, 1, None))
    tokens = step * run.batch_tokens
    return Checkpoint(Path(), f"{run.run_id}/{step}", run.run_id, run.study, run.size, step, tokens, 0.0, "", "", losses)


def test_rows_are_ordered_by_loss_and_the_best_finished_one_is_marked() -> None:
    trials = proposed(LR, samples=6)
    ids = [trial.run.run_id for trial in trials]
    ends = [Decision("stopped"), Decision("finished"), Decision("failed", "why"), Decision("diverged", "why"), Decision("finished")]
    decided = dict(zip(ids, ends, strict=False))  # the last has not ended
    newest = {ids[0]: at(trials[0], 9, 1.0), ids[1]: at(trials[1], 30, 3.0), ids[3]: at(trials[3], 5, 0.5), ids[4]: at(trials[4], 30, 2.0)}
    found = rows(trials, decided, newest)
    assert [row["run_id"] for row in found] == [ids[i] for i in (0, 4, 1, 3, 2, 5)]
    assert [row["best"] for row in found] == [False, True, False, False, False, False]
    assert [row["state"] for row in found] == ["stopped", "finished", "finished", "diverged", "failed", "failed"]
    assert found[1] == {
        "size": "d48", "best": True, "training.optimizer.lr": trials[4].values()["training.optimizer.lr"], "state": "finished",
        "step": 30, "tokens": 30 * trials[4].run.batch_tokens, "loss": 2.0, "run_id": ids[4], "why": None,
    }  # fmt: skip
    assert (found[5]["step"], found[5]["loss"], found[5]["why"]) == (0, None, "it has not ended")
    with pytest.raises(EnvironmentFailure, match=f"2 of 6 trials failed; {ids[2]}: why"):
        require_all_ended(found)
    require_all_ended(found[:4])


def test_decisions_are_kept_and_what_failed_is_left_to_do(tmp_path: Path) -> None:
    trials = proposed(LR, samples=4)
    ids = [trial.run.run_id for trial in trials]
    found = Sweep("name", trials, grace=1, reduction=3)
    assert list(found.todo(tmp_path)) == ids
    found.decide(tmp_path, ids[0], Decision("stopped"))
    found.decide(tmp_path, ids[1], Decision("failed", "the disk is full"))
    last = run_directory(tmp_path, ids[2]) / f"step-{trials[2].run.steps:08d}"
    last.mkdir(parents=True)
    (last / "losslens.json").write_text(json.dumps({}))  # finished by somebody else
    assert found.decided(tmp_path)[ids[1]] == Decision("failed", "the disk is full")
    assert list(found.todo(tmp_path)) == [ids[1], ids[3]]


def test_a_size_that_is_not_there_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no size 'd47'"):
        sweep("demo", [], tmp_path / "results", ["d48", "d47"])
    assert not (tmp_path / "results").exists()


def test_a_wrong_space_is_exit_2_on_the_command_line(losslens: Callable[..., Process]) -> None:
    failed = losslens("sweep", "demo", "--size", "d48", "--param", "training.optimizer.lr=log:0:1")
    assert failed.returncode == 2
    assert failed.stderr.startswith("losslens: --param 'training.optimizer.lr=log:0:1' must stay above zero")
    assert "remedy: write log:1e-4:1e-2" in failed.stderr
