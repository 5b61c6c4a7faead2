"""How gradients of micro-batches become the gradient of the global batch where every rank keeps some rows of each.

`ExactShards` sums integers, as `reduction.FixedPoint` does for whole matrices and to the same bits: FSDP hands over a block's
gradient when it is complete, it is rounded to a multiple of 2^-50, summed over ranks as integers, and every rank adds its rows to
what micro-batches before have given. `PlainShards` leaves the sums to FSDP, in float32. Gains, which every rank has, the loss and
the flags take the way of `reduction.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
from torch.distributed.tensor import DTensor

from losslens.training.reduction import FRACTION_BITS, LARGEST, FixedPoint, Plain, Reduction, exact_norm

if TYPE_CHECKING:
    from losslens.training.sharding import Owned


MESSAGE = 2**24  # integers that a rank sends at once, eight bytes each: a group's gradient is never held as integers whole


class ShardSums(Reduction):
    """A reduction over what ranks own. Its `total` leaves gradients with the owned parameters."""

    def __init__(self, owned: Owned, groups: list[FSDPModule]) -> None:
        super().__init__(list(owned.parameters()))
        self._spread = list(owned.spread().values())
        spread = {id(rows) for _, rows in self._spread}
        self._everywhere = [p for p in self._parameters if id(p) not in spread]


class PlainShards(ShardSums):
    """Floating-point sums: rounding follows the world size."""

    def __init__(self, owned: Owned, groups: list[FSDPModule]) -> None:
        super().__init__(owned, groups)
        self._rest = Plain(self._everywhere)
        for group in groups:
            group.set_force_sum_reduction_for_comms(True)
            group.set_gradient_divide_factor(1.0)  # losses are divided by the global token count already

    def add(self, loss: Tensor) -> None:
        """See `Reduction`."""
        self._rest.add(loss)

    def forget(self) -> None:
        """See `Reduction`."""
        self._rest.forget()
        for part, _ in self._spread:
            part.grad = None

    def total(self, flag: int) -> tuple[Tensor, Tensor]:
        """See `Reduction`."""
        answer = self._rest.total(flag)
        for part, rows in self._spread:
            assert isinstance(part.grad, DTensor)
            rows.grad, part.grad = part.grad.to_local(), None
        return answer

    def norm(self) -> Tensor:
        """See `Reduction`."""
        square = torch.nn.utils.get_total_norm([rows.grad for _, rows in self._spread if rows.grad is not None]).square()
        dist.all_reduce(square)
        return (square + self._rest.norm().square()).sqrt()


class ExactShards(ShardSums):
    """Integer sums: the same bits at any world size."""

    def __init__(self, owned: Owned, groups: list[FSDPModule]) -> None:
        super().__init__(owned, groups)
        self._rest = FixedPoint(self._everywhere)
        self._channels = [_Channel() for _ in groups]
        for group, channel in zip(groups, self._channels, strict=True):
            group.set_custom_reduce_scatter(channel)
        self._totals: dict[_Channel, Tensor] = {}  # gradients of each group's rows, until `norm` has been asked for
        self._elements = sum(p.numel() for p in (*(part for part, _ in self._spread), *self._everywhere))
        self._places: list[tuple[_Channel, int]] = []  # of each spread parameter: its group, and where its rows begin there

    def add(self, loss: Tensor) -> None:
        """See `Reduction`."""
        if not self._places:
            self._places = [self._place(part) for part, _ in self._spread]
        for part, _ in self._spread:
            part.grad = None
        self._rest.add(loss)

    def _place(self, part: nn.Parameter) -> tuple[_Channel, int]:
        """Where FSDP cut a parameter's gradient out of what its group's channel handed back."""
        assert isinstance(part.grad, DTensor)
        rows = part.grad.to_local()
        channel = next(c for c in self._channels if c.handed_back == rows.untyped_storage()._cdata)
        return channel, int(rows.storage_offset())

    def forget(self) -> None:
        """See `Reduction`."""
        self._rest.forget()
        for channel in self._channels:
            channel.forget()
        for part, _ in self._spread:
            part.grad = None

    def total(self, flag: int) -> tuple[Tensor, Tensor]:
        """See `Reduction`."""
        for channel in self._channels:
            self._rest.doubt(channel.out_of_range)
        loss, raised = self._rest.total(flag)
        scale = torch.where(loss.isnan(), torch.nan, 2.0**-FRACTION_BITS)
        self._totals = {channel: channel.sum.to(torch.float32) * scale for channel in self._channels if channel.sum is not None}
        for (_, rows), (channel, first) in zip(self._spread, self._places, strict=True):
            rows.grad = self._totals[channel][first : first + rows.numel()].view_as(rows)
        for channel in self._channels:
            channel.forget()
        return loss, raised

    def norm(self) -> Tensor:
        """See `Reduction`."""
        spread, self._totals = list(self._totals.values()), {}
        everywhere = [p.grad for p in self._everywhere if p.grad is not None]
        return exact_norm(everywhere, spread, self._elements)


class _Channel(ReduceScatter):
    """Takes the place of a group's reduce-scatter: sums integers, and hands zeros back."""

    def __init__(self) -> None:
        self.sum: Tensor | None = None  # of this rank's rows, padded as FSDP pads them
        self.out_of_range: Tensor | int = 0  # how many of this rank's own micro-batches
        self.handed_back = 0  # the memory that FSDP cuts its gradients out of

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """As FSDP does it by default."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False) -> None:
        """`input_tensor` [world x n] float32 is this rank's gradient of all rows, `output_tensor` [n] for its own; both are scratch."""
        low, high = torch.aminmax(input_tensor)
        self.out_of_range = self.out_of_range + ~((low > -LARGEST) & (high < LARGEST))  # also for NaN
        if self.sum is None:
            self.sum = torch.zeros_like(output_tensor, dtype=torch.int64)
        of_all = input_tensor.mul_(2.0**FRACTION_BITS).view(-1, len(output_tensor))
        at_once = max(1, MESSAGE // len(of_all))
        for values, place in zip(torch.split(of_all, at_once, 1), torch.split(self.sum, at_once), strict=True):
            own = torch.empty_like(place)
            dist.reduce_scatter_single(own, values.to(torch.int64, memory_format=torch.contiguous_format).view(-1), group=group)
            place += own
        self.handed_back = output_tensor.untyped_storage()._cdata
        output_tensor.zero_()

    def forget(self) -> None:
        """Begin the next sum."""
        self.sum, self.out_of_range = None, 0
