"""Attention of one layer in training on a CPU: torch's fused kernel beside blocks of queries, as models/decoder.py writes them out.

    python -m tests.bench.bench_attention [--threads 1,2] [--rounds 7]

Milliseconds forward and backward in bfloat16, best of the rounds; batch x heads (key-value heads) x positions x head size.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from losslens.models.decoder import BLOCK, _written_out

SHAPES = ((8, 2, 1, 128, 32), (8, 2, 1, 128, 80), (4, 6, 2, 512, 64), (2, 8, 2, 1024, 64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    print(f"{'shape':22}{'threads':>8}{'fused':>8}{'blocks':>8}{'ratio':>7}")
    for threads in map(int, given.threads.split(",")):
        torch.set_num_threads(threads)
        for B, H, K, T, E in SHAPES:
            tensors = [torch.randn(B, heads, T, E, dtype=torch.bfloat16, requires_grad=True) for heads in (H, K, K)]
            fused, blocks = (best(way, tensors, given.rounds) for way in (fused_kernel, in_blocks))
            print(f"{f'{B} x {H} ({K}) x {T} x {E}':22}{threads:8}{fused:8.1f}{blocks:8.1f}{fused / blocks:7.2f}")


def fused_kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def in_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _written_out(q * q.shape[-1] ** -0.5, k, v, torch.full((BLOCK, BLOCK), float("-inf")).triu(1))


def best(way: Callable[..., Tensor], tensors: list[Tensor], rounds: int) -> float:
    """Milliseconds of one pass forward and back."""
    seconds = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        out = way(*tensors)
        out.backward(torch.ones_like(out))  # type: ignore[no-untyped-call]
        seconds.append(time.perf_counter() - began)
    return 1e3 * min(seconds[1:])


if __name__ == "__main__":
    main()
