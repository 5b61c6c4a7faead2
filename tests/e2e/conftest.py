"""A study small enough to run several times, and the command line as a process that can be interrupted and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]

STUDY = """
name: tiny
corpus:
  sources:
    - {generated: stdlib, weight: 0.5}
    - {generated: copy, weight: 0.5}
  tokenizer: {kind: byte, vocab_size: 128}
  seq_len: 128
  holdout: {rows: 8}
family:
  rope_base: 100
  sizes:
    - {name: s, d_model: 32, d_ffn: 96, heads: 2, kv_heads: 1, layers: 2, tokens: 600k}
    - {name: m, d_model: 64, d_ffn: 176, heads: 2, kv_heads: 1, layers: 3, tokens: 600k}
training:
  global_batch: 4
  micro_batch: 2
  optimizer: {name: adamw, lr: 3e-3}
  schedule: {name: wsd, warmup_steps: 20, average: 0.9}
  precision: float32
  checkpoints: {spacing: even, count: 12}
evaluation: {tasks: [skill_copy, cloze_far], engine: torch, limit: 40}
cluster: {train_slots: 1}
"""


@pytest.fixture(scope="session")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("study") / "tiny.yaml"
    file.write_text(STUDY, encoding="utf-8")
    return file


class Command:
    """`losslens ...` in a process group of its own; stderr goes to a file, so nothing blocks."""

    def __init__(self, log: Path, environment: dict[str, str], arguments: tuple[str | Path, ...]) -> None:
        self.log = log
        command = [sys.executable, "-m", "jobs.cli", *map(str, arguments)]
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                command, cwd=REPO, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
            )

    def wait_for(self, condition: Callable[[], bool], seconds: float = 180) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"ended early with {self.process.returncode}:\n{self.log.read_text()}"
            assert time.monotonic() < until, f"timed out:\n{self.log.read_text()}"
            time.sleep(0.05)

    def end(self, with_signal: int | None = None) -> tuple[int, str, str]:
        """Exit code, stdout, stderr; SIGKILL goes to the driver alone, as the out-of-memory killer would do it."""
        if with_signal is not None:
            self.process.send_signal(with_signal)
        stdout, _ = self.process.communicate(timeout=240)
        return self.process.returncode, stdout, self.log.read_text()


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[..., Command]]:
    """`start("run", study)` starts the command line; what is left at the end is killed."""
    started: list[Command] = []

    def run(*arguments: str | Path) -> Command:
        started.append(Command(tmp_path / f"stderr-{len(started)}", environment, arguments))
        return started[-1]

    yield run
    for command in started:
        if command.process.poll() is None:
            os.killpg(command.process.pid, signal.SIGKILL)
            command.process.wait()
        if command.process.stdout:
            command.process.stdout.close()
