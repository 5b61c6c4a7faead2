"""SIGTERM and decay branches through the command that people type: a study that is told to end, goes on, and branches."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from losslens.families import planned_runs
from losslens.results import Results
from losslens.specs import load_study
from losslens.training import checkpoint as checkpoints
from tests.conftest import Process

pytestmark = pytest.mark.timeout(300)

SETTINGS = [
    "family.sizes=[{name: s, d_model: 32, d_ffn: 96, heads: 2, kv_heads: 1, layers: 2, tokens: 400k}]",  # 390 steps of 8 x 128 tokens
    "corpus.sources=[{generated: copy}, {generated: sort}]",
    "training.precision=float32",
    "training.schedule={name: constant, warmup_steps: 10, average: 0.9, final_fraction: 0.1}",
    "training.checkpoints={spacing: even, count: 1, initial: false}",
    "training.branches=[{at: 300k, decay: 16.4k}]",
    "evaluation.cross_check=null",
]


def test_a_study_told_to_end_saves_goes_on_and_branches(
    losslens: Callable[..., Process], environment: dict[str, str], tmp_path: Path
) -> None:
    trunk, branch = planned_runs(load_study("demo", SETTINGS))
    arguments = ["pretrain", "demo", "--size", "s", "--results", str(tmp_path), *(word for each in SETTINGS for word in ("--set", each))]
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        progress = checkpoints.run_directory(tmp_path, trunk.run_id) / "progress.json"
        until = time.monotonic() + 120
        while not progress.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        assert checkpoints.saved_step(tmp_path, trunk.run_id) == 0
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143, stderr
    assert "told to end; nothing that was saved is lost" in stderr
    assert "run the same command again" in stderr
    assert 0 < checkpoints.saved_step(tmp_path, trunk.run_id) < trunk.steps

    done = losslens(*arguments)
    assert done.returncode == 0, done.stderr
    assert "resumes from step" in done.stderr
    assert [c.step for c in checkpoints.completed(tmp_path, trunk.run_id)] == [292, 390]
    assert {292, 390} <= checkpoints.saved_steps(tmp_path, trunk.run_id)
    assert [c.tokens for c in checkpoints.completed(tmp_path, branch.run_id)] == [308 * 1024]
    found = Results(tmp_path)
    rows = found.query("SELECT parent_checkpoint_id AS parent FROM runs ORDER BY tokens_planned").to_pylist()
    assert [row["parent"] for row in rows] == [f"{trunk.run_id}/step-00000292", None]
    log = found.query("SELECT step, lr FROM train_log WHERE run_id = ? ORDER BY step", (branch.run_id,)).to_pylist()
    assert [row["step"] for row in log] == list(range(293, 309))
    assert log[-1]["lr"] == pytest.approx(0.1 * branch.peak_lr)
