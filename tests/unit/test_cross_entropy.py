"""The head's loss in blocks: the same number and gradients as the whole product, without the whole product's memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from losslens.models import cross_entropy
from losslens.models.cross_entropy import linear_cross_entropy

N, D, V = 50, 12, 37


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes how many elements the largest result has."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple) else (result,)
        self.elements = max(self.elements, *(each.numel() for each in made if isinstance(each, Tensor)), 0)
        return result


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")


def numbers(function: Callable[..., Tensor], dtype: torch.dtype, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = (scale * torch.randn(N, D, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    targets = torch.randint(0, V, (N,), generator=generator)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = function(hidden, weight, targets)
    (loss / 7).backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert weight.grad is not None
    return loss.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("rows", [1, 7, 25, 49])
def test_blocks_give_the_loss_and_gradients_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tolerance: float, rows: int
) -> None:
    monkeypatch.setattr(cross_entropy, "CPU_BLOCK", rows * V * 4)
    for ours, theirs in zip(numbers(linear_cross_entropy, dtype), numbers(plain, dtype), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


def test_a_target_whose_share_is_zero_in_float32_still_has_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CPU_BLOCK", 4 * V)
    ours, theirs = numbers(linear_cross_entropy, torch.float32, scale=300.0), numbers(plain, torch.float32, scale=300.0)
    assert float(theirs[0]) / N > 110  # nats; exp(-110) is no float32
    torch.testing.assert_close(ours[0], theirs[0])


def test_no_tensor_is_as_large_as_the_logits_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CPU_BLOCK", 5 * V * 4)
    with Largest() as seen:
        numbers(linear_cross_entropy, torch.float32)
    assert seen.elements <= max(N * D, V * D)
    with Largest() as seen:
        numbers(plain, torch.float32)
    assert seen.elements == N * V
