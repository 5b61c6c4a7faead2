"""Cross-entropy of a linear head without the logits of all rows at once, the largest tensor in the training of a small model.

Gradients are made in the forward pass, a block of rows at a time, while the block's logits are there, so that no product is
computed twice (as Liger Kernel does, arXiv 2410.10989, section 3.2). torch's `linear_cross_entropy` with chunks (2.13) works
alike; on a CPU it takes three times as long as the plain product and loss, this as long (tests/bench/bench_head.py).

Legend: N rows, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Bytes of float32 logits held at once: enough rows for products at full speed.
CPU_BLOCK = 64 << 20
GPU_BLOCK = 1 << 29


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Sum of -log softmax(hidden weight^T)[target] over rows in nats, float32; `hidden` [N, D], `weight` [V, D], `targets` [N].

    Products are computed in autocast's type, or in that of `hidden`; softmax and sums in float32. Logits that fit into a block
    whole take torch's own way.
    """
    V = len(weight)
    block = max(1, (CPU_BLOCK if hidden.device.type == "cpu" else GPU_BLOCK) // (4 * V))
    if len(hidden) <= block:
        return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    total: Tensor = _InBlocks.apply(hidden, weight, targets, block)  # type: ignore[no-untyped-call]
    return total


class _InBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, block: int) -> Tensor:
        matrix = weight.to(hidden.dtype)
        total = hidden.new_zeros((), dtype=torch.float32)
        by_hidden, by_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            parts = (torch.split(whole, block) for whole in (hidden, targets[:, None], by_hidden))
            for rows, target, place in zip(*parts, strict=True):
                logits = (rows @ matrix.t()).float()
                highest, where = logits.max(-1, keepdim=True)
                share = logits.softmax(-1)
                # The highest share is at least 1/V, so its logarithm, unlike the target's, is always a number.
                total += (highest - share.gather(1, where).log() - logits.gather(1, target)).sum()
                slope = share.scatter_add_(1, target, share.new_full((), -1.0).expand_as(target)).to(hidden.dtype)
                torch.mm(slope, matrix, out=place)
                by_weight += slope.t() @ rows
                del logits, share, slope  # before the next block's are made
        ctx.save_for_backward(by_hidden, by_weight)
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None, None]:
        by_hidden, by_weight = ctx.saved_tensors
        # Rounded as one product of all rows is: a weight that is kept in bfloat16, as under FSDP, gets the same bits as one in float32.
        return by_hidden * slope, (by_weight * slope).to(by_hidden.dtype), None, None
