"""Optimizers by parameter role: which rate each matrix gets, and what moves it.

`Muon`, `Lion` and `MomentumSGD` move all matrices of one shape at once, since small models spend their time on launches. Every
optimizer can be told on the device, without anybody waiting for it, that an update is not sound and must change nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from losslens.models import roles
from losslens.specs import OptimizerSpec


class Stacked(torch.optim.Optimizer):
    """An optimizer with one momentum, kept as one tensor [members, *shape] for each group of equal shapes.

    `sound` is a scalar: 1 as a rule; 0 leaves weights and momentum as they are, bit by bit.
    """

    sound: Tensor

    def __init__(self, groups: list[dict[str, Any]], **defaults: Any) -> None:
        by_shape: dict[tuple[int, torch.Size], dict[str, Any]] = {}
        for number, group in enumerate(groups):
            for parameter in group["params"]:
                shape = getattr(parameter, "whole", parameter.shape)  # of the matrix that a rank has some rows of: the same on every rank
                by_shape.setdefault((number, shape), {**group, "params": []})["params"].append(parameter)
        super().__init__(list(by_shape.values()), defaults)

    @abstractmethod
    def direction(self, gradient: Tensor, momentum: Tensor, group: dict[str, Any]) -> Tensor:
        """What to subtract from the weights, times the rate; updates the momentum, by nothing where `self.sound` is 0."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix."""
        for group in self.param_groups:
            members: list[Tensor] = group["params"]
            gradient = torch.stack([p.grad for p in members if p.grad is not None])
            gradient = torch.where(self.sound > 0, gradient, 0.0)  # not a product: 0 times NaN is NaN
            state = self.state[members[0]]  # one momentum for the whole stack, kept under its first member
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(gradient)
            update = self.direction(gradient, state["momentum"], group).mul_(self.sound)
            if group["weight_decay"]:
                torch._foreach_mul_(members, 1 - group["lr"] * group["weight_decay"] * self.sound)
            torch._foreach_add_(members, list(update.unbind()), alpha=-group["lr"])


class Muon(Stacked):
    """Momentum orthogonalised by five Newton-Schulz steps (Jordan et al. 2024).

    The same rule as torch.optim.Muon, which treats matrices one by one and always iterates in bfloat16; `dtype` is that of
    the iteration's products: float32 where a study is to agree with itself across world sizes, since the iteration magnifies
    rounding.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float, dtype: torch.dtype) -> None:
        super().__init__(groups, lr=0.0, weight_decay=0.0, momentum=momentum)
        self._dtype = dtype

    def direction(self, gradient: Tensor, momentum: Tensor, group: dict[str, Any]) -> Tensor:
        """See `Stacked`."""
        momentum.lerp_(gradient, (1 - group["momentum"]) * self.sound)
        mixed = gradient.lerp(momentum, group["momentum"])  # Nesterov
        update = orthogonalise(mixed.flatten(0, -3), self._dtype).view_as(mixed)  # experts are matrices each for itself
        rows, columns = update.shape[-2:]
        scale: float = max(1.0, rows / columns) ** 0.5
        return update.mul_(scale)


class Lion(Stacked):
    """The sign of a mixture of gradient and momentum (Chen et al. 2023, arXiv 2302.06675, algorithm 2)."""

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        super().__init__(groups, lr=0.0, weight_decay=0.0, betas=betas)

    def direction(self, gradient: Tensor, momentum: Tensor, group: dict[str, Any]) -> Tensor:
        """See `Stacked`."""
        now, later = group["betas"]
        update = gradient.lerp(momentum, now).sign_()
        momentum.lerp_(gradient, (1 - later) * self.sound)
        return update


class MomentumSGD(Stacked):
    """Stochastic gradient descent with heavy-ball momentum as torch.optim.SGD has it, and decoupled weight decay."""

    def __init__(self, groups: list[dict[str, Any]], momentum: float) -> None:
        super().__init__(groups, lr=0.0, weight_decay=0.0, momentum=momentum)

    def direction(self, gradient: Tensor, momentum: Tensor, group: dict[str, Any]) -> Tensor:
        """See `Stacked`."""
        momentum.mul_(1 - (1 - group["momentum"]) * self.sound).add_(gradient)
        return momentum.clone()


def orthogonalise(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Nearest (semi-)orthogonal matrices, roughly: [n, rows, columns] -> same shape, float32.

    Quintic Newton-Schulz iteration with the coefficients of Jordan et al. 2024, which push singular values
    into about [0.7, 1.2] in five steps.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    update: Tensor = x.transpose(1, 2) if tall else x
    return update.float()


def rates(spec: OptimizerSpec, peak_lr: float, width: int) -> dict[str, float]:
    """Peak rate by role. `peak_lr` is that of hidden matrices at this width, moved from the reference width already.

    The others follow muP (Yang et al. 2022, arXiv 2203.03466, table 3), n being width / reference width. Under AdamW and Lion,
    whose updates have a size of their own, the head's falls as 1 / n, as that of hidden matrices does unless a study sets
    another exponent, and embeddings' and gains' stay. Under SGD the head's falls as 1 / n, embeddings' and gains' grow as n.
    """
    n = width / spec.reference_width if spec.reference_width else 1.0
    if spec.name == "sgd" and not spec.adam_lr:
        return {"embedding": spec.lr * n * spec.embedding_factor, "gain": spec.lr * n, "head": spec.lr / n, "hidden": peak_lr}
    if spec.name in ("adamw", "lion") and not (spec.name == "lion" and spec.adam_lr):
        plain, head = spec.adam_lr or spec.lr, peak_lr
    else:
        plain = spec.adam_lr or peak_lr
        head = plain / n
    return {"embedding": plain * spec.embedding_factor, "gain": plain, "head": head, "hidden": peak_lr}


class Optimizers:
    """All optimizers of one model as one: `step(multiplier)`, state as named tensors."""

    def __init__(self, model: nn.Module, spec: OptimizerSpec, *, peak_lr: float, width: int, precision: str = "bf16") -> None:
        by_role = {role: [p for _, p in members] for role, members in roles(model).items()}
        peaks = rates(spec, peak_lr, width)
        groups: list[dict[str, Any]] = [
            {"params": by_role[role], "lr": peaks[role], "weight_decay": spec.weight_decay if role == "hidden" else 0.0}
            for role in ("embedding", "head", "gain", "hidden")
            if by_role[role]
        ]
        hidden = [group for group in groups if group["params"] is by_role["hidden"]]
        rest = [group for group in groups if group["params"] is not by_role["hidden"]]
        self._members: list[torch.optim.Optimizer] = []
        if spec.name == "muon":
            self._members.append(Muon(hidden, spec.momentum, torch.bfloat16 if precision == "bf16" else torch.float32))
        elif spec.name != "adamw":
            own = hidden if spec.adam_lr else groups
            self._members.append(Lion(own, spec.betas) if spec.name == "lion" else MomentumSGD(own, spec.momentum))
        with_adam = groups if spec.name == "adamw" else rest if spec.name == "muon" or spec.adam_lr else []
        if with_adam:
            self._members.append(torch.optim.AdamW(with_adam, lr=peaks["gain"], betas=spec.betas, eps=spec.eps, fused=True))
        self._peaks = [[group["lr"] for group in member.param_groups] for member in self._members]

    def step(self, multiplier: float, sound: Tensor | None = None) -> None:
        """One update with every group's rate at `multiplier` of its peak; none where `sound`, a scalar on the device, is false."""
        for member, peaks in zip(self._members, self._peaks, strict=True):
            for group, peak in zip(member.param_groups, peaks, strict=True):
                group["lr"] = peak * multiplier
            first = member.param_groups[0]["params"][0]
            weight = torch.ones((), device=first.device) if sound is None else sound.to(torch.float32)
            if isinstance(member, Stacked):
                member.sound = weight
            else:
                member.found_inf = 1 - weight  # type: ignore[attr-defined]  # fused kernels read it, as torch.amp.GradScaler sets it
            member.step()

    def state(self) -> dict[str, Tensor]:
        """Every state tensor under the name `<optimizer>.<parameter>.<key>`."""
        return {
            f"{i}.{index}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
            for i, member in enumerate(self._members)
            for index, entry in member.state_dict()["state"].items()
            for key, value in entry.items()
        }

    def owner(self, name: str) -> Tensor:
        """The parameter that a tensor of `state` belongs to; of several that share it, the first."""
        member, index, _ = name.split(".", 2)
        parameters = [p for group in self._members[int(member)].param_groups for p in group["params"]]
        return parameters[int(index)]  # type: ignore[no-any-return]

    def load(self, saved: dict[str, Tensor]) -> None:
        """Put the tensors of `state` back; the model and the spec must be the same."""
        for i, member in enumerate(self._members):
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in saved.items():
                owner, index, key = name.split(".", 2)
                if int(owner) == i:
                    state.setdefault(int(index), {})[key] = value.clone()
            member.load_state_dict({"state": state, "param_groups": member.state_dict()["param_groups"]})
