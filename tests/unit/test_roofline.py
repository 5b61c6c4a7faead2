"""The roofline's products are those that a model multiplies, and the script prints a line for a size."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch

from losslens.models import build
from tests.bench import bench_roofline
from tests.bench.bench_trainers import SIZES
from tests.bench.litgpt_rival import Clock, Done
from tests.conftest import REPO


@pytest.mark.parametrize("size", ["d64", "d160"])
def test_products_are_the_models_matrices(size: str) -> None:
    shape, batch, _ = SIZES[size]
    model = build(shape, seed=0)
    multiplied = sum(p.numel() for p in model.parameters() if p.dim() == 2) - shape.vocab_size * shape.d_model  # not the input embedding
    assert sum(each.flops for each in bench_roofline.products(shape, batch)) == 6 * batch * shape.seq_len * multiplied


def test_the_script_prints_limits_and_parts() -> None:
    command = [sys.executable, bench_roofline.__file__, "--sizes", "d64", "--rounds", "1", "--square", "64", "--threads", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line]
    assert [line[:3] for line in lines[1:5]] == [
        ["64", "square", "float32"],
        ["64", "square", "bfloat16"],
        ["d64's", "step", "float32"],
        ["d64's", "step", "bfloat16"],
    ]
    assert lines[-1][0] == "d64"
    assert sum(map(float, lines[-1][5:11])) == pytest.approx(100, abs=0.5)  # parts are all of a step


def test_the_rivals_clock_counts_steps_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It hands out rows until the time is over; a step takes a second here, the first two take ten."""
    moments = iter([0.0, 10.0, 20.0, 21.0, 22.0, 23.0, 24.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    clock = Clock(torch.zeros(2, 1, 3), warm_up=2, seconds=2.5)
    with pytest.raises(Done):
        for _ in clock:
            pass
    assert clock.steps_per_second() == 1.0
