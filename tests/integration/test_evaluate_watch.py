"""`evaluate --watch` on directories that a trainer is writing, and what the trainer's own files say about them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from eval_service.position import StepNames
from eval_service.targets import Directories, identify
from jobs.evaluate import Choice, evaluate
from losslens.errors import UserError
from losslens.results import Results
from tests.conftest import REPO
from tests.tiny_models import tiny_model

TASKS = ["skill_copy"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "model")


def watch(target: Path, results: Path, *, until_idle: float | None = None, engine: str = "fake", choice: Choice | None = None) -> Any:
    return evaluate(str(target), TASKS, engine, 4, True, results, None, choice=choice, until_idle=until_idle)


def scored(results: Path) -> list[str]:
    """Directory names of scored checkpoints."""
    if not (results / "parts" / "scores").is_dir():
        return []
    rows = Results(results).query("SELECT DISTINCT path FROM scores JOIN checkpoints USING (checkpoint_id)")
    return sorted(Path(path).name for path in rows.column(0).to_pylist())


def between_looks(monkeypatch: pytest.MonkeyPatch, acts: Sequence[Callable[[], object]]) -> None:
    """Do the next act at each pause between two looks, and interrupt after the last."""
    left = iter(acts)

    def sleep(seconds: float) -> None:
        act = next(left, None)
        if act is None:
            raise KeyboardInterrupt
        act()

    monkeypatch.setattr("jobs.evaluate.time.sleep", sleep)


def copy(model: Path, into: Path) -> Callable[[], object]:
    return lambda: shutil.copytree(model, into)


def put(file: Path, content: bytes) -> Callable[[], object]:
    def act() -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    return act


def test_a_directory_is_scored_when_the_trainer_has_written_the_last_of_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, results = tmp_path / "out", tmp_path / "results"
    home.mkdir()  # nothing is there when watching begins
    files = {file.name: file.read_bytes() for file in model.iterdir()}
    weights = files.pop("model.safetensors")
    directory = home / "checkpoint-100"
    seen: list[tuple[str, list[str]]] = []

    def look_again(label: str) -> Callable[[], object]:
        return lambda: seen.append((label, scored(results)))

    state = {"global_step": 100, "num_input_tokens_seen": 51_200, "log_history": [{"step": 100, "loss": 3.25}]}
    between_looks(
        monkeypatch,
        [
            put(directory / "config.json", files.pop("config.json")),
            look_again("no weights"),
            look_again("no weights"),
            put(directory / "model.safetensors", weights[:1000]),
            look_again("half of the weights"),
            look_again("half of the weights"),
            put(directory / "model.safetensors", weights),
            *(put(directory / name, content) for name, content in files.items()),
            put(directory / "training_args.bin", b"pickle"),
            look_again("no state"),
            look_again("no state"),
            put(directory / "trainer_state.json", json.dumps(state).encode()),
            look_again("just changed"),
            look_again("whole"),
            put(home / "checkpoint-100" / "rng_state.pth", b"later"),
            look_again("whole"),
        ],
    )
    with pytest.raises(KeyboardInterrupt):
        watch(home, results)
    assert {label for label, names in seen if names} == {"whole"}
    assert [names for label, names in seen if label == "whole"] == [["checkpoint-100"]] * 2
    columns = "SELECT DISTINCT run_id, step, tokens, loss, loss_unit FROM curve WHERE loss_dataset = 'train'"
    (row,) = Results(results).query(columns).to_pylist()
    assert (row["step"], row["tokens"], row["loss"], row["loss_unit"]) == (100, 51_200, 3.25, "nats/token")
    assert row["run_id"].startswith("out-")
    n = Results(results).query("SELECT count(*) AS rows, count(DISTINCT checkpoint_id) AS ids FROM checkpoints").to_pylist()
    assert n == [{"rows": 1, "ids": 1}]


def test_all_shards_of_the_index_are_waited_for(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = load_file(model / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    directory = tmp_path / "runs" / "step7"
    shutil.copytree(model, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    index = {"metadata": {}, "weight_map": {name: part for part, held in parts.items() for name in held}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    for part, held in parts.items():
        save_file({name: tensors[name] for name in held}, tmp_path / part, {"format": "pt"})
    seen: list[list[str]] = []
    results = tmp_path / "results"
    first, second = parts
    acts = [
        lambda: shutil.copy(tmp_path / first, directory / first),
        lambda: seen.append(scored(results)),
        lambda: seen.append(scored(results)),
        lambda: shutil.copy(tmp_path / second, directory / second),
        lambda: seen.append(scored(results)),
        lambda: seen.append(scored(results)),
    ]
    between_looks(monkeypatch, acts)
    with pytest.raises(KeyboardInterrupt):
        watch(tmp_path / "runs", results, engine="torch")
    assert seen == [[], [], [], ["step7"]]


def test_watching_ends_when_nothing_is_new_and_names_what_was_never_whole(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Directories, "pause_s", 0.02)
    runs, results = tmp_path / "runs", tmp_path / "results"
    for step in (1, 2):
        shutil.copytree(model, runs / f"step{step}-tokens3K")
    rows = watch(runs, results, until_idle=0.2)
    assert len(set(rows["checkpoint_id"].to_pylist())) == 2
    told = Results(results).query("SELECT step, tokens FROM checkpoints ORDER BY step").to_pylist()
    assert told == [{"step": 1, "tokens": 3000}, {"step": 2, "tokens": 3000}]
    (runs / "step3").mkdir()
    (runs / "step3" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"step3 was never whole: .*config\.json cannot be read"):
        watch(runs, results, until_idle=0.2)
    assert "not scored" in capsys.readouterr().err
    with pytest.raises(UserError, match="--until-idle"):
        evaluate(str(runs), TASKS, "fake", 4, False, results, None, until_idle=1.0)


def test_directories_are_chosen_by_the_same_patterns(model: Path, tmp_path: Path) -> None:
    for name in ("step10", "step9", "final"):
        shutil.copytree(model, tmp_path / "runs" / name)
    choice = Choice(("step*",), tokens_per_step=100)
    evaluate(str(tmp_path / "runs"), TASKS, "fake", 4, False, tmp_path / "results", None, choice=choice)
    assert scored(tmp_path / "results") == ["step10", "step9"]
    told = Results(tmp_path / "results").query("SELECT step, tokens FROM checkpoints ORDER BY step").to_pylist()
    assert told == [{"step": 9, "tokens": 900}, {"step": 10, "tokens": 1000}]
    with pytest.raises(UserError, match=r"no directory in .* matches setp"):
        evaluate(str(tmp_path / "runs"), TASKS, "fake", 4, False, tmp_path / "results", None, choice=Choice(("setp*",)))


def test_checkpoints_beside_the_final_model_are_the_target(model: Path, tmp_path: Path) -> None:
    out = shutil.copytree(model, tmp_path / "out")
    shutil.copytree(model, out / "original")  # no step in its name
    assert len(Directories(out, StepNames()).look().checkpoints) == 1
    shutil.copytree(model, out / "checkpoint-5")
    (found,) = Directories(out, StepNames()).look().checkpoints
    assert "checkpoint-5" in found.path


def test_another_trainers_card_gives_the_loss_axis(model: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(model, tmp_path / "runs" / "latest")
    card = {"step": 40, "tokens": 4000, "losses": [{"dataset": "heldout", "unit": "bits/byte", "value": 1.5, "stderr": 0.1}]}
    (directory / "losslens.json").write_text(json.dumps(card), encoding="utf-8")
    evaluate(str(tmp_path / "runs"), TASKS, "torch", 4, False, tmp_path / "results", None)
    rows = Results(tmp_path / "results").query("SELECT DISTINCT step, tokens, loss_dataset, loss FROM curve").to_pylist()
    assert rows == [{"step": 40, "tokens": 4000, "loss_dataset": "heldout", "loss": 1.5}]
    (directory / "losslens.json").write_text('{"stpe": 40}', encoding="utf-8")
    with pytest.raises(UserError, match=r"losslens\.json is not what it should be.*stpe"):
        identify(directory, alone=False)


def test_a_model_without_weights_is_refused(model: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(model, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        identify(directory, alone=True)


def test_the_command_line_watches_until_it_is_interrupted(model: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    runs, results = tmp_path / "runs", tmp_path / "results"
    shutil.copytree(model, runs / "step1")
    words = ["evaluate", "--watch", str(runs), "--tasks", "skill_copy", "--limit", "4", "--engine", "torch", "--results", str(results)]
    command = [sys.executable, "-m", "jobs.cli", *words]
    process = subprocess.Popen(command, cwd=REPO, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        while not scored(results) and process.poll() is None:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "interrupted" in said and "Traceback" not in said
    assert scored(results) == ["step1"]
