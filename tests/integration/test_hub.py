"""`evaluate` on Hub models: every revision of a published run, through a cache, over a network and a server that fail."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval_service.fake import FakeEngine
from eval_service.hub import Hub
from eval_service.position import StepNames
from jobs.evaluate import Choice, evaluate
from losslens.errors import DataMismatch, EnvironmentFailure, LosslensError, UserError
from losslens.results import Results
from tests.conftest import REPO
from tests.hub_service import Fault, Service, hub_service
from tests.tiny_models import tiny_model

MODEL = "org/pico"
STEPS = (0, 128, 1000)
SIZE = "420KB"  # of one tiny revision and no more: it has 380 KB


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("models")
    return [tiny_model(home / f"seed{seed}", seed=seed) for seed in range(3)]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, models: list[Path]) -> Iterator[Service]:
    """A Hub with one model of three revisions and a main branch; tries follow each other at once."""
    monkeypatch.setattr("eval_service.hub.WAITS_S", (0.01,) * 3)
    with hub_service(monkeypatch) as service:
        for step, directory in zip(STEPS, models, strict=True):
            service.publish(MODEL, f"step{step}", directory)
        service.publish(MODEL, "main", models[-1])
        yield service


def run(home: Path, revisions: str = "step*", engine: str = "fake", tasks: tuple[str, ...] = ("skill_copy",), **settings: Any) -> Any:
    choice = Choice((revisions,), cache=home / "cache", **settings)
    return evaluate(f"hf:{MODEL}", tasks, engine, 4, False, home / "results", None, choice=choice)


def ids(rows: Any) -> list[str]:
    return sorted(set(rows["checkpoint_id"].to_pylist()))


def of_step(*steps: int) -> list[str]:
    return sorted(f"{MODEL}@step{step}" for step in steps)


def test_every_revision_is_scored_and_described(hub: Service, models: list[Path], tmp_path: Path) -> None:
    rows = run(tmp_path, engine="torch", tokens_per_step=2**21)
    assert ids(rows) == of_step(*STEPS)
    results = Results(tmp_path / "results")
    described = results.query("SELECT * EXCLUDE (created_at) FROM runs JOIN checkpoints USING (run_id) ORDER BY step").to_pylist()
    assert [(row["step"], row["tokens"]) for row in described] == [(step, step * 2**21) for step in STEPS]
    assert {(row["run_id"], row["size"], row["source"], row["source_url"], row["licence"]) for row in described} == {
        (MODEL, "pico", f"hf:{MODEL}", f"{hub.endpoint}/{MODEL}", "apache-2.0")
    }
    assert described[0]["path"] == f"hf:{MODEL}@{hub.repos[MODEL].branches['step0'].commit}"
    local = evaluate(str(models[1]), ["skill_copy"], "torch", 4, False, tmp_path / "local", None)
    assert [row["value"] for row in rows.to_pylist() if row["checkpoint_id"].endswith("step128")] == local["value"].to_pylist()
    weights = Results(tmp_path / "local").query("SELECT weights_sha256 FROM checkpoints").to_pylist()
    assert weights == [{"weights_sha256": described[1]["weights_sha256"]}]


def test_what_is_scored_is_not_fetched_again(hub: Service, tmp_path: Path) -> None:
    before = run(tmp_path)
    shutil.rmtree(tmp_path / "cache")
    hub.asked.clear()
    assert run(tmp_path).equals(before)
    assert hub.asked == [("GET", f"/api/models/{MODEL}/refs", "")]
    run(tmp_path, tasks=("skill_copy", "skill_reverse"))  # another task needs the weights
    assert len(hub.downloads("model.safetensors")) == 3
    hub.asked.clear()
    run(tmp_path, tasks=("skill_copy", "skill_reverse", "skill_sort"))  # and finds them in the cache
    assert hub.downloads() == []


def test_steps_are_walked_in_order_and_the_next_is_fetched_while_one_is_scored(
    hub: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_more = threading.Event()
    hub.before = lambda path: two_more.set() if len(hub.downloads("model.safetensors")) == 3 else None
    loaded: list[str] = []

    def load(self: FakeEngine, checkpoint: Path) -> None:
        loaded.append(checkpoint.name)
        assert two_more.wait(60)  # while the first is scored both others are asked for

    monkeypatch.setattr(FakeEngine, "load", load)
    run(tmp_path)
    assert loaded == [hub.repos[MODEL].branches[f"step{step}"].commit for step in STEPS]


def test_a_cache_of_one_revision_is_enough(hub: Service, tmp_path: Path) -> None:
    assert ids(run(tmp_path, cache_size=SIZE)) == of_step(*STEPS)
    whole = [path for path in (tmp_path / "cache" / "org--pico").iterdir() if path.is_dir()]
    assert [path.name for path in whole] == [hub.repos[MODEL].branches["step1000"].commit]
    with pytest.raises(UserError, match="does not fit into the cache") as refused:
        run(tmp_path, tasks=("skill_reverse",), cache_size="100KB")
    assert "--cache-size" in refused.value.remedy


def test_only_what_is_needed_is_fetched(hub: Service, models: list[Path], tmp_path: Path) -> None:
    files = {file.name: file.read_bytes() for file in models[0].iterdir()}
    others = ("pytorch_model.bin", "modeling_evil.py", "model.fp16.safetensors", "../config.json", "onnx/config.json", "README.md")
    evil = dict.fromkeys(others, b"x")
    hub.publish(MODEL, "step5", files | evil)
    run(tmp_path, "step5")
    assert sorted(path.partition("/")[2] for path in hub.downloads()) == sorted(files)


def test_pickles_are_refused_and_the_others_go_on(
    hub: Service, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {file.name: file.read_bytes() for file in models[0].iterdir()}
    without = {name: content for name, content in files.items() if "safetensors" not in name}
    hub.publish(MODEL, "step64", without | {"pytorch_model.bin": b"x"})
    hub.publish(MODEL, "step65", {"README.md": b"nothing"})
    hub.publish(MODEL, "step66", {"model.safetensors": files["model.safetensors"]})
    with pytest.raises(UserError, match="3 models could not be scored") as refused:
        run(tmp_path)
    assert f"{MODEL}@step64 has no safetensors weights, only pytorch_model.bin" in str(refused.value)
    said = capsys.readouterr().err
    assert "step65 has no safetensors weights" in said and "step66 has no config.json" in said
    assert Results(tmp_path / "results").query("SELECT count(DISTINCT checkpoint_id) AS n FROM scores").to_pylist() == [{"n": 3}]


def test_an_interrupted_download_is_resumed_where_it_ended(hub: Service, tmp_path: Path) -> None:
    weights = hub.repos[MODEL].branches["step0"].files["model.safetensors"]
    hub.faults = [Fault("/cdn/", "cut")]
    assert ids(run(tmp_path, "step0")) == of_step(0)
    assert [asked for _, path, asked in hub.asked if "/cdn/" in path] == ["", f"bytes={len(weights) // 2}-"]


def test_what_another_process_left_is_resumed_too(hub: Service, tmp_path: Path) -> None:
    commit = hub.repos[MODEL].branches["step0"].commit
    weights = hub.repos[MODEL].branches["step0"].files["model.safetensors"]
    hub.faults = [Fault("/cdn/", 503, times=5), Fault("/cdn/", "no-range")]
    unfinished = tmp_path / "cache" / "org--pico" / f".{commit}"
    unfinished.mkdir(parents=True)
    (unfinished / "model.safetensors.partial").write_bytes(weights[:1000])
    with pytest.raises(EnvironmentFailure, match=r"does not let us download model\.safetensors of org/pico@step0: .*503"):
        run(tmp_path, "step0")
    assert (unfinished / "model.safetensors.partial").stat().st_size == 1000
    hub.faults = [Fault("/cdn/", "no-range")]  # a server that sends all of it again
    hub.asked.clear()
    assert ids(run(tmp_path, "step0")) == of_step(0)
    assert [asked for _, path, asked in hub.asked if "/cdn/" in path] == ["bytes=1000-"]
    assert hub.downloads("/config.json") == []  # came whole before


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_hash_that_differs_is_refused_and_the_others_go_on(hub: Service, tmp_path: Path, name: str) -> None:
    where = "/cdn/" if name == "model.safetensors" else name
    hub.faults = [Fault(where, "garble")]
    with pytest.raises(DataMismatch, match=f"{name} of {MODEL}@step0 is not what the Hub says it is"):
        run(tmp_path)
    found = Results(tmp_path / "results").query("SELECT DISTINCT checkpoint_id FROM scores")
    assert ids(found) == of_step(128, 1000)
    assert ids(run(tmp_path)) == of_step(*STEPS)  # fetched afresh


def test_damage_in_the_cache_is_refused(hub: Service, tmp_path: Path) -> None:
    run(tmp_path, "step0")
    file = tmp_path / "cache" / "org--pico" / hub.repos[MODEL].branches["step0"].commit / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataMismatch, match=r"model\.safetensors of org/pico@step0"):
        run(tmp_path, "step0", tasks=("skill_reverse",))
    assert ids(run(tmp_path, "step0", tasks=("skill_reverse",))) == of_step(0)


def test_a_busy_server_is_asked_again(hub: Service, tmp_path: Path) -> None:
    hub.faults = [Fault("refs", 500, 2), Fault("revision", 429, retry_after="0"), Fault("resolve", 502), Fault("/cdn/", 503, 3)]
    assert ids(run(tmp_path)) == of_step(*STEPS)


def test_a_hub_that_stays_away_ends_the_walk(hub: Service, tmp_path: Path) -> None:
    hub.faults = [Fault("revision", 500, times=99)]
    with pytest.raises(LosslensError, match=r"2 models could not be scored; the first: .* list the files of org/pico@step0") as failed:
        run(tmp_path)
    assert failed.value.exit_code == 3
    hub.faults = [Fault("refs", 500, times=99)]
    with pytest.raises(EnvironmentFailure, match="does not let us list the revisions") as failed:
        run(tmp_path)
    assert "try again later" in failed.value.remedy


def test_a_branch_that_moved_is_not_mixed_with_what_was_scored(hub: Service, models: list[Path], tmp_path: Path) -> None:
    before = run(tmp_path, "main")
    files = hub.repos[MODEL].branches["main"].files
    hub.publish(MODEL, "main", files | {"README.md": b"new words"})
    assert run(tmp_path, "main").equals(before)  # the same weights
    hub.publish(MODEL, "main", models[0])
    with pytest.raises(DataMismatch, match="has other weights now than those that were scored") as refused:
        run(tmp_path, "main", tasks=("skill_reverse",))
    commit = hub.repos[MODEL].branches["main"].commit
    assert commit in refused.value.remedy
    assert ids(run(tmp_path, commit)) == [f"{MODEL}@{commit}"]


def test_tags_and_stages_are_revisions_too(hub: Service, models: list[Path], tmp_path: Path) -> None:
    hub.publish(MODEL, "stage1-step10-tokens1B", models[0], tag=True)
    hub.publish(MODEL, "stage2-step10-tokens5B", models[1])
    run(tmp_path, "stage*")
    rows = Results(tmp_path / "results").query("SELECT run_id, step, tokens FROM checkpoints ORDER BY run_id").to_pylist()
    assert [tuple(row.values()) for row in rows] == [(f"{MODEL}/stage1", 10, 10**9), (f"{MODEL}/stage2", 10, 5 * 10**9)]


def test_what_is_not_there(hub: Service, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no revision of org/pico matches setp") as refused:
        run(tmp_path, "setp*")
    assert "it has 4: main, step0, step1000, step128" in refused.value.remedy
    for name, says in (("org/none", "there is no model org/none"), ("a/b/c", "is not the name of a model"), ("../x", "is not the name")):
        with pytest.raises(UserError, match=says):
            evaluate(f"hf:{name}", ["skill_copy"], "fake", 4, False, tmp_path, None)
    with pytest.raises(UserError, match="is not a size"):
        run(tmp_path, cache_size="much")


def test_a_server_that_is_no_hub(hub: Service, tmp_path: Path) -> None:
    hub.repos[MODEL].branches["step0"].commit = "../../evil"
    with pytest.raises(EnvironmentFailure, match="does not answer as the Hub does") as refused:
        run(tmp_path)
    assert "HF_ENDPOINT" in refused.value.remedy
    with pytest.raises(EnvironmentFailure, match="protocol"):
        Hub(MODEL, "gopher://hub").revisions(["*"], StepNames())


def test_a_model_whose_training_goes_on_is_watched(
    hub: Service, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise KeyboardInterrupt
        hub.publish(MODEL, "step2000", models[0])

    monkeypatch.setattr("jobs.evaluate.time.sleep", sleep)
    choice = Choice(("step*",), cache=tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        evaluate(f"hf:{MODEL}", ["skill_copy"], "fake", 4, True, tmp_path / "results", None, choice=choice)
    assert pauses[0] >= 30  # seconds: the Hub is not asked more often
    assert ids(Results(tmp_path / "results").query("SELECT checkpoint_id FROM scores")) == of_step(*STEPS, 2000)


def test_an_interrupt_ends_the_download_and_what_arrived_is_used(hub: Service, environment: dict[str, str], tmp_path: Path) -> None:
    settings = environment | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
    words = ["evaluate", f"hf:{MODEL}", "--revisions", "step0,step128", "--tasks", "skill_copy", "--limit", "4", "--engine", "torch"]
    places = ["--results", str(tmp_path / "results"), "--cache", str(tmp_path / "cache")]
    held, go_on = threading.Event(), threading.Event()

    def hold(path: str) -> None:
        if "/cdn/" in path and not held.is_set():
            held.set()
            go_on.wait()

    hub.before = hold
    command = [sys.executable, "-m", "jobs.cli", *words, *places]
    process = subprocess.Popen(command, cwd=REPO, env=settings, stderr=subprocess.PIPE, text=True)
    assert held.wait(120)
    process.send_signal(signal.SIGINT)
    go_on.set()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert hub.downloads("/config.json") == [f"{hub.repos[MODEL].branches['step0'].commit}/config.json"]
    assert ids(run(tmp_path, "step0")) == of_step(0)
    assert len(hub.downloads("/config.json")) == 1
