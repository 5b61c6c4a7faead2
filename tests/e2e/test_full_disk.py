"""A study on a disk that is really full: one sentence, nothing lost, and it goes on when there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from losslens.results import Results

pytestmark = pytest.mark.timeout(600)

# The packed corpus takes 13.6 MB, each checkpoint 0.6, a trainer state 2.5 and while it is replaced 5.
TOO_SMALL, ENOUGH = "18m", "300m"
SHORT = (
    *("--set", "family.sizes=[{name: s, d_model: 64, d_ffn: 176, heads: 2, kv_heads: 1, layers: 3, tokens: 60k}]"),
    *("--set", "training.checkpoints.count=6"),
)


def mount(*options: str | Path) -> int:
    return subprocess.run(["mount", *map(str, options)], capture_output=True, check=False).returncode


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if mount("-t", "tmpfs", "-o", f"size={TOO_SMALL}", "tmpfs", disk):
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=False)


def test_a_full_disk_stops_the_study_and_room_lets_it_go_on(small_disk: Path, study_file: Path, losslens: Callable[..., Any]) -> None:
    results = small_disk / "results"
    stopped = losslens("run", study_file, *SHORT, "--results", results)
    assert stopped.returncode == 3, stopped.stderr
    assert "No space left on device" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    kept = {file: file.read_bytes() for file in results.glob("checkpoints/*/step-*/model.safetensors")}
    assert kept

    assert mount("-o", f"remount,size={ENOUGH}", small_disk) == 0
    resumed = losslens("run", study_file, *SHORT, "--results", results)
    assert resumed.returncode == 0, resumed.stderr
    assert all(file.read_bytes() == content for file, content in kept.items())
    (found,) = Results(results).query("SELECT count(DISTINCT checkpoint_id) AS n FROM scores").to_pylist()
    assert found["n"] == 7
