"""A whole study through the command line: undisturbed, interrupted, killed, doubled, and submitted as a Ray job."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from losslens.results import Results

pytestmark = pytest.mark.timeout(600)


def final_weights(results: Path) -> dict[str, str]:
    """Size -> hash of the weights after the last step."""
    rows = Results(results).query(
        "SELECT r.size, arg_max(c.weights_sha256, c.step) AS weights, max(c.tokens) = any_value(r.tokens_planned) // 512 * 512 AS whole "
        "FROM runs r JOIN checkpoints c USING (run_id) GROUP BY r.size ORDER BY r.size"
    )
    assert all(row["whole"] for row in rows.to_pylist())
    return {row["size"]: row["weights"] for row in rows.to_pylist()}


def checkpoints(results: Path, size: str) -> int:
    return len(list(results.glob(f"checkpoints/tiny-{size}-*/step-*/losslens.json")))


def require_drawn(results: Path) -> None:
    """TensorBoard has every step of the log, every held-out loss and every score, once."""
    stored = Results(results)
    for run in stored.query("SELECT run_id FROM runs").column(0).to_pylist():
        drawn = EventAccumulator(str(results / "tensorboard" / run), size_guidance={"scalars": 0})
        drawn.Reload()
        steps = stored.query("SELECT DISTINCT step FROM train_log WHERE run_id = ? ORDER BY 1", (run,)).column(0).to_pylist()
        saved = stored.query("SELECT step FROM checkpoints WHERE run_id = ? ORDER BY 1", (run,)).column(0).to_pylist()
        assert [event.step for event in drawn.Scalars("train/loss")] == steps
        for name in ("loss/heldout/nats/token", "score/skill_copy/open/exact_match", "by_tokens/loss/heldout/nats/token"):
            assert len(drawn.Scalars(name)) == len(saved) == 13


@pytest.fixture(scope="module")
def undisturbed(study_file: Path, tmp_path_factory: pytest.TempPathFactory, losslens: Callable[..., Any]) -> Path:
    results = tmp_path_factory.mktemp("undisturbed") / "results"
    ended = losslens("run", study_file, "--results", results)
    assert ended.returncode == 0, ended.stderr
    assert "skill_copy" in ended.stdout
    assert str(results / "report.html") in ended.stdout
    return results


def test_every_checkpoint_has_losses_scores_and_samples(undisturbed: Path) -> None:
    results = Results(undisturbed)
    (counts,) = results.query(
        "SELECT count(DISTINCT checkpoint_id) AS checkpoints, count(DISTINCT size) AS sizes, "
        "count(*) FILTER (metric = 'exact_match') AS copies FROM curve WHERE loss_dataset = 'heldout' AND loss_unit = 'nats/token'"
    ).to_pylist()
    assert counts == {"checkpoints": 26, "sizes": 2, "copies": 26}
    (log,) = results.query(
        "SELECT count(*) AS rows, max(loss) AS worst, count(DISTINCT (run_id, step)) AS steps FROM train_log"
    ).to_pylist()
    assert log["rows"] == log["steps"] == 2 * 1171
    assert 3 < log["worst"] < 8
    (samples,) = results.query("SELECT count(DISTINCT (checkpoint_id, item_id)) AS items FROM samples WHERE task = 'cloze_far'").to_pylist()
    assert samples["items"] == 26 * 40


def test_tensorboard_was_written_without_being_asked_for(undisturbed: Path) -> None:
    require_drawn(undisturbed)


def test_loss_falls_and_both_sizes_learn_to_predict(undisturbed: Path) -> None:
    rows = Results(undisturbed).query(
        "SELECT size, arg_min(loss, tokens) AS first, arg_max(loss, tokens) AS last FROM curve "
        "WHERE loss_dataset = 'heldout' AND loss_unit = 'nats/token' GROUP BY size"
    )
    assert all(row["last"] < row["first"] - 1.5 for row in rows.to_pylist()), rows.to_pylist()


def test_running_again_is_a_no_op(undisturbed: Path, study_file: Path, losslens: Callable[..., Any]) -> None:
    before = {file: file.stat().st_mtime_ns for file in (undisturbed / "parts").rglob("*.parquet")}
    ended = losslens("run", study_file, "--results", undisturbed)
    assert ended.returncode == 0, ended.stderr
    assert "train" not in ended.stderr.replace("until trained", "")
    assert {file: file.stat().st_mtime_ns for file in (undisturbed / "parts").rglob("*.parquet")} == before


def test_status_says_that_everything_is_scored(undisturbed: Path, losslens: Callable[..., Any]) -> None:
    ended = losslens("status", "--results", undisturbed, "--format", "json")
    assert ended.returncode == 0, ended.stderr
    assert [(row["state"], row["to_score"]) for row in json.loads(ended.stdout)] == [("scored", 0)] * 2


def test_interrupted_doubled_and_killed_it_ends_with_the_same_weights(
    undisturbed: Path, study_file: Path, tmp_path: Path, start: Callable[..., Any], losslens: Callable[..., Any]
) -> None:
    results = tmp_path / "results"
    first = start("run", study_file, "--results", results)
    first.wait_for(lambda: checkpoints(results, "m") >= 2)
    second = losslens("run", study_file, "--results", results)
    assert second.returncode == 2
    assert f"another run (process {first.process.pid})" in second.stderr
    code, _, stderr = first.end(signal.SIGINT)
    assert code == 130, stderr
    assert "Traceback" not in stderr
    done = checkpoints(results, "m")
    assert 2 <= done < 13, "the study is too short to be interrupted: lengthen it"

    killed = start("run", study_file, "--results", results)
    killed.wait_for(lambda: checkpoints(results, "m") > done or checkpoints(results, "s") >= 2)
    assert killed.end(signal.SIGKILL)[0] == -signal.SIGKILL

    last = losslens("run", study_file, "--results", results)
    assert last.returncode == 0, last.stderr
    assert final_weights(results) == final_weights(undisturbed)
    require_drawn(results)
    (twice,) = Results(results).query("SELECT count(*) - count(DISTINCT (checkpoint_id, dataset, unit)) AS n FROM losses").to_pylist()
    assert twice["n"] == 0


def test_a_diverging_run_says_so_and_keeps_what_is_there(study_file: Path, tmp_path: Path, losslens: Callable[..., Any]) -> None:
    results = tmp_path / "results"
    broken = ("--set", "training.optimizer.lr=1e30", "--set", "training.optimizer.clip=null", "--set", "training.schedule.warmup_steps=0")
    one = "family.sizes=[{name: s, d_model: 32, d_ffn: 96, heads: 2, kv_heads: 1, layers: 2, tokens: 600k}]"
    ended = losslens("run", study_file, "--results", results, "--set", one, *broken)
    assert ended.returncode == 3
    assert "diverged: the loss is" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert checkpoints(results, "s") == 1  # the untrained model, scored before it broke
    assert Results(results).query("SELECT count(DISTINCT checkpoint_id) AS n FROM scores").column("n")[0].as_py() == 1
