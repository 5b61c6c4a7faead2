"""Optimizers against those of torch or their papers' rule, rates by role, and updates that must change nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from losslens.families import Shape
from losslens.models import build
from losslens.specs import OptimizerSpec
from losslens.training.optimizers import Lion, MomentumSGD, Muon, Optimizers, rates

SHAPE = Shape("paper", 61, 32, 96, 2, 1, 2, 24, 100.0, tie_embeddings=False)
SHAPES = [(8, 8), (8, 20), (20, 8), (8, 8), (20, 8)]
ALL = ("adamw", "muon", "lion", "sgd")


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def steps(optimizer: torch.optim.Optimizer, members: list[torch.nn.Parameter], count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        for member in members:
            member.grad = torch.randn(member.shape, generator=generator)
        optimizer.step()
    return [member.detach() for member in members]


def ours(optimizer: type[Any], members: list[torch.nn.Parameter], rate: float, decay: float, *settings: Any) -> Any:
    made = optimizer([{"params": members, "lr": rate, "weight_decay": decay}], *settings)
    made.sound = torch.ones(())
    return made


def test_muon_is_the_muon_of_torch() -> None:
    """Theirs takes matrices one by one; in bfloat16 norms and products of stacked matrices round differently."""
    mine, theirs = parameters(), parameters()
    expected = steps(torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95), theirs)
    found = steps(ours(Muon, mine, 0.02, 0.1, 0.95, torch.bfloat16), mine)
    for a, b, start in zip(found, expected, parameters(), strict=True):
        assert (a - b).abs().max() < 0.05 * (b - start).abs().max()


def test_sgd_is_the_sgd_of_torch_with_decoupled_decay() -> None:
    mine, theirs = parameters(), parameters()
    expected = steps(torch.optim.SGD(theirs, lr=0.02, momentum=0.9), theirs)
    found = steps(ours(MomentumSGD, mine, 0.02, 0.0, 0.9), mine)
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-7) for a, b in zip(found, expected, strict=True))
    decayed = parameters()
    optimizer = ours(MomentumSGD, decayed, 0.1, 0.5, 0.9)
    for member in decayed:
        member.grad = torch.zeros_like(member)
    optimizer.step()
    assert all(torch.allclose(a, 0.95 * b) for a, b in zip(decayed, parameters(), strict=True))


def test_lion_follows_its_algorithm() -> None:
    """Algorithm 2 of arXiv 2302.06675, written out for one matrix."""
    mine = parameters()
    found = steps(ours(Lion, mine, 0.02, 0.1, (0.9, 0.99)), mine)
    expected, momenta = [p.detach().clone() for p in parameters()], [torch.zeros(shape) for shape in SHAPES]
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        for weight, momentum in zip(expected, momenta, strict=True):
            gradient = torch.randn(weight.shape, generator=generator)
            update = (0.9 * momentum + 0.1 * gradient).sign()
            weight -= 0.02 * (update + 0.1 * weight)
            momentum.mul_(0.99).add_(0.01 * gradient)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ALL)
def test_an_update_that_is_not_sound_changes_no_bit(name: str) -> None:
    model = build(SHAPE, seed=0)
    optimizers = Optimizers(model, OptimizerSpec(name=name), peak_lr=0.01, width=32)  # type: ignore[arg-type]

    def step(gradient: float, sound: bool) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizers.step(1.0, torch.tensor(sound))

    def everything() -> dict[str, torch.Tensor]:
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        return weights | {name: value.clone() for name, value in optimizers.state().items()}

    step(math.nan, sound=False)  # before there is any state: what is made then must not stay
    step(0.3, sound=True)
    before = everything()
    step(math.nan, sound=False)
    step(math.inf, sound=False)
    after = everything()
    assert before.keys() == after.keys()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    step(0.3, sound=True)
    assert not any(torch.equal(before[key], value) for key, value in everything().items() if key in dict(model.named_parameters()))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("adam_lr", [None, 0.004])
def test_every_parameter_moves_and_states_go_round(name: str, adam_lr: float | None) -> None:
    spec = OptimizerSpec(name=name, adam_lr=adam_lr)  # type: ignore[arg-type]
    models = [build(SHAPE, seed=0) for _ in range(2)]
    first, second = (Optimizers(model, spec, peak_lr=0.01, width=32) for model in models)
    start = [p.detach().clone() for p in models[0].parameters()]
    for round_ in range(3):
        for model in models:
            for parameter in model.parameters():
                parameter.grad = torch.cos(torch.arange(parameter.numel(), dtype=torch.float32) + round_).view_as(parameter)
        first.step(1.0)
        if round_ < 2:
            second.step(1.0)
    assert not any(torch.equal(a, b) for a, b in zip(start, models[0].parameters(), strict=True))
    resumed = Optimizers(models[1], spec, peak_lr=0.01, width=32)
    resumed.load({key: value.clone() for key, value in second.state().items()})
    resumed.step(1.0)
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models), strict=True))


def test_rates_by_role_and_width() -> None:
    """At four times the reference width; muP's table 3."""

    def at(name: str, peak_lr: float, **settings: Any) -> dict[str, float]:
        return rates(OptimizerSpec(name=name, lr=0.01, reference_width=32, **settings), peak_lr, 128)  # type: ignore[arg-type]

    assert at("adamw", 0.0025) == {"embedding": 0.01, "gain": 0.01, "head": 0.0025, "hidden": 0.0025}
    assert at("lion", 0.0025) == at("adamw", 0.0025)
    assert at("sgd", 0.01) == {"embedding": 0.04, "gain": 0.04, "head": 0.0025, "hidden": 0.01}
    assert at("muon", 0.01, adam_lr=0.008, embedding_factor=2.0) == {"embedding": 0.016, "gain": 0.008, "head": 0.002, "hidden": 0.01}
    assert at("sgd", 0.01, adam_lr=0.008) == {"embedding": 0.008, "gain": 0.008, "head": 0.002, "hidden": 0.01}


@pytest.mark.parametrize(("name", "exponent"), [("adamw", 1.0), ("lion", 1.0), ("sgd", 0.0), ("muon", 0.0)])
def test_the_exponent_of_width_follows_the_optimizer_unless_set(name: str, exponent: float) -> None:
    assert OptimizerSpec(name=name).exponent() == exponent  # type: ignore[arg-type]
    assert OptimizerSpec(name=name, width_exponent=0.75).exponent() == 0.75  # type: ignore[arg-type]


def test_the_first_logits_fall_as_the_root_of_the_width() -> None:
    """What lets a rate carry over begins with the start (muP: a head of variance 1 / width^2)."""
    spreads = []
    for width in (32, 64, 128):
        shape = Shape("paper", 61, width, 3 * width, 2, 1, 2, 24, 100.0, tie_embeddings=False)
        model = build(shape, seed=0, initialisation="fan_in")
        with torch.no_grad():
            spreads.append(model(torch.arange(24)[None] % 61).std().item() * math.sqrt(width))
    assert max(spreads) / min(spreads) < 1.2
