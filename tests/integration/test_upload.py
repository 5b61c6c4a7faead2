"""A checkpoint's directory, as training wrote it, is a model of the Hugging Face Hub: page, weights, tokenizer."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard

from eval_service.checkpoints import verify_files
from losslens.corpus.tokenizer import Encoder, make
from losslens.families import PlannedRun, planned_runs
from losslens.models import build
from losslens.models.export import hugging_face_state
from losslens.specs import TokenizerSpec, load_study
from losslens.training import checkpoint as checkpoints
from tests.hub_service import Handler, hub_service

LOSSES = [
    checkpoints.Loss("train", "nats/token", 2.5, None, 1024, None),
    checkpoints.Loss("heldout", "nats/token", 2.25, 0.125, 2048, 2048),
    checkpoints.Loss("heldout", "bits/byte", 3.24606, 0.18, 2048, 2048),
]
SIZE = "{name: s, d_model: 32, d_ffn: 64, heads: 2, kv_heads: 1, layers: 2, tokens: 4096}"
SETTINGS = ["corpus.seq_len=32", f"family.sizes=[{SIZE}]", "training.global_batch=4", "evaluation.cross_check=null"]


@pytest.fixture(scope="module")
def run() -> PlannedRun:
    return planned_runs(load_study("demo", [*SETTINGS, "corpus.tokenizer={kind: byte, vocab_size: 257}"]))[0]


def written(root: Path, run: PlannedRun) -> Path:
    tokenizer = root / "tokenizer"
    make(TokenizerSpec(kind="byte", vocab_size=257), (), tokenizer)
    eos = Encoder(tokenizer).eos
    weights = hugging_face_state(build(run.shape, seed=1, eos_token_id=eos).state_dict(), run.shape)
    return checkpoints.write(root, run, 32, weights, LOSSES, tokenizer, eos).path


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, run: PlannedRun) -> Path:
    return written(tmp_path_factory.mktemp("results"), run)


def test_the_page_says_what_the_checkpoint_is(directory: Path, run: PlannedRun) -> None:
    card = ModelCard.load(directory / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert card.data.tags == ["losslens", "pretraining", "study:demo"]
    facts = card.data.to_dict()["losslens"]
    assert facts["tokens"] == 32 * run.batch_tokens and (facts["step"], facts["size"], facts["run_id"]) == (32, "s", run.run_id)
    assert card.data.model_name == f"{run.run_id}/step-00000032"
    assert [(result.dataset_name, result.metric_name, result.metric_value) for result in card.data.eval_results or ()] == [
        (loss.dataset, loss.unit, loss.value) for loss in LOSSES
    ]
    assert "| heldout | nats/token | 2.2500 | 0.1250 |" in card.text
    assert "| train | nats/token | 2.5000 |  |" in card.text
    assert "license" not in card.data.to_dict(), "nobody has said one"


def test_equal_checkpoints_have_equal_pages(directory: Path, run: PlannedRun, tmp_path: Path) -> None:
    assert (written(tmp_path, run) / "README.md").read_bytes() == (directory / "README.md").read_bytes()


def test_people_may_write_into_the_page_and_into_nothing_else(run: PlannedRun, tmp_path: Path) -> None:
    directory = written(tmp_path, run)
    page = directory / "README.md"
    page.write_text(page.read_text(encoding="utf-8").replace("---\n", "---\nlicense: apache-2.0\n", 1), encoding="utf-8")
    assert ModelCard.load(page).data.license == "apache-2.0"
    verify_files(directory)
    assert checkpoints.damage(directory) is None
    hashed = json.loads((directory / checkpoints.RECORD).read_text())["files"]
    beside = {checkpoints.RECORD, checkpoints.README}
    assert set(hashed) == {file.name for file in directory.iterdir()} - beside
    (directory / "config.json").write_text("{}")
    assert checkpoints.damage(directory) == directory / "config.json"


class Uploads(Handler):
    """Takes commits as the Hub does; every file as a plain one."""

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0))) if "Content-Length" in self.headers else b"".join(self.chunks())
        match self.path.split("?")[0].split("/")[1:]:
            case ["api", "repos", "create"]:
                self.json({"url": f"{self.server.endpoint}/org/name", "id": "org/name", "name": "org/name"})
            case ["api", "validate-yaml"]:
                yaml.safe_load(json.loads(raw)["content"].split("---")[1])
                self.json({"errors": [], "warnings": []})
            case ["api", "models", "org", "name", "preupload", "main"]:
                files = json.loads(raw)["files"]
                self.json({"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]})
            case ["api", "models", "org", "name", "commit", "main"]:
                lines = [json.loads(line) for line in raw.splitlines()]
                files = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
                commit = self.server.publish("org/name", "main", files)
                self.json({"commitOid": commit, "commitUrl": f"{self.server.endpoint}/org/name/commit/{commit}", "success": True})
            case _:
                self.reply(404, b"")

    def chunks(self) -> Any:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()


def test_it_is_uploaded_as_it_is_and_loads_from_there(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    with hub_service(monkeypatch) as service:
        service.RequestHandlerClass = Uploads
        service.publish("org/name", "main", {})
        api = HfApi(endpoint=service.endpoint, token="hf_test")
        api.create_repo("org/name", exist_ok=True)
        api.upload_folder(repo_id="org/name", folder_path=directory)
        assert service.repos["org/name"].branches["main"].files == {file.name: file.read_bytes() for file in directory.iterdir()}
        copy.mkdir()
        for name, content in service.repos["org/name"].branches["main"].files.items():
            (copy / name).write_bytes(content)
    verify_files(copy)
    assert generated(copy) == generated(directory)


def generated(directory: Path) -> str:
    """What transformers' pipeline says with the model, as a user of the page begins."""
    from transformers import pipeline

    made = pipeline("text-generation", model=str(directory), device=torch.device("cpu"))
    (answer,) = made("def f(x):", max_new_tokens=8, do_sample=False)
    return str(answer["generated_text"])


def test_a_pipeline_goes_on_with_a_text(directory: Path) -> None:
    said = generated(directory)
    assert said.startswith("def f(x):") and len(said) > len("def f(x):")
