"""How gradients of micro-batches become the gradient of the global batch, over any number of ranks.

`FixedPoint` is exact: every micro-batch's gradient is rounded once to a multiple of 2^-50 and summed as integers, and
integer addition is associative. Micro-batches are the same at any world size, so the same weights come out to the last
bit whether one worker computes them or four. `Plain` sums in floating point, as usual: faster, and rounding then follows
the world size. In both the loss and a flag ride along in the gradients' one message.

Legend: n gradient elements of the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

FRACTION_BITS = 50  # a step of 9e-16; gradients of a mean loss that matter to AdamW are above its eps of 1e-8
LIMB_BITS = 26  # of the second sum of `exact_norm`: 2^36 remainders still fit
MANY = 2**24  # elements from which on there is one
AT_ONCE = 2**22  # elements that are squared at once, 8 bytes each, twice
LARGEST = 2.0**12  # of one micro-batch's gradient element or loss; sums of 2^13 still fit 63 bits; beyond it the run has diverged


class Reduction(ABC):
    """Call `add` after each micro-batch's backward pass, then `total` once."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self._parameters = parameters
        self._sizes = [p.numel() for p in parameters]

    @abstractmethod
    def add(self, loss: Tensor) -> None:
        """Take one micro-batch's gradients from `.grad`, and its loss (a scalar): its part of the global batch's mean."""

    @abstractmethod
    def forget(self) -> None:
        """Drop what was added since the last total, gradients included."""

    @abstractmethod
    def total(self, flag: int) -> tuple[Tensor, Tensor]:
        """Put the global gradient into `.grad`; (the global mean loss, the sum of all ranks' flags), scalars."""

    @abstractmethod
    def norm(self) -> Tensor:
        """The length of the global gradient, a scalar."""

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._parameters if p.grad is not None]


class Plain(Reduction):
    """Floating-point sums: gradients of a rank's passes gather in `.grad`, one all-reduce sums over ranks."""

    _loss: Tensor | None = None

    def add(self, loss: Tensor) -> None:
        """See `Reduction`."""
        self._loss = loss if self._loss is None else self._loss + loss

    def forget(self) -> None:
        """See `Reduction`."""
        self._loss = None
        for parameter in self._parameters:
            parameter.grad = None

    def total(self, flag: int) -> tuple[Tensor, Tensor]:
        """See `Reduction`."""
        loss, self._loss = self._loss, None
        assert loss is not None
        raised = torch.full((), float(flag), device=loss.device)
        if not _several_ranks():
            return loss, raised
        gradients = self._gradients()
        message = torch.cat([*(g.flatten() for g in gradients), loss[None], raised[None]])
        dist.all_reduce(message)
        pieces = torch.split(message[:-2], self._sizes)
        torch._foreach_copy_(gradients, [piece.view_as(g) for piece, g in zip(pieces, gradients, strict=True)])
        return message[-2], message[-1]

    def norm(self) -> Tensor:
        """See `Reduction`."""
        return torch.nn.utils.get_total_norm(self._gradients())


class FixedPoint(Reduction):
    """Integer sums: the same bits at any world size. Twice the message of `Plain`, and eight bytes an element held."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        super().__init__(parameters)
        # [n] gradients, then the loss, then counts: micro-batches out of range, flags raised.
        self._sum = torch.zeros(sum(self._sizes) + 3, dtype=torch.int64, device=parameters[0].device)
        self._total: Tensor | None = None  # all gradients in a row, until `norm` has been asked for

    def add(self, loss: Tensor) -> None:
        """See `Reduction`; empties `.grad`."""
        values = torch.cat([*(g.flatten() for g in self._gradients()), loss[None]])
        for parameter in self._parameters:
            parameter.grad = None
        in_range = values.abs().max() < LARGEST  # False for NaN too, which has no integer
        self._sum[:-2] += (values * 2.0**FRACTION_BITS).to(torch.int64)
        self._sum[-2] += ~in_range

    def forget(self) -> None:
        """See `Reduction`."""
        self._sum.zero_()
        for parameter in self._parameters:
            parameter.grad = None

    def total(self, flag: int) -> tuple[Tensor, Tensor]:
        """See `Reduction`; where a micro-batch was out of range, loss and gradients are NaN."""
        self._sum[-1] = int(flag)
        if _several_ranks():
            dist.all_reduce(self._sum)
        scale = torch.where(self._sum[-2] > 0, torch.nan, 2.0**-FRACTION_BITS)
        values = self._sum[:-2].to(torch.float32) * scale
        raised = self._sum[-1].clone()
        self._sum.zero_()
        self._total = values[:-1]
        for parameter, piece in zip(self._parameters, torch.split(self._total, self._sizes), strict=True):
            parameter.grad = piece.view_as(parameter)
        return values[-1], raised

    def doubt(self, out_of_range: Tensor | int) -> None:
        """Count micro-batches whose gradients, summed elsewhere, were out of range."""
        self._sum[-2] += out_of_range

    def norm(self) -> Tensor:
        """See `Reduction`."""
        total, self._total = self._total, None
        assert total is not None
        return exact_norm([total], [], len(total))


def exact_norm(everywhere: Sequence[Tensor], spread: Sequence[Tensor], elements: int) -> Tensor:
    """The length of a float32 vector of so many elements, to the same bits however ranks share it; NaN where an element is not finite.

    `everywhere` are those that every rank has, `spread` this rank's own of the others. Squares are cut off to multiples of one
    number, which follows from the largest element and how many there are, and summed as integers. What is cut off adds up to
    at most elements^2 / 2^62 of the largest square; from 2^24 elements on a second sum takes it, down to 2^26 times less.
    """
    device = everywhere[0].device
    largest = torch.stack([torch.zeros((), device=device), *(t.abs().max() for t in (*everywhere, *spread) if t.numel())]).max()
    shared = bool(spread) and _several_ranks()
    if shared:
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    # An element times `scale` is below 2^k with elements * 2^2k <= 2^62.
    scale = torch.exp2(((62 - (elements - 1).bit_length()) // 2 - torch.frexp(largest).exponent).double())
    sums = torch.zeros(1 if elements < MANY else 2, dtype=torch.int64, device=device)
    _add_squares(sums, spread, scale)
    if shared:
        dist.all_reduce(sums)
    _add_squares(sums, everywhere, scale)
    square = sums[0].double() if len(sums) == 1 else sums[0] + sums[1] * 2.0**-LIMB_BITS
    return torch.where(torch.isfinite(largest), square.sqrt() / scale, torch.nan).to(torch.float32)


def _add_squares(sums: Tensor, tensors: Sequence[Tensor], scale: Tensor) -> None:
    for part in (part for tensor in tensors for part in torch.split(tensor.flatten(), AT_ONCE)):
        square = part.double().mul_(scale).square_()
        whole = square.to(torch.int64)
        sums[0] += whole.sum()
        if len(sums) > 1:
            sums[1] += square.sub_(whole).mul_(2.0**LIMB_BITS).to(torch.int64).sum()


class Agreement:
    """The sum of all ranks' flags at a step, read without making the device wait.

    Every rank sees the same sums, so all act at the same step. On a device a sum is read two steps late, when it has
    long arrived; on a CPU at once.
    """

    def __init__(self, device: torch.device) -> None:
        self._lag = 2 if device.type == "cuda" else 0
        self._counts: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def reached(self, raised: Tensor) -> int:
        """Take this step's sum (a scalar); the sum of `lag` steps ago."""
        if not self._lag:
            return int(raised)
        copy = torch.empty((), dtype=raised.dtype, pin_memory=True)
        copy.copy_(raised, non_blocking=True)
        event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._counts.append((copy, event))
        if len(self._counts) <= self._lag:
            return 0
        count, arrived = self._counts.popleft()
        if arrived is not None:
            arrived.synchronize()  # two steps are still queued behind it, so the device does not run dry
        return int(count)


def _several_ranks() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1
