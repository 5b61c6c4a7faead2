"""Schedules, optimizers, the loop's laws and checkpoints, on a two-layer model that trains in milliseconds."""

from __future__ import annotations

import errno
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from losslens.errors import EnvironmentFailure, TrainingDiverged
from losslens.families import PlannedRun, Shape
from losslens.models import build
from losslens.specs import OptimizerSpec, ScheduleSpec, TrainingSpec
from losslens.training import checkpoint as checkpoints
from losslens.training.heldout import Heldout, window_loss
from losslens.training.lanes import lanes_of
from losslens.training.loop import Trainer, run
from losslens.training.optimizers import Optimizers, orthogonalise
from losslens.training.schedules import averaging_decay, multiplier
from losslens.training.snapshot import load_state, state_of
from losslens.training.watch import Watch

GOLDEN = Path(__file__).parents[1] / "golden" / "loss_curve.json"
SHAPE = Shape("paper", 61, 32, 96, 2, 1, 2, 24, 100.0, tie_embeddings=False)
STEPS, BATCH = 60, 6


def trainer(seed: int = 0, micro_batch: int | None = None, lanes: int = 1, **changes: Any) -> Trainer:
    spec = TrainingSpec(
        **{
            "global_batch": BATCH,
            "precision": "float32",
            "optimizer": OptimizerSpec(name="muon", lr=0.02, adam_lr=0.01, weight_decay=0.05, reference_width=64),
            "schedule": ScheduleSpec(name="cosine", warmup_steps=5, average=0.9),
            **changes,
        }
    )
    model = build(SHAPE, seed=seed)
    return Trainer(
        model=model,
        optimizers=Optimizers(model, spec.optimizer, peak_lr=spec.optimizer.lr, width=SHAPE.d_model, precision=spec.precision),
        spec=spec,
        steps=STEPS,
        global_batch=BATCH,
        seq_len=SHAPE.seq_len,
        device=torch.device("cpu"),
        micro_batch=micro_batch,
        lanes=lanes,
    )


def batches(start: int = 0) -> Iterator[np.ndarray]:
    """Rows whose next token is mostly the one after: learnable, seeded by the step."""
    for step in range(start, STEPS):
        noise = np.random.default_rng(step)
        rows = (noise.integers(0, 61, (BATCH, 1)) + np.arange(SHAPE.seq_len + 1)) % 61
        yield np.where(noise.random(rows.shape) < 0.1, noise.integers(0, 61, rows.shape), rows)


def train(of: Trainer) -> list[float]:
    run(of, batches(of.step), Watch())
    return of.losses.tolist()


@given(st.sampled_from(["cosine", "wsd", "constant"]), st.integers(0, 50), st.integers(60, 400))
def test_schedules_stay_in_bounds_and_end_where_they_should(name: str, warmup: int, steps: int) -> None:
    spec = ScheduleSpec(name=name, warmup_steps=warmup, final_fraction=0.1)  # type: ignore[arg-type]
    values = [multiplier(spec, step, steps) for step in range(steps)]
    assert all(0 < value <= 1 for value in values)
    assert values[:warmup] == sorted(values[:warmup])
    assert values[-1] == pytest.approx(1.0 if name == "constant" else 0.1)


def test_average_forgets_the_random_start_quickly() -> None:
    spec = ScheduleSpec(average=0.97)
    assert averaging_decay(spec, 0) == 0.1
    assert averaging_decay(spec, 10_000) == 0.97


@pytest.mark.parametrize("size", [(2, 24, 24), (3, 16, 40), (2, 40, 16)])
def test_orthogonalised_matrices_have_singular_values_near_one(size: tuple[int, int, int]) -> None:
    matrices = torch.randn(size, generator=torch.Generator().manual_seed(1))
    singular = torch.linalg.svdvals(orthogonalise(matrices, torch.bfloat16))
    assert singular.min() > 0.4
    assert singular.max() < 1.3


def test_training_learns() -> None:
    losses = train(trainer())
    assert losses[0] == pytest.approx(np.log(61), abs=0.1)
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resuming_is_bitwise_the_undisturbed_run(optimizer: str) -> None:
    options = OptimizerSpec(name=optimizer, lr=0.01)  # type: ignore[arg-type]
    undisturbed = trainer(optimizer=options)
    expected = train(undisturbed)

    first = trainer(optimizer=options)
    for rows in batches():
        if first.step == 23:
            break
        first.update(torch.from_numpy(rows))
    second = trainer(seed=99, optimizer=options)  # other weights: everything must come from the state
    load_state(second, first.step, {name: tensor.clone() for name, tensor in state_of(first).items()})
    assert train(second) == expected
    assert all(torch.equal(a, b) for a, b in zip(second.average, undisturbed.average, strict=True))


def test_micro_batches_do_not_change_the_update() -> None:
    whole, pieces = train(trainer()), train(trainer(micro_batch=4))  # 6 = 4 + 2: pieces of unequal size
    np.testing.assert_allclose(whole, pieces, rtol=1e-4)


def test_with_exact_sums_threads_change_no_bit() -> None:
    one, three = trainer(micro_batch=2), trainer(micro_batch=2, lanes=3)
    assert train(one) == train(three)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters, three.parameters, strict=True))
    assert one.grad_norms.tolist() == three.grad_norms.tolist()


@pytest.mark.parametrize("lanes", [2, 4])  # of 6 sequences: 3 + 3, and 2 + 2 + 2
def test_a_share_without_micro_batches_is_cut_into_lanes(lanes: int) -> None:
    assert train(trainer(lanes=lanes))[-1] == pytest.approx(train(trainer())[-1], abs=1e-3)


def test_resuming_with_other_threads_is_bitwise_the_undisturbed_run() -> None:
    whole, part, rest = trainer(micro_batch=2, lanes=2), trainer(micro_batch=2), trainer(micro_batch=2, lanes=3)
    for rows in itertools.islice(batches(), 20):
        part.update(torch.from_numpy(rows))
    load_state(rest, part.step, state_of(part))
    assert train(rest) == train(whole)


def test_lanes_are_no_more_than_passes() -> None:
    assert [lanes_of(4, 8, None), lanes_of(4, 8, 4), lanes_of(4, 3, None), lanes_of(1, 8, 1), lanes_of(4, 1, 8)] == [4, 2, 3, 1, 1]


def test_golden_loss_curve(update_golden: bool) -> None:
    """float32 on a CPU: a changed loop, optimizer, order of operations or initialisation shows here."""
    losses = train(trainer())
    if update_golden:
        GOLDEN.write_text(json.dumps(losses, indent=0) + "\n", encoding="utf-8")
    # Other CPUs sum in other orders; 1e-4 still catches any change of the method.
    np.testing.assert_allclose(losses, json.loads(GOLDEN.read_text(encoding="utf-8")), rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"lanes": 2}, {"micro_batch": 2, "lanes": 3}], ids=["plain", "lanes", "exact"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_one_seed_gives_the_same_bits(precision: str, options: dict[str, int]) -> None:
    one, other = trainer(**options, precision=precision), trainer(**options, precision=precision)
    assert train(one) == train(other)
    assert one.grad_norms.tolist() == other.grad_norms.tolist()
    assert all(torch.equal(a, b) for a, b in zip(one.average, other.average, strict=True))


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(TrainingDiverged, match="at step"):
        train(trainer(optimizer=OptimizerSpec(name="adamw", lr=1e30, clip=None)))


def test_a_loss_that_runs_away_stops_the_run() -> None:
    of = trainer(diverged_at=0.5)
    of.losses[:25], of.losses[25:50] = 2.0, 2.6
    of.step = 50
    with pytest.raises(TrainingDiverged, match=r"rose from 2\.00 to 2\.60 nats by step 50"):
        of.check()


def test_heldout_losses_against_a_plain_computation() -> None:
    of = trainer()
    rows = np.concatenate(list(batches()))[:7]
    heldout = Heldout({"a": (rows[:3], np.full(3, 48)), "b": (rows[3:], np.full(4, 24))}, {"a": 3.0, "b": 1.0})
    losses = heldout.losses(heldout.nats(of.model, of.autocast))
    tokens = torch.from_numpy(rows)
    with torch.no_grad():
        nll = torch.nn.functional.cross_entropy(of.model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none").numpy()
    found = {(loss.dataset, loss.unit): loss.value for loss in losses}
    a, b = nll[:3].mean(), nll[3:].mean()
    assert found["heldout/a", "nats/token"] == pytest.approx(a, rel=1e-5)
    assert found["heldout/b", "bits/byte"] == pytest.approx(b / np.log(2), rel=1e-5)  # one byte a token
    assert found["heldout", "nats/token"] == pytest.approx(0.75 * a + 0.25 * b, rel=1e-5)
    assert found["heldout", "bits/byte"] == pytest.approx((0.75 * a + 0.25 * b) / np.log(2) / (0.75 * 2 + 0.25 * 1), rel=1e-5)


def test_window_loss_is_the_mean_of_the_last_updates() -> None:
    of = trainer()
    assert window_loss(of.losses, 0, BATCH * SHAPE.seq_len) == []
    losses = train(of)
    (window,) = window_loss(of.losses, STEPS, BATCH * SHAPE.seq_len)
    assert window.value == pytest.approx(np.mean(losses[-10:]), rel=1e-6)
    assert window.tokens == 10 * BATCH * SHAPE.seq_len


@pytest.fixture
def planned() -> PlannedRun:
    return PlannedRun("study", "study-s-1k-s0-abc", "s", 0, SHAPE, STEPS * BATCH * 24, STEPS, BATCH, 0.01, (0, 30, 60))


def write(root: Path, planned: PlannedRun, step: int) -> checkpoints.Checkpoint:
    weights = build(SHAPE, seed=step).state_dict()
    tokenizer = root / "tokenizer"
    tokenizer.mkdir(exist_ok=True)
    checkpoints.write_state(root, planned, step, {"losses": torch.full((3,), float(step))})
    return checkpoints.write(root, planned, step, weights, [], tokenizer, 0)


def resumable(root: Path, planned: PlannedRun) -> list[int]:
    return [step for step, _ in checkpoints.states(root, planned.run_id)]


def test_checkpoints_appear_whole_and_two_states_are_kept(tmp_path: Path, planned: PlannedRun) -> None:
    written = [write(tmp_path, planned, step) for step in (0, 10, 20, 30)]
    assert [c.step for c in checkpoints.completed(tmp_path, planned.run_id)] == [0, 10, 20, 30]
    assert resumable(tmp_path, planned) == [30, 20]
    assert checkpoints.saved_step(tmp_path, planned.run_id) == 30
    assert all(checkpoints.damage(c.path) is None for c in written)
    assert written[1].tokens == 10 * BATCH * 24
    assert written[1].flops == SHAPE.flops_per_token * written[1].tokens


def test_half_written_and_damaged_checkpoints_are_not_resumed_from(
    tmp_path: Path, planned: PlannedRun, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, planned, 10)
    write(tmp_path, planned, 20)
    last = checkpoints.state_directory(tmp_path, planned.run_id, 20)
    (last.parent / ".tmp-step-00000030-dead").mkdir(parents=True)
    (last.parent / "step-00000040").mkdir()  # being forgotten when a kill came
    state = last / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"?")
    assert resumable(tmp_path, planned) == [10]
    assert "does not match its hash" in caplog.text
    assert "step-00000020" in caplog.text
    write(tmp_path, planned, 15)
    assert resumable(tmp_path, planned) == [15, 10], "a damaged state is none of the two that are kept"
    write(tmp_path, planned, 20)  # the resumed run comes to that step again
    assert resumable(tmp_path, planned) == [20, 15]
    write(tmp_path, planned, 40)
    assert resumable(tmp_path, planned) == [40, 20]


def test_a_full_disk_leaves_nothing_that_looks_complete(tmp_path: Path, planned: PlannedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, planned, 10)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(EnvironmentFailure, match="No space left") as failure:
        write(tmp_path, planned, 20)
    assert "resumes" in failure.value.remedy
    assert [c.step for c in checkpoints.completed(tmp_path, planned.run_id)] == [10]
    assert not list((tmp_path / "checkpoints" / planned.run_id).glob(".tmp-*"))
