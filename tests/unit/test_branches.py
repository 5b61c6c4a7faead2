"""Decay branches: what is planned, what their rate does, where they begin, and that they are the run WSD would have given."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from losslens.errors import DataMismatch, UserError
from losslens.families import Branch, PlannedRun, Shape, planned_runs
from losslens.models import build
from losslens.specs import OptimizerSpec, ScheduleSpec, TrainingSpec, load_study
from losslens.training import checkpoint as checkpoints
from losslens.training.branching import parent_state, ready, require
from losslens.training.loop import Trainer
from losslens.training.optimizers import Optimizers
from losslens.training.schedules import multiplier
from losslens.training.snapshot import state_of
from losslens.training.worker import resume, run_row

SHAPE = Shape("paper", 61, 32, 96, 2, 1, 2, 24, 100.0, tie_embeddings=False)
BATCH = 4


def plan(*settings: str) -> tuple[PlannedRun, ...]:
    return planned_runs(load_study("demo", list(settings)))


def test_branches_follow_their_runs_and_do_not_change_them() -> None:
    alone = plan()
    found = plan("training.branches=[{at: 1.0M, decay: 0.1M, checkpoints: 4}, {at: 1.4M, decay: 0.1M}]")
    trunks, branches = [r for r in found if not r.branch], [r for r in found if r.branch]
    assert [r.run_id for r in trunks] == [r.run_id for r in alone]
    assert [r.label for r in branches] == [
        "d48-999.42k-decay99.33k-s0", "d48-1.40M-decay99.33k-s0", "d64-999.42k-decay99.33k-s0", "d64-1.40M-decay99.33k-s0",
        "d96-999.42k-decay99.33k-s0",
    ]  # fmt: skip
    first = branches[0]
    assert first.branch == Branch(trunks[0].run_id, 976, trunks[0].steps)
    assert (first.steps, first.tokens) == (976 + 97, (976 + 97) * 1024)
    assert first.checkpoints == (976 + 25, 976 + 49, 976 + 73, 976 + 97)
    assert trunks[0].kept_states == (976, 1367)
    assert set(trunks[0].checkpoints) == {*alone[0].checkpoints, 976, 1367}
    assert trunks[3].kept_states == ()
    assert first.accelerator_hours() == pytest.approx(first.flops * 97 / 1073 / (312e12 * 0.45) / 3600)
    assert len({r.run_id for r in found}) == len(found)


def test_states_of_all_checkpoints_are_kept_when_asked() -> None:
    first = plan("cluster.keep_states=true")[0]
    assert first.kept_states == first.checkpoints
    assert first.run_id == plan()[0].run_id


@pytest.mark.parametrize(
    ("branch", "sentence"),
    [("{at: 3M, decay: 1k}", "less than one global batch"), ("{at: 3M, decay: 100k}", "no run is long enough"),
     ("{at: 2.0M, decay: 100k}", "no run is long enough"), ("{at: 100, decay: 100k}", "less than one global batch"),
     ("{at: 1M}", "decay"), ("{at: 1M, decay: -1}", "branches"), ("{at: 1M, decay: 1M, step: 3}", "unknown key 'step'")],
)  # fmt: skip
def test_branches_that_cannot_be_are_refused(branch: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        plan(f"training.branches=[{branch}]")


@given(st.sampled_from(["cosine", "wsd", "constant"]), st.integers(20, 300), st.integers(1, 80))
def test_the_rate_follows_the_parent_then_falls_to_the_end(name: str, at: int, decay: int) -> None:
    spec = ScheduleSpec(name=name, warmup_steps=10, final_fraction=0.1)  # type: ignore[arg-type]
    branch, whole = Branch("parent", at, at + 100), at + decay
    values = [multiplier(spec, step, whole, branch) for step in range(whole)]
    parent = [multiplier(spec, step, at + 100) for step in range(at + 1)]
    assert values[:at] == parent[:at]
    own = values[at:]
    assert own == sorted(own, reverse=True)
    assert own[0] <= parent[at]
    assert own[-1] == pytest.approx(0.1 * parent[at])


def schedule(name: Literal["constant", "wsd"]) -> ScheduleSpec:
    return ScheduleSpec(name=name, warmup_steps=4, average=0.9, decay_fraction=0.25)


def trainer(schedule: ScheduleSpec, steps: int, branch: Branch | None = None) -> Trainer:
    spec = TrainingSpec(global_batch=BATCH, precision="float32", optimizer=OptimizerSpec(name="muon", lr=0.02), schedule=schedule)
    model = build(SHAPE, seed=0)
    optimizers = Optimizers(model, spec.optimizer, peak_lr=0.02, width=32, precision="float32")
    return Trainer(model, optimizers, spec, steps, BATCH, 24, torch.device("cpu"), 2, branch)


def train(of: Trainer, until: int) -> Trainer:
    for step in range(of.step, until):
        of.update(torch.from_numpy(np.random.default_rng(step).integers(0, 61, (BATCH, 25))))
    return of


def planned(steps: int, branch: Branch | None = None, kept: tuple[int, ...] = ()) -> PlannedRun:
    name = "study-s-branch-s0-abc" if branch else "study-s-trunk-s0-abc"
    return PlannedRun("study", name, "s", 0, SHAPE, steps * BATCH * 24, steps, BATCH, 0.02, (steps,), 2, branch, kept)


def save(root: Path, of: Trainer, run: PlannedRun) -> None:
    checkpoints.write_state(root, run, of.step, state_of(of))


def test_a_branch_of_a_constant_run_is_the_wsd_run_to_the_last_bit(tmp_path: Path) -> None:
    constant, wsd = schedule("constant"), schedule("wsd")
    alone = train(trainer(wsd, 32), 32)  # the last 8 of 32 steps decay
    trunk, parent = trainer(constant, 40), planned(40, kept=(24,))
    for step in (12, 24, 30, 36, 40):
        save(tmp_path, train(trunk, step), parent)
    assert checkpoints.saved_steps(tmp_path, parent.run_id) == {24, 36, 40}

    branch = Branch(parent.run_id, 24, 40)
    of, leaf = trainer(constant, 32, branch), planned(32, branch)
    resume(of, tmp_path, leaf)
    assert of.step == 24
    save(tmp_path, train(of, 28), leaf)
    again = trainer(constant, 32, branch)
    resume(again, tmp_path, leaf)  # from its own state now
    assert again.step == 28
    train(again, 32)
    assert again.losses.tolist() == alone.losses.tolist()
    assert all(torch.equal(a, b) for a, b in zip(again.average, alone.average, strict=True))


def test_a_branch_says_what_it_lacks(tmp_path: Path) -> None:
    parent = planned(40)
    leaf = planned(32, Branch(parent.run_id, 24, 40))
    assert ready(tmp_path, parent)
    assert not ready(tmp_path, leaf)
    with pytest.raises(UserError, match="keeps no state of step 24") as failure:
        require(tmp_path, leaf)
    assert "(none)" in failure.value.remedy
    save(tmp_path, train(trainer(schedule("constant"), 40), 10), parent)
    with pytest.raises(UserError) as failure:
        parent_state(tmp_path, leaf)
    assert f"({10 * BATCH * 24})" in failure.value.remedy

    here = planned(32, Branch(parent.run_id, 10, 40))
    assert ready(tmp_path, here)
    state = checkpoints.state_directory(tmp_path, parent.run_id, 10) / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"?")
    with pytest.raises(DataMismatch, match="no run can branch there"):
        parent_state(tmp_path, here)


def test_the_row_of_a_branch_names_its_parent() -> None:
    spec = load_study("demo", ["training.branches=[{at: 1.0M, decay: 0.1M}]"])
    trunk, branch = planned_runs(spec)[:2]
    assert run_row(spec, branch, "corpus")["parent_checkpoint_id"] == f"{trunk.run_id}/step-00000976"
    assert run_row(spec, trunk, "corpus")["parent_checkpoint_id"] is None
