"""Weights & Biases offline and MLflow in a SQLite file, where they are installed: what each has kept, read back by its own means."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs.log import log
from losslens.errors import EnvironmentFailure
from losslens.results import Results
from losslens.tracking import send

BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
# Both warn of their own libraries.
pytestmark = pytest.mark.filterwarnings("default")


def log_steps(results: Results, first: int, last: int) -> None:
    results.write("train_log", [
        {"run_id": "s-a", "attempt": 1, "step": step, "tokens": step * 64, "loss": 5 - step / 100, "lr": 1e-3, "grad_norm": 0.5,
         "tokens_per_second": 1e6, "time": BEGAN + timedelta(seconds=step)}
        for step in range(first, last + 1)
    ])  # fmt: skip


def measure(results: Results, step: int) -> None:
    results.write("checkpoints", [{"checkpoint_id": str(step), "run_id": "s-a", "step": step, "tokens": step * 64, "created_at": BEGAN}])
    results.write("losses", [{"checkpoint_id": str(step), "dataset": "heldout/web+code", "unit": "nats/token", "value": 4.0}])


@pytest.fixture
def results(tmp_path: Path) -> Results:
    made = Results(tmp_path / "results")
    made.write("runs", [{"run_id": "s-a", "study": "s", "size": "d48", "params": 114_000, "created_at": BEGAN, "spec": "x" * 10_000}])
    log_steps(made, 1, 5)
    measure(made, 5)
    return made


def records(log: bytes) -> Iterator[bytes]:
    """W&B's file is a log of LevelDB after 7 bytes: blocks of 32 KiB with pieces of records, each after checksum, length and kind."""
    at, whole = 7, b""
    while at < len(log):
        if 32_768 - at % 32_768 < 7:
            at += 32_768 - at % 32_768
            continue
        length, kind = struct.unpack_from("<HB", log, at + 4)
        whole += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""


def kept_by_wandb(home: Path) -> list[dict[str, Any]]:
    """Rows of history of all offline runs, in the order in which they were begun."""
    from wandb.proto.wandb_internal_pb2 import Record

    kept = [Record.FromString(record) for file in sorted(home.rglob("*.wandb")) for record in records(file.read_bytes())]
    histories = [record.history.item for record in kept if record.HasField("history")]
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items} for items in histories]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    library = pytest.importorskip("wandb", reason="the extra losslens[wandb] is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield library
    library.teardown()


def test_wandb_keeps_every_row_once_with_step_and_tokens(results: Results, wandb: Any) -> None:
    assert log(results.root, "wandb", "mine") == [{"run": "s-a", "points": 6}]
    log_steps(results, 6, 7)
    assert log(results.root, "wandb", "mine") == [{"run": "s-a", "points": 2}]
    assert log(results.root, "wandb", "mine") == []
    wandb.teardown()  # what is kept offline is on the disk by then
    (home,) = (results.root / "wandb").iterdir()
    rows = kept_by_wandb(home)
    assert [row["_step"] for row in rows] == list(range(1, 9)), "a second process goes on where the first ended"
    assert [(row["step"], row["tokens"], row["train/loss"]) for row in rows if "train/loss" in row] == [
        (step, step * 64, 5 - step / 100) for step in range(1, 8)
    ]
    assert [(row["step"], row["loss/heldout/web+code/nats/token"]) for row in rows if "train/loss" not in row] == [(5, 4.0)]


def test_wandb_knows_rows_that_come_again(results: Results, wandb: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(send, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            log(results.root, "wandb", "mine")
    log(results.root, "wandb", "mine")
    wandb.teardown()  # what is kept offline is on the disk by then
    (home,) = (results.root / "wandb").iterdir()
    rows = {row["_step"]: row for row in kept_by_wandb(home)}  # W&B has one row a number
    assert [row.get("train/loss") for _, row in sorted(rows.items())] == [5 - step / 100 for step in range(1, 6)] + [None]


def test_wandb_without_an_account_says_what_to_do(results: Results, wandb: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wandb.teardown()
    with pytest.raises(EnvironmentFailure, match="W&B does not take the run") as caught:
        log(results.root, "wandb", "mine")
    assert "wandb login" in caught.value.remedy


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    pytest.importorskip("mlflow", reason="the extra losslens[mlflow] is not installed")
    pytest.importorskip("sqlalchemy", reason="the extra losslens[mlflow] is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    from mlflow import MlflowClient

    return MlflowClient()


def test_mlflow_keeps_every_row_once(results: Results, mlflow: Any) -> None:
    assert log(results.root, "mlflow", "mine") == [{"run": "s-a", "points": 6}]
    log_steps(results, 6, 7)
    measure(results, 3)
    assert log(results.root, "mlflow", "mine") == [{"run": "s-a", "points": 3}]
    assert log(results.root, "mlflow", "mine") == []
    (run,) = mlflow.search_runs([mlflow.get_experiment_by_name("mine").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params["params"]) == ("s-a", "FINISHED", "114000")

    def history(name: str) -> list[tuple[int, float, int]]:
        found = mlflow.get_metric_history(run.info.run_id, name)
        return sorted((metric.step, metric.value, metric.timestamp) for metric in found)

    ms = round(BEGAN.timestamp() * 1000)
    assert history("train/loss") == [(step, 5 - step / 100, ms + 1000 * step) for step in range(1, 8)]
    assert [step for step, _, _ in history("by_tokens/train/loss")] == [64 * step for step in range(1, 8)]
    assert history("loss/heldout/web_code/nats/token") == [(3, 4.0, ms), (5, 4.0, ms)]


def test_mlflow_drops_rows_that_come_again(results: Results, mlflow: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(send, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            log(results.root, "mlflow", "mine")
    log(results.root, "mlflow", "mine")
    (run,) = mlflow.search_runs([mlflow.get_experiment_by_name("mine").experiment_id])
    assert len(mlflow.get_metric_history(run.info.run_id, "train/loss")) == 5


@pytest.mark.usefixtures("mlflow")
def test_an_mlflow_server_that_is_not_there_is_a_sentence(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(EnvironmentFailure, match="MLflow does not take the runs") as caught:
        log(results.root, "mlflow", "mine")
    assert "MLFLOW_TRACKING_URI" in caught.value.remedy
