"""What sending a log to TensorBoard costs: processor time and bytes a step, and a look that finds nothing new.

python tests/bench/bench_tracking.py [--steps 100000]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from datetime import UTC, datetime

import pyarrow as pa

from losslens.results import Results
from losslens.tracking import opened, send_new

BEGAN = datetime(2026, 1, 2, tzinfo=UTC)


def write_log(results: Results, steps: int) -> None:
    """One run that has logged so many steps."""
    results.write("runs", [{"run_id": "run", "created_at": BEGAN}])
    step = list(range(1, steps + 1))
    values = {
        "loss": 2.0,
        "lr": 1e-3,
        "grad_norm": 0.5,
        "tokens_per_second": 1e6,
        "run_id": "run",
        "attempt": 1,
        "world_size": 1,
        "time": BEGAN,
    }
    columns = {name: [value] * steps for name, value in values.items()}
    results.write("train_log", pa.table(columns | {"step": step, "tokens": [4096 * number for number in step]}))


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        results = Results(folder)
        write_log(results, steps)
        destination = opened("tensorboard", results.root, "")
        for what in ("all new", "nothing new", "nothing new"):
            wall, cpu = time.perf_counter(), time.process_time()
            sent = send_new(results, destination).total()
            print(f"{what}: {sent:,} points, {time.process_time() - cpu:.3f} s of processor time, {time.perf_counter() - wall:.3f} s")
        size = sum(file.stat().st_size for file in destination.home.rglob("*tfevents*"))
        print(f"{size / steps:.0f} bytes a step")


if __name__ == "__main__":
    main()
