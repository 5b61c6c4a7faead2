"""`losslens evaluate` on its three kinds of target, with broken checkpoints among them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from jobs.evaluate import evaluate
from losslens.errors import DataMismatch, UserError
from losslens.results import Results
from tests.tiny_models import tiny_checkpoint, tiny_model

TASKS = ["skill_copy"]


def run(target: Path, results: Path, **settings: Any) -> Any:
    return evaluate(str(target), TASKS, "torch", 4, False, results, None, **settings)


def test_a_study_is_scored_into_its_own_results(tmp_path: Path) -> None:
    study = tmp_path / "study"
    for step in (1, 2):
        tiny_checkpoint(study, "tiny", step, seed=step)
    rows = run(study, tmp_path / "elsewhere").to_pylist()
    assert {row["checkpoint_id"] for row in rows} == {"tiny/step-00000001", "tiny/step-00000002"}
    assert {row["metric"] for row in rows} == {"exact_match", "bits_per_byte"}
    assert not (tmp_path / "elsewhere").exists()
    before = sorted((study / "parts").rglob("*.parquet"))
    assert run(study, study).to_pylist() == rows  # nothing is left to score
    assert sorted((study / "parts").rglob("*.parquet")) == before


def test_a_foreign_model_gets_rows_that_say_what_it_is(tmp_path: Path) -> None:
    directory = tiny_model(tmp_path / "pile-small", "gpt_neox")
    rows = run(directory, tmp_path / "results").to_pylist()
    assert len(rows) == 2
    results = Results(tmp_path / "results")
    (described,) = results.query("SELECT * FROM runs JOIN checkpoints USING (run_id)").to_pylist()
    assert described["architecture"] == "GPTNeoXForCausalLM"
    assert described["params"] - described["params_non_embedding"] == 2 * 257 * 64
    assert described["source_url"] == described["path"] == str(directory)
    assert described["tokens"] is None
    assert rows[0]["checkpoint_id"] == described["checkpoint_id"]


def test_a_broken_checkpoint_is_named_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study"
    for step in (1, 2):
        tiny_checkpoint(study, "tiny", step, seed=step)
    broken = study / "checkpoints" / "tiny" / "step-00000001" / "tokenizer.json"
    broken.write_text("{}", encoding="utf-8")
    shown: list[Any] = []
    with pytest.raises(DataMismatch, match="is not what was written"):
        run(study, study, present=shown.append)
    assert {row["checkpoint_id"] for row in shown[0].to_pylist()} == {"tiny/step-00000002"}
    assert "not scored" in capsys.readouterr().err


def test_unknown_tasks_and_targets(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a directory"):
        run(tmp_path / "nowhere", tmp_path)
    directory = tiny_model(tmp_path / "model")
    with pytest.raises(UserError, match="skill_coppy") as refused:
        evaluate(str(directory), ["skill_coppy"], "torch", 4, False, tmp_path / "results", None)
    assert "skill_copy" in refused.value.remedy


def test_watch_scores_what_appears_until_it_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tmp_path / "study"
    tiny_checkpoint(study, "tiny", 1)
    looks: list[int] = []

    def sleep(seconds: float) -> None:
        looks.append(1)
        if len(looks) == 1:
            tiny_checkpoint(study, "tiny", 2, seed=2)
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr("jobs.evaluate.time.sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        evaluate(str(study), TASKS, "torch", 4, True, study, None)
    found = Results(study).query("SELECT DISTINCT checkpoint_id FROM scores ORDER BY 1").column(0).to_pylist()
    assert found == ["tiny/step-00000001", "tiny/step-00000002"]


def test_one_format_and_then_all(tmp_path: Path, losslens: Callable[..., CompletedProcess[str]]) -> None:
    directory, data = tiny_model(tmp_path / "model"), tmp_path / "data" / "piqa"
    data.mkdir(parents=True)
    rows = [{"query": f"Question: What has {n} legs?", "choices": ["a bird", "a spider"], "gold": n % 2} for n in range(6)]
    (data / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    results = tmp_path / "results"

    def scored(*tasks: str, limit: int) -> set[tuple[str, int]]:
        rows = evaluate(str(directory), tasks, "torch", limit, False, results, data.parent).to_pylist()
        return {(row["format"], row["n"]) for row in rows}

    assert scored("piqa:text", limit=4) == {("text", 4)}
    assert scored("piqa", limit=5) == {("text", 4), ("letter", 5)}
    stored = sorted((results / "parts" / "scores").glob("*.parquet"))
    assert scored("piqa:letter", "piqa:text", limit=6) == {("text", 4), ("letter", 5)}
    assert sorted((results / "parts" / "scores").glob("*.parquet")) == stored
    twice = "SELECT checkpoint_id FROM parts.scores GROUP BY checkpoint_id, task, task_version, format, metric HAVING count(*) > 1"
    assert Results(results).query(twice).num_rows == 0
    Results(results).compact()
    assert scored("piqa", limit=6) == {("text", 4), ("letter", 5)}
    assert scored("piqa:letter", limit=6) == {("letter", 5)}

    refused = losslens("evaluate", directory, "--tasks", "piqa:pair", "--data", data.parent, "--results", results)
    assert refused.returncode == 2
    assert "the task `piqa` has no format `pair`" in refused.stderr
    assert "write piqa:letter or piqa:text" in refused.stderr


def test_the_command_line(tmp_path: Path, losslens: Callable[..., CompletedProcess[str]]) -> None:
    directory = tiny_model(tmp_path / "model")
    with (directory / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    done = losslens("evaluate", directory, "--tasks", "skill_copy", "--limit", "4", "--results", tmp_path / "results", "--format", "json")
    assert done.returncode == 2, done.stderr
    assert "model.safetensors cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
    good = tiny_model(tmp_path / "good")
    done = losslens("evaluate", good, "--tasks", "skill_copy", "--limit", "4", "--results", tmp_path / "results", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert [row["metric"] for row in json.loads(done.stdout)] == ["bits_per_byte", "exact_match"]
