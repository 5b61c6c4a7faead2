"""Scorers die again and again while a study trains: training does not notice, and everything is scored in the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from losslens.results import Results

pytestmark = pytest.mark.timeout(600)

KILLS = 2  # of all scorers: at the third a checkpoint that was hit each time would be given up, as it should
LONGER = "family.sizes=[{name: s, d_model: 32, d_ffn: 96, heads: 2, kv_heads: 1, layers: 2, tokens: 1200k}]"


def scorers(driver: int) -> list[psutil.Process]:
    """Processes of scoring actors of the local cluster that this driver started."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(driver).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any("ray::Scorer" in word for word in process.cmdline()):
                    found.append(process)
    return found


def test_training_never_notices_what_happens_to_scorers(study_file: Path, tmp_path: Path, start: Callable[..., Any]) -> None:
    results = tmp_path / "results"
    study = start("run", study_file, "--results", results, "--set", LONGER, "--set", "cluster.eval_slots=2")

    def scored() -> int:
        return len(list(results.glob("parts/scores/*.parquet")))

    killed: list[int] = []
    for _ in range(KILLS):
        before = scored()
        study.wait_for(lambda before=before: scored() > before and scorers(study.process.pid))
        trained = len(list(results.glob("checkpoints/*/step-*/losslens.json")))
        assert trained < 13, "the study is too short to kill its scorers while it trains: lengthen it"
        for process in scorers(study.process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                killed.append(process.pid)
    code, _, stderr = study.end()
    assert code == 0, stderr
    assert len(set(killed)) >= KILLS
    (found,) = Results(results).query("SELECT count(DISTINCT checkpoint_id) AS n FROM scores").to_pylist()
    assert found["n"] == 13
    (log,) = (
        Results(results)
        .query("SELECT count(*) AS rows, count(DISTINCT (run_id, step)) AS steps, max(attempt) AS attempts FROM train_log")
        .to_pylist()
    )
    assert log == {"rows": 2343, "steps": 2343, "attempts": 1}
