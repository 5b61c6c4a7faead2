"""How near training on a CPU comes to the machine's matrix products, and where the rest of a step goes.

    python tests/bench/bench_roofline.py [--sizes d64,d160,d384] [--threads 2] [--rounds 7] [--compile]

Sizes, batches and optimizer are those of tests/bench/bench_trainers.py; best of the rounds. First what matrix products reach: large square
ones, and a step's own, forward and backward, in GFLOP/s, with one thread, with all threads in each kernel, and with a thread for
each part of the batch (`lanes`, which training uses: one thread's rate at its part, times the threads). Then a bf16 step of
`loop.Trainer`: its model FLOPs a second (`Shape.flops_per_token`), its parts of both limits, and where its time goes. Parts are
timed by themselves, one lane's on a core of its own:

    products     of the blocks, forward and backward
    attention    of all blocks
    blocks       what else the blocks take: norms, rotary positions, gate, casts, the residual stream, launches
    head         the output head's products and the cross-entropy, both ways
    optimizer    AdamW
    rest         of the step: lanes beside each other, their gradients' sum, the norm, the books kept
    data         a batch from an array to the device, not in the step
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from losslens.families import Shape
from losslens.training.lanes import keep_freed_memory, lanes_of
from losslens.training.loop import Trainer
from tests.bench.bench_attention import in_blocks
from tests.bench.bench_trainers import SIZES, make

PARTS = ("products", "attention", "blocks", "head", "optimizer", "rest")
LEAST = 0.003  # seconds that are timed at once


@dataclass(frozen=True, slots=True)
class Product:
    """[rows, inner] x [inner, columns], `count` times in a step."""

    rows: int
    inner: int
    columns: int
    count: int

    @property
    def flops(self) -> int:
        """Forward and backward, all of them."""
        return 6 * self.rows * self.inner * self.columns * self.count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--square", type=int, default=1024, help="rows and columns of the large products")
    parser.add_argument("--compile", action="store_true", help="the step's passes, not what parts are compared with")
    given = parser.parse_args()
    keep_freed_memory()
    machine = limits(given)
    for size in given.sizes.split(","):
        shape, batch, _ = SIZES[size]
        at_shapes(size, shape, batch, given)
    print(
        f"\n{'size':6}{'GFLOP/s':>9}{'% square':>10}{'% lanes':>9}{'step ms':>9}"
        + "".join(f"{part:>11}" for part in PARTS)
        + "   % of a step; data"
    )
    for size in given.sizes.split(","):
        print(step_line(size, machine, given), flush=True)


def limits(given: argparse.Namespace) -> float:
    """Print what large products reach; GFLOP/s of bfloat16 with all threads."""
    print(
        f"{'products':16}{'type':>10}"
        + "".join(f"{title:>12}" for title in ("1 thread", f"{given.threads} threads", f"{given.threads} lanes"))
        + "   GFLOP/s"
    )
    square = [Product(given.square, given.square, given.square, 1)]
    best = 0.0
    for dtype in (torch.float32, torch.bfloat16):
        rates = [rate(square, dtype, threads, given.rounds) for threads in (1, given.threads)]
        print(products_line(f"{given.square} square", dtype, rates))
        best = rates[-1]
    return best


def at_shapes(size: str, shape: Shape, batch: int, given: argparse.Namespace) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        whole = [rate(products(shape, batch), dtype, threads, given.rounds) for threads in (1, given.threads)]
        print(products_line(f"{size}'s step", dtype, [*whole, lane_rate(shape, batch, given, dtype)]))


def products_line(name: str, dtype: torch.dtype, rates: list[float]) -> str:
    return f"{name:16}{str(dtype).removeprefix('torch.'):>10}" + "".join(f"{each:12,.0f}" for each in rates)


def lane_rate(shape: Shape, batch: int, given: argparse.Namespace, dtype: torch.dtype = torch.bfloat16) -> float:
    lanes = lanes_of(given.threads, batch, None)
    return lanes * rate(products(shape, -(-batch // lanes)), dtype, max(1, given.threads // lanes), given.rounds)


def products(shape: Shape, sequences: int, *, head: bool = True) -> list[Product]:
    """Those of one pass, attention's left out."""
    rows, heads, kv = sequences * shape.seq_len, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    blocks = ((shape.d_model, heads + 2 * kv), (heads, shape.d_model), (shape.d_model, 2 * shape.d_ffn), (shape.d_ffn, shape.d_model))
    found = [Product(rows, inner, columns, shape.layers) for inner, columns in blocks]
    return [*found, Product(rows, shape.d_model, shape.vocab_size, 1)] if head else found


def rate(of: list[Product], dtype: torch.dtype, threads: int, rounds: int) -> float:
    """GFLOP/s over all products, forward and backward."""
    torch.set_num_threads(threads)
    return sum(each.flops for each in of) / sum(product_seconds(each, dtype, rounds) for each in of) / 1e9


def product_seconds(product: Product, dtype: torch.dtype, rounds: int) -> float:
    """Of all of them in a step: the output, the input's gradient and the weights', as torch computes them."""
    x = torch.randn(product.rows, product.inner, dtype=dtype)
    w = torch.randn(product.columns, product.inner, dtype=dtype)
    dy = torch.randn(product.rows, product.columns, dtype=dtype)
    ways: tuple[Callable[[], Tensor], ...] = (lambda: x @ w.t(), lambda: dy @ w, lambda: dy.t() @ x)
    return product.count * sum(best(way, rounds) for way in ways)


def best(work: Callable[[], object], rounds: int, *, alone: bool = True) -> float:
    """Seconds of one call, after one that warms up. Work of one thread is counted in that thread's own time, which others cannot take."""
    clock = time.thread_time if alone and torch.get_num_threads() == 1 else time.perf_counter
    work()
    began = clock()
    work()
    repeats = max(1, round(LEAST / max(clock() - began, 1e-7)))
    seconds = []
    for _ in range(rounds):
        began = clock()
        for _ in range(repeats):
            work()
        seconds.append((clock() - began) / repeats)
    return min(seconds)


def step_line(size: str, machine: float, given: argparse.Namespace) -> str:
    shape, batch, _ = SIZES[size]
    torch.set_num_threads(given.threads)
    trainer = make(shape, batch, compiled=given.compile)
    rows = torch.randint(0, shape.vocab_size, (batch, shape.seq_len + 1))
    step = best(lambda: trainer.update(rows), given.rounds, alone=trainer.lanes == 1)
    parts = parts_of(trainer, shape, rows[: -(-batch // trainer.lanes)], given.rounds)
    parts["rest"] = step - sum(parts.values())
    reached = shape.flops_per_token * batch * shape.seq_len / step / 1e9
    batches = endless(rows.numpy())
    data = best(lambda: torch.from_numpy(next(batches)).to(trainer.device, non_blocking=True), given.rounds)
    share = "".join(f"{100 * parts[part] / step:11.1f}" for part in PARTS)
    limit = lane_rate(shape, batch, given)
    return (
        f"{size:6}{reached:9,.1f}{100 * reached / machine:10.1f}{100 * reached / limit:9.1f}{step * 1e3:9.1f}{share}   {data * 1e6:.0f} us"
    )


def parts_of(trainer: Trainer, shape: Shape, rows: Tensor, rounds: int) -> dict[str, float]:
    """Seconds of one lane's parts; `rows` [b, T + 1] are its part of the batch."""

    def features() -> None:
        with trainer.autocast():
            hidden = trainer.features[0](rows[:, :-1])
        hidden.backward(torch.ones_like(hidden))  # type: ignore[no-untyped-call]

    def optimizer() -> None:
        trainer.optimizers.step(1.0)

    whole = best(lambda: trainer._pass(0, rows), rounds)
    both_ways = best(features, rounds)
    moved = best(optimizer, rounds)
    in_products = sum(product_seconds(each, torch.bfloat16, rounds) for each in products(shape, len(rows), head=False))
    attended = shape.layers * attention_seconds(shape, len(rows), rounds)
    return {
        "products": in_products,
        "attention": attended,
        "blocks": both_ways - in_products - attended,
        "head": whole - both_ways,
        "optimizer": moved,
    }


def attention_seconds(shape: Shape, sequences: int, rounds: int) -> float:
    """Of one block, both ways."""
    sizes = ((sequences, heads, shape.seq_len, shape.head_dim) for heads in (shape.heads, shape.kv_heads, shape.kv_heads))
    tensors = [torch.randn(size, dtype=torch.bfloat16, requires_grad=True) for size in sizes]

    def both_ways() -> None:
        out = in_blocks(*tensors)
        out.backward(torch.ones_like(out))  # type: ignore[no-untyped-call]

    return best(both_ways, rounds)


def endless(rows: np.ndarray) -> Iterator[np.ndarray]:
    while True:
        yield rows


if __name__ == "__main__":
    main()
