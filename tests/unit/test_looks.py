"""When training goes wrong: skipped updates, spikes, slow ranks, too little memory; at any world size the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from losslens.errors import EnvironmentFailure, TrainingDiverged
from losslens.families import Shape
from losslens.models import build
from losslens.specs import OptimizerSpec, ScheduleSpec, TrainingSpec
from losslens.training import looks
from losslens.training.heldout import window_loss
from losslens.training.loop import Trainer, run
from losslens.training.optimizers import Optimizers
from losslens.training.passes import Passes, smaller
from losslens.training.saving import _finite
from losslens.training.snapshot import load_state, state_of
from losslens.training.watch import Watch

SHAPE = Shape("paper", 61, 32, 96, 2, 1, 2, 24, 100.0, tie_embeddings=False)
STEPS, BATCH = 50, 6


def trainer(micro_batch: int | None = None, name: str = "muon", **changes: Any) -> Trainer:
    optimizer = OptimizerSpec(name=name, lr=0.01)  # type: ignore[arg-type]
    settings = {"precision": "float32", "schedule": ScheduleSpec(warmup_steps=5, average=0.9), "optimizer": optimizer, **changes}
    spec = TrainingSpec(global_batch=BATCH, **settings)
    model = build(SHAPE, seed=0)
    optimizers = Optimizers(model, spec.optimizer, peak_lr=0.01, width=32, precision="float32")
    return Trainer(model, optimizers, spec, STEPS, BATCH, SHAPE.seq_len, torch.device("cpu"), micro_batch)


def rows(step: int) -> np.ndarray:
    return (np.random.default_rng(step).integers(0, 61, (BATCH, 1)) + np.arange(25)) % 61


def poison(of: Trainer, at: set[int], value: float = math.nan) -> None:
    """Make the loss not finite in the updates of these steps (from 1)."""
    true = of.nll_sum

    def nll_sum(tokens: torch.Tensor, lane: int = 0) -> torch.Tensor:
        loss = true(tokens)
        return loss * value if of.step + 1 in at else loss

    of.nll_sum = nll_sum  # type: ignore[method-assign]


def train(of: Trainer) -> Trainer:
    run(of, (rows(step) for step in range(of.step, STEPS)), Watch())
    return of


@pytest.mark.parametrize("micro_batch", [None, 4])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_update_that_is_not_finite_is_skipped_and_training_goes_on(micro_batch: int | None, value: float) -> None:
    of = trainer(micro_batch)
    poison(of, {7}, value)
    for step in range(7):
        before = [p.detach().clone() for p in of.parameters]
        of.update(torch.from_numpy(rows(step)))
    assert all(torch.equal(a, b) for a, b in zip(before, of.parameters, strict=True))
    of.check()
    assert of.look is not None
    assert of.look.skipped == (7,)
    assert of.seen_loss == of.losses[5].item()
    train(of)
    assert all(bool(torch.isfinite(p).all()) for p in [*of.parameters, *of.average])
    assert of.losses[-1] < of.losses[0] - 0.5
    assert not torch.isfinite(of.losses[6])
    (window,) = window_loss(of.losses, of.step, BATCH * of.seq_len)
    assert math.isfinite(window.value)


def test_a_skipped_update_leaves_a_resumed_run_the_same() -> None:
    undisturbed = trainer(4)
    poison(undisturbed, {3, 30})
    train(undisturbed)
    first = trainer(4)
    poison(first, {3, 30})
    for step in range(20):
        first.update(torch.from_numpy(rows(step)))
    second = trainer(4)
    poison(second, {3, 30})
    load_state(second, 20, {name: tensor.clone() for name, tensor in state_of(first).items()})
    train(second)
    assert torch.equal(second.losses.nan_to_num(), undisturbed.losses.nan_to_num())
    assert all(torch.equal(a, b) for a, b in zip(second.parameters, undisturbed.parameters, strict=True))
    assert second.look is not None
    assert second.look.skipped == (30,)  # not 3, which was told before the resume


def test_too_many_skipped_updates_end_the_run_and_name_the_first() -> None:
    of = trainer(most_skipped=2)
    poison(of, {4, 9})
    train(of)
    of = trainer(most_skipped=2)
    poison(of, {4, 9, 11})
    with pytest.raises(TrainingDiverged, match="the loss is nan at step 4, and 3 updates were skipped by step 11"):
        train(of)


def test_a_gradient_that_is_not_finite_counts_as_skipped() -> None:
    losses, norms = torch.full((30,), 2.0), torch.ones(30)
    norms[12] = math.inf
    assert looks.new_skips(losses, norms, since=10) == (13,)
    assert looks.new_skips(losses, norms, since=13) == ()
    with pytest.raises(TrainingDiverged, match="the gradient norm is inf at step 13"):
        looks.refuse_divergence(losses, norms, most_skipped=0, rise=3.0, window=25)


def test_spikes_stand_against_the_median_before_them() -> None:
    norms = torch.ones(60)
    norms[5], norms[30], norms[40], norms[41] = 50.0, 50.0, 9.0, math.nan
    assert looks.new_spikes(norms, 0) == (looks.Spike(31, 50.0, 1.0),)  # step 6 has no median yet
    assert looks.new_spikes(norms, 31) == ()


@given(st.lists(st.floats(0.01, 10.0), min_size=1, max_size=9))
def test_the_median_rank_is_never_slow_and_whoever_is_slow_is_slower_than_half(seconds: list[float]) -> None:
    slow = looks.slow_ranks(seconds, {rank: f"node{rank}" for rank in range(len(seconds))})
    assert all(each.seconds > looks.SLOW * each.median and each.host == f"node{each.rank}" for each in slow)
    assert len(slow) <= len(seconds) // 2


def test_of_two_ranks_the_slow_one_is_named() -> None:
    assert looks.slow_ranks([0.1, 0.5], {0: "a", 1: "b"}) == (looks.SlowRank(1, "b", 0.5, 0.1),)


def short_of_memory(of: Trainer, holds: int) -> list[int]:
    """Let passes of more than `holds` sequences fail as CUDA's allocator does, half-way through; the sizes tried."""
    true, tried = of._pass, list[int]()

    def one_pass(lane: int, piece: torch.Tensor) -> torch.Tensor:
        tried.append(len(piece))
        if len(piece) > holds:
            true(lane, piece[:1])
            raise torch.OutOfMemoryError("CUDA out of memory")
        return true(lane, piece)

    of._pass = one_pass  # type: ignore[method-assign,assignment]
    return tried


def test_passes_shrink_until_they_fit_and_the_update_is_the_same() -> None:
    plenty, short = trainer(), trainer()
    tried = short_of_memory(short, holds=2)
    for step in range(3):
        for of in (plenty, short):
            of.update(torch.from_numpy(rows(step)))
    assert tried == [6, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    assert short.passes.most == 2
    torch.testing.assert_close(short.losses, plenty.losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(short.grad_norms, plenty.grad_norms, rtol=1e-4, atol=1e-5)


def test_a_micro_batch_is_never_changed_in_silence_but_the_error_says_which_fits() -> None:
    of = trainer(micro_batch=4)
    short_of_memory(of, holds=1)
    with pytest.raises(EnvironmentFailure, match="a micro-batch of 4 sequences; 1 fit") as failure:
        of.update(torch.from_numpy(rows(0)))
    assert "training.micro_batch to 1" in failure.value.remedy


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_a_device_that_holds_nothing_is_said_to(micro_batch: int | None) -> None:
    of = trainer(micro_batch)
    short_of_memory(of, holds=0)
    with pytest.raises(EnvironmentFailure, match="does not hold one sequence of 24 tokens"):
        of.update(torch.from_numpy(rows(0)))


@given(st.integers(1, 200), st.integers(1, 200))
def test_passes_cover_the_share_in_order_whatever_fits(share: int, holds: int) -> None:
    done: list[int] = []

    def one_pass(piece: torch.Tensor) -> None:
        if len(piece) > holds:
            raise torch.OutOfMemoryError
        done.extend(piece[:, 0].tolist())

    passes = Passes(None)
    forget: Callable[[], None] = done.clear
    passes.go(torch.arange(share)[:, None], one_pass, forget)
    assert done == list(range(share))
    assert passes.most is None or passes.most <= holds
    assert smaller(1) is None


def test_what_a_skipped_update_has_no_number_for_is_null() -> None:
    assert [_finite(value) for value in (1.5, math.nan, math.inf)] == [1.5, None, None]
