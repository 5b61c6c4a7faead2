"""The head's loss with its gradients: in our blocks, in torch's chunks, and whole; bfloat16, one thread.

    python tests/bench/bench_head.py [--rounds 7]

Milliseconds, medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from losslens.models.cross_entropy import CPU_BLOCK, linear_cross_entropy
from losslens.training.lanes import keep_freed_memory

SHAPES = ((4096, 8192, 384), (2048, 32768, 384))  # rows, vocabulary, width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    ways: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"whole": whole, "ours": linear_cross_entropy, "torch": chunked}
    print(f"{'rows':>6}{'vocabulary':>12}{'width':>7}" + "".join(f"{way:>9}" for way in ways) + f"   ms; blocks of {CPU_BLOCK >> 20} MB")
    for rows, vocabulary, width in SHAPES:
        hidden = torch.randn(rows, width).bfloat16().requires_grad_()
        weight = (torch.randn(vocabulary, width) / width**0.5).requires_grad_()
        targets = torch.randint(0, vocabulary, (rows,))
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(given.rounds + 1):
            for way, loss in ways.items():
                began = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16):
                    total = loss(hidden, weight, targets)
                total.backward()  # type: ignore[no-untyped-call]
                taken[way].append(1e3 * (time.perf_counter() - began))
                hidden.grad = weight.grad = None
        figures = "".join(f"{statistics.median(times[1:]):9.0f}" for times in taken.values())
        print(f"{rows:6,}{vocabulary:12,}{width:7}{figures}", flush=True)


def whole(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")


def chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    total: Tensor = F.linear_cross_entropy(hidden, weight.bfloat16(), targets, reduction="sum", options=options)
    return total


if __name__ == "__main__":
    main()
