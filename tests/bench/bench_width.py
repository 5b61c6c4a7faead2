"""Whether a learning rate tuned at the smallest width carries over: losses by width and rate, with and without scaling by width.

Each cell trains a two-layer model of one width at one rate on sequences in which the two tokens before mostly decide the next,
by a random table, and prints the mean loss of the last tenth of its updates, averaged over seeds. `scaled`: the rates by role of
`optimizers.rates` and `fan_in` initialisation, reference width 32. `plain`: one rate at every width and `normal` initialisation.
The best rate of each width is starred; the last column says how many nats the smallest width's best rate costs there.

    python tests/bench/bench_width.py [--optimizers adamw,muon] [--steps 300] [--seeds 1]
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from losslens.families import Shape
from losslens.models import build
from losslens.specs import OptimizerSpec, ScheduleSpec, TrainingSpec
from losslens.training.loop import Trainer
from losslens.training.optimizers import Optimizers

WIDTHS = (32, 64, 128)
BASE = {"adamw": 8e-3, "muon": 3.2e-2, "lion": 8e-4, "sgd": 0.4}  # rate at multiple 1
MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)
VOCAB, LENGTH, BATCH = 16, 32, 16


def rows(step: int, seed: int) -> torch.Tensor:
    """[BATCH, LENGTH + 1]; one token in ten is noise, so that the least loss is 0.1 ln(VOCAB) + H(0.1), about 0.6 nats."""
    table = np.random.default_rng(0).integers(0, VOCAB, (VOCAB, VOCAB))
    random = np.random.default_rng((1, seed, step))
    tokens = random.integers(0, VOCAB, (BATCH, LENGTH + 1))
    kept = random.random(tokens.shape) > 0.1
    for at in range(2, LENGTH + 1):
        tokens[:, at] = np.where(kept[:, at], table[tokens[:, at - 2], tokens[:, at - 1]], tokens[:, at])
    return torch.from_numpy(tokens)


def final_loss(name: str, width: int, rate: float, scaled: bool, steps: int, seed: int) -> float:
    """Mean loss of the last tenth of the updates; infinite where it is not finite."""
    shape = Shape("paper", VOCAB, width, 3 * width, width // 16, width // 16, 2, LENGTH, 100.0, tie_embeddings=False)
    optimizer = OptimizerSpec(name=name, lr=rate, reference_width=WIDTHS[0] if scaled else None)  # type: ignore[arg-type]
    spec = TrainingSpec(global_batch=BATCH, precision="float32", optimizer=optimizer, schedule=ScheduleSpec(warmup_steps=20))
    model = build(shape, seed=seed, initialisation="fan_in" if scaled else "normal")
    peak = rate * (WIDTHS[0] / width) ** optimizer.exponent() if scaled else rate
    optimizers = Optimizers(model, optimizer, peak_lr=peak, width=width, precision="float32")
    trainer = Trainer(model, optimizers, spec, steps, BATCH, LENGTH, torch.device("cpu"))
    for step in range(steps):
        trainer.update(rows(step, seed))
    last = trainer.losses[-steps // 10 :].mean().item()
    return last if np.isfinite(last) else float("inf")


def table(name: str, scaled: bool, steps: int, seeds: int) -> None:
    """Print one grid."""
    print(f"\n{name}, {'scaled' if scaled else 'plain'}: nats by width (down) and rate at width {WIDTHS[0]} (across)")
    print("width" + "".join(f"{BASE[name] * m:>10.3g}" for m in MULTIPLES) + f"{'cost':>9}")
    tuned = None
    for width in WIDTHS:
        found = [statistics.mean(final_loss(name, width, BASE[name] * m, scaled, steps, seed) for seed in range(seeds)) for m in MULTIPLES]
        best = int(np.argmin(found))
        tuned = best if tuned is None else tuned
        cells = "".join(f"{loss:9.3f}{'*' if i == best else ' '}" for i, loss in enumerate(found))
        print(f"{width:5}{cells}{found[tuned] - found[best]:9.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", default="adamw,muon")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    for name in options.optimizers.split(","):
        for scaled in (True, False):
            table(name, scaled, options.steps, options.seeds)
    print(f"\n{options.steps} steps, {options.seeds} seeds, {time.perf_counter() - began:.0f} s on one thread")


if __name__ == "__main__":
    main()
