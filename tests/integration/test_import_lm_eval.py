"""Importing what lm-evaluation-harness wrote: files made by lm-eval itself on a tiny model, then damaged in every way."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
pytest.importorskip("accelerate", reason="lm-evaluation-harness's `hf` needs accelerate")

from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

from eval_service.scorer import already_scored
from jobs.import_results import import_results
from losslens.errors import UserError
from losslens.results import Results
from tests import handwritten, lm_eval_tasks
from tests.tiny_models import tiny_checkpoint

# Their libraries warn of their own affairs.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]
TASKS = ("arc_easy", "winogrande", "lambada", "gsm8k")
ROLLING = {
    "task": "our_text",
    "dataset_path": "json",
    "output_type": "loglikelihood_rolling",
    "test_split": "test",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": metric} for metric in ("word_perplexity", "bits_per_byte")],
    "metadata": {"version": 2.0},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results file with samples, as `lm_eval run --output_path ... --log_samples` writes it; the model is a checkpoint of ours."""
    folder = tmp_path_factory.mktemp("lm_eval")
    model = tiny_checkpoint(folder / "study", "tiny-1", 7)
    names = [lm_eval_tasks.write(folder, task, handwritten.TEST[task], handwritten.DEV.get(task, ())) for task in TASKS]
    names.append(lm_eval_tasks.write(folder, "mmlu", handwritten.TEST["mmlu"], handwritten.DEV["mmlu"], "college_mathematics"))
    (folder / "lm_eval" / "text.jsonl").write_text('{"text": "one text"}\n{"text": "and another"}\n', encoding="utf-8")
    files = {"data_files": {"test": str(folder / "lm_eval" / "text.jsonl")}, "cache_dir": str(folder / "cache")}
    (folder / "lm_eval" / "text.yaml").write_text(yaml.safe_dump({**ROLLING, "dataset_kwargs": files}), encoding="utf-8")
    tracker = EvaluationTracker(output_path=str(folder / "out"))
    found: Any = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": "float32"},
        device="cpu",
        tasks=[*names, "our_text"],
        task_manager=TaskManager(include_path=str(folder / "lm_eval"), include_defaults=False),
        evaluation_tracker=tracker,
        bootstrap_iters=2,
        gen_kwargs={"max_gen_toks": 8},
    )
    samples = found.pop("samples")
    tracker.save_results_aggregated(results=found, samples=samples)
    for task, logged in samples.items():
        tracker.save_results_samples(task_name=task, samples=logged)
    [file] = (folder / "out").rglob("results_*.json")
    return file


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    """The results file of a copy that may be damaged."""
    shutil.copytree(written.parent, tmp_path / "copy")
    return tmp_path / "copy" / written.name


def change(file: Path, **changes: Any) -> Path:
    """Replace top-level values of a results file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes), encoding="utf-8")
    return file


def rows(results: Path, sql: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = Results(results).query(sql).to_pylist()
    return found


def parts(results: Path) -> list[Path]:
    return sorted(file for file in results.rglob("*.parquet") if file.name != "columns.parquet")


def test_scores_with_chance_format_and_shots(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = import_results("lm-eval", written, tmp_path)
    found = {(row["task"], row["metric"]): row for row in rows(tmp_path, "SELECT * FROM scores")}
    assert len(shown) == len(found)
    theirs = json.loads(written.read_text())["results"]
    expected = {
        ("our_arc_easy", "acc"): ("text", 0, (1 / 2 + 1 / 4) / 2),
        ("our_arc_easy", "acc_norm"): ("text", 0, (1 / 2 + 1 / 4) / 2),
        ("our_winogrande", "acc"): ("pair", 0, 1 / 2),
        ("our_lambada", "acc"): ("open", 0, 0.0),
        ("our_mmlu_college_mathematics", "acc"): ("letter", 5, 1 / 4),
        ("our_gsm8k", "exact_match,strict-match"): ("open", 0, 0.0),
        ("our_gsm8k", "exact_match,flexible-extract"): ("open", 0, 0.0),
    }
    assert {key: (row["format"], row["shots"], row["chance"]) for key, row in found.items()} == expected
    for (task, metric), row in found.items():
        key = metric if "," in metric else f"{metric},none"
        assert row["value"] == theirs[task][key]
        assert row["stderr"] == theirs[task][key.replace(",", "_stderr,")]
        assert (row["n"], row["engine"], row["higher_is_better"]) == (2, "lm-eval/hf", True)
    said = capsys.readouterr().err
    assert "1 file, 7 scores" in said
    assert "its chance level is not known" in said and "our_lambada perplexity" in said


def test_samples_give_the_scores_again(written: Path, tmp_path: Path) -> None:
    import_results("lm-eval", written, tmp_path)
    again = rows(
        tmp_path,
        """
        WITH items AS (
            SELECT task, item_id, arg_max(is_gold, logprob) AS guessed, any_value(correct) AS correct, sum(is_gold::INT) AS golds
            FROM samples WHERE format IN ('letter', 'text', 'pair') GROUP BY ALL
        )
        SELECT task, avg(guessed::INT) AS acc, bool_and(guessed = correct AND golds = 1) AS agree FROM items GROUP BY ALL
        """,
    )
    stored = {row["task"]: row["value"] for row in rows(tmp_path, "SELECT task, value FROM scores WHERE metric = 'acc'")}
    assert len(again) == 3
    assert all(row["agree"] and row["acc"] == stored[row["task"]] for row in again)
    [text] = rows(tmp_path, "SELECT bytes FROM samples WHERE task = 'our_arc_easy' AND item_id = '0' AND option = 1")
    assert text["bytes"] == len("a sparrow")  # without the joining space, as acc_norm counts
    assert all(row["generated"] is not None for row in rows(tmp_path, "SELECT generated FROM samples WHERE task = 'our_gsm8k'"))


def test_a_checkpoint_of_ours_keeps_its_name_and_gets_a_loss(written: Path, tmp_path: Path) -> None:
    import_results("lm-eval", written, tmp_path)
    [known] = rows(tmp_path, "SELECT * FROM checkpoints JOIN runs USING (run_id)")
    assert (known["checkpoint_id"], known["run_id"], known["step"], known["tokens"]) == ("tiny-1/step-00000007", "tiny-1", 7, 7 * 1024)
    [point] = rows(tmp_path, "SELECT * FROM curve WHERE task = 'our_winogrande'")
    bits = json.loads(written.read_text())["results"]["our_text"]["bits_per_byte,none"]
    assert (point["loss_dataset"], point["loss_unit"], point["loss"], point["step"]) == ("our_text", "bits/byte", bits, 7)


def test_what_others_scored_is_still_asked_of_our_engines(written: Path, tmp_path: Path) -> None:
    import_results("lm-eval", written, tmp_path)
    assert already_scored(tmp_path) == set()


def test_importing_again_adds_nothing(written: Path, tmp_path: Path) -> None:
    import_results("lm-eval", written, tmp_path)
    before = parts(tmp_path)
    import_results("lm-eval", written.parent, tmp_path)
    assert parts(tmp_path) == before


@pytest.mark.parametrize(
    ("pretrained", "revision", "expected"),
    [
        ("EleutherAI/pythia-70m", "step1000", ("EleutherAI/pythia-70m", "EleutherAI/pythia-70m@step1000", 1000, None)),
        ("allenai/OLMo-2", "stage1-step500-tokens3B", ("allenai/OLMo-2", "allenai/OLMo-2@stage1-step500-tokens3B", 500, 3 * 10**9)),
        ("gpt2", None, ("gpt2", "gpt2@main", None, None)),
        ("/models/mine/checkpoint-40", None, ("/models/mine", "/models/mine/checkpoint-40", 40, None)),
        ("/models/mine/final", None, ("/models/mine/final", "/models/mine/final", None, None)),
    ],
)
@pytest.mark.parametrize("as_text", [True, False])
def test_who_was_scored(
    copy: Path, tmp_path: Path, pretrained: str, revision: str | None, expected: tuple[Any, ...], as_text: bool
) -> None:
    arguments = {"pretrained": pretrained, "dtype": "float32"} | ({"revision": revision} if revision else {})
    given = ",".join(f"{key}={value}" for key, value in arguments.items()) if as_text else arguments
    change(copy, config={"model": "vllm", "model_args": given, "model_num_parameters": 12})
    import_results("lm-eval", copy, tmp_path / "results")
    [found] = rows(tmp_path / "results", "SELECT * FROM checkpoints JOIN runs USING (run_id)")
    assert (found["run_id"], found["checkpoint_id"], found["step"], found["tokens"]) == expected
    assert (found["params"], found["source"]) == (12, "lm-eval")
    assert {row["engine"] for row in rows(tmp_path / "results", "SELECT engine FROM scores")} == {"lm-eval/vllm"}


def test_without_samples_only_what_tells_its_chance(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in copy.parent.glob("samples_*"):
        file.unlink()
    import_results("lm-eval", copy, tmp_path / "results")
    found = {(row["task"], row["format"], row["chance"]) for row in rows(tmp_path / "results", "SELECT * FROM scores")}
    assert found == {
        ("our_mmlu_college_mathematics", "letter", 0.25),  # its options are named in the task itself
        ("our_lambada", "open", 0.0),
        ("our_gsm8k", "open", 0.0),
    }
    said = capsys.readouterr().err
    assert "--log_samples" in said and "our_arc_easy acc" in said


def test_numbers_that_are_none(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(copy.read_text())
    found["results"]["our_lambada"]["acc,none"] = math.nan
    found["results"]["our_winogrande"]["acc_stderr,none"] = "N/A"
    found["results"]["our_group"] = {"acc,none": 0.5, "acc_stderr,none": 0.1}
    change(copy, results=found["results"])
    shown = import_results("lm-eval", copy, tmp_path / "results")
    assert not {"our_lambada", "our_winogrande", "our_group"} & {row["task"] for row in shown}
    said = capsys.readouterr().err
    assert "no finite number (our_lambada acc)" in said
    assert "no standard error (our_winogrande acc)" in said
    assert "a group, whose tasks are taken one by one (our_group)" in said


def cut(file: Path) -> None:
    file.write_text(file.read_text()[:-40], encoding="utf-8")


def lose_a_line(file: Path) -> None:
    samples = next(file.parent.glob("samples_our_arc_easy_*"))
    samples.write_text(samples.read_text().splitlines()[0] + "\n", encoding="utf-8")


def spoil_a_line(file: Path) -> None:
    samples = next(file.parent.glob("samples_our_arc_easy_*"))
    samples.write_text(samples.read_text().replace('"doc_id": 1', '"doc_id": "one"'), encoding="utf-8")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cannot be read": cut,
    "is not a results file of lm-eval: Object missing required field `configs`": lambda file: file.write_text('{"results": {}}'),
    "Expected `object`, got `array`": lambda file: file.write_text("[]"),
    "holds 1 items and the scores are of 2": lose_a_line,
    "line 2 is not a sample of lm-eval": spoil_a_line,
    "does not say which model": lambda file: change(file, config={"model": "hf"}, model_name=None),
    "nothing in .* can be used": lambda file: change(file, results={"our_arc_easy": {"f1,none": 0.5, "f1_stderr,none": 0.1}}),
    "holds no results": lambda file: file.unlink(),
}


@pytest.mark.parametrize("sentence", DAMAGES)
def test_what_is_damaged_is_named_and_nothing_is_written(sentence: str, copy: Path, written: Path, tmp_path: Path) -> None:
    shutil.copy(written, copy.parent / "results_0.json")  # a good file, read before the damaged one
    if "used" in sentence or "holds no" in sentence:
        (copy.parent / "results_0.json").unlink()
    DAMAGES[sentence](copy)
    with pytest.raises(UserError, match=sentence):
        import_results("lm-eval", copy.parent, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_the_command_line(written: Path, tmp_path: Path, losslens: Callable[..., CompletedProcess[str]]) -> None:
    done = losslens("import", "lm-eval", written, "--results", tmp_path / "results", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert {row["task"] for row in json.loads(done.stdout)} >= {"our_arc_easy", "our_winogrande"}
    failed = losslens("import", "lm-eval", tmp_path / "nowhere", "--results", tmp_path / "results")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("losslens: ") and "does not exist" in failed.stderr
    assert losslens("import", "gadre", written).returncode == 2
