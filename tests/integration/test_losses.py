"""Held-out losses by the real engines against plain transformers, token by token; `evaluate --loss` from end to end."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval_service.encoder import encoder_of
from eval_service.engine import Engine
from eval_service.loss_corpus import LossCorpus, loss_corpora
from eval_service.losses import measure
from eval_service.torch_engine import TorchEngine
from eval_service.vllm_engine import VllmEngine, installed
from jobs.evaluate import evaluate
from losslens.errors import UserError
from losslens.families import Shape
from losslens.models import build, write_hugging_face
from losslens.models.export import hugging_face_state
from losslens.results import Results
from losslens.training.heldout import Heldout
from tests.held_out import BYTES, CHINESE, DOCUMENTS, ENGLISH, byte_level, packed, sentencepiece_like

WINDOW = 64
needs_vllm = pytest.mark.skipif(not installed(), reason="vLLM is not installed")
Tokenizers = dict[str, Callable[[Path], Path]]
TOKENIZERS: Tokenizers = {"byte_level": byte_level, "sentencepiece": sentencepiece_like}


def model(directory: Path, tokenizer: str, seed: int = 0) -> Path:
    """Two layers of width 64 with a real tokenizer; logits spread enough to tell tokens apart."""
    made = TOKENIZERS[tokenizer](directory.parent / f"{directory.name}-tokenizer")
    loaded = AutoTokenizer.from_pretrained(made)
    shape = Shape("paper", len(loaded), 64, 96, 2, 1, 2, WINDOW, 10_000.0, tie_embeddings=False)
    module = build(shape, seed=seed, eos_token_id=loaded.eos_token_id)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "lm_head" in name:
                weight.mul_(20)
    directory.mkdir()
    write_hugging_face(directory, hugging_face_state(module.state_dict(), shape), shape, made, loaded.eos_token_id)
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: model(folder / name, name) for name in TOKENIZERS}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> LossCorpus:
    """English and Chinese; empty, of one token, and of many windows."""
    file = tmp_path_factory.mktemp("corpus") / "mine.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS), encoding="utf-8")
    (found,) = loss_corpora([str(file)], 24)
    return found


@pytest.fixture(scope="module")
def torch_engine() -> Iterator[Engine]:
    engine = TorchEngine(batch_tokens=512)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def vllm_engine() -> Iterator[VllmEngine]:
    engine = VllmEngine(warm=1)
    yield engine
    engine.close()


@torch.inference_mode()
def plainly(directory: Path, stride: int) -> tuple[float, int]:
    """Nats and tokens of all documents, said anew: token i sees the document from `begin`, the first multiple of the stride
    that is at most a window away."""
    tokenizer, scorer = AutoTokenizer.from_pretrained(directory), AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    nats, tokens = 0.0, 0
    for text in DOCUMENTS:
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]]
        begins = [max(0, math.ceil((i - WINDOW) / stride) * stride) for i in range(len(ids))]
        logits = {b: scorer(torch.tensor([ids[b : b + WINDOW]]), use_cache=False).logits[0].log_softmax(-1) for b in set(begins)}
        nats -= sum(float(logits[begins[i]][i - 1 - begins[i], ids[i]]) for i in range(1, len(ids)))
        tokens += len(ids) - 1
    return nats, tokens


def require_plain(engine: Engine, directory: Path, corpus: LossCorpus) -> None:
    engine.load(directory)
    found = {row["unit"]: row for row in measure(engine, encoder_of(directory), corpus, None)}
    nats, tokens = plainly(directory, 24)
    assert (found["nats/token"]["tokens"], found["nats/token"]["bytes"]) == (tokens, BYTES)
    assert found["nats/token"]["value"] == pytest.approx(nats / tokens, abs=2e-5)
    assert found["bits/byte"]["value"] == pytest.approx(nats / math.log(2) / BYTES, abs=2e-5)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_torch_agrees_with_plain_transformers(torch_engine: Engine, models: dict[str, Path], corpus: LossCorpus, tokenizer: str) -> None:
    require_plain(torch_engine, models[tokenizer], corpus)


@needs_vllm
def test_vllm_agrees_with_plain_transformers(vllm_engine: VllmEngine, models: dict[str, Path], corpus: LossCorpus) -> None:
    require_plain(vllm_engine, models["byte_level"], corpus)


def test_packed_rows_give_what_training_measures(torch_engine: Engine, models: dict[str, Path], tmp_path: Path) -> None:
    directory = models["byte_level"]
    kept = packed(tmp_path / "packed", byte_level(tmp_path / "tokenizer"), {"en": [ENGLISH * 12], "zh": [CHINESE * 4]}, seq_len=WINDOW)
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    heldout = Heldout({name: kept.heldout(name) for name in kept.sources}, dict(zip(kept.sources, kept.weights, strict=True)))
    expected = heldout.losses(heldout.nats(lambda tokens: plain(tokens, use_cache=False).logits, nullcontext))
    torch_engine.load(directory)
    (axis,) = loss_corpora([f"heldout={kept.dir}"], None)
    found = {(row["dataset"], row["unit"]): row for row in measure(torch_engine, encoder_of(directory), axis, None)}
    assert found.keys() == {(loss.dataset, loss.unit) for loss in expected}
    for loss in expected:
        row = found[loss.dataset, loss.unit]
        assert (row["tokens"], row["bytes"]) == (loss.tokens, loss.bytes)
        assert row["value"] == pytest.approx(loss.value, abs=2e-5)
        if loss.unit == "nats/token":  # training takes the bytes of a row as given, the ratio here does not
            assert row["stderr"] == pytest.approx(loss.stderr, abs=2e-5)


def parts(results: Path) -> list[Path]:
    return sorted((results / "parts").rglob("*.parquet"))


def test_losses_are_measured_once(models: dict[str, Path], corpus: LossCorpus, tmp_path: Path) -> None:
    results = tmp_path / "results"

    def run(tasks: list[str], losses: list[LossCorpus]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = evaluate(str(models["byte_level"]), tasks, "torch", 4, False, results, None, losses=losses).to_pylist()
        return rows

    rows = run([], [corpus])
    units = ("bits/byte", "nats/token", "nats/token_vs_unigram")
    assert [(row["dataset"], row["unit"], row["bytes"]) for row in rows] == [("mine", unit, BYTES) for unit in units]
    before = parts(results)
    assert run([], [corpus]) == rows
    assert parts(results) == before
    assert {row["task"] for row in run(["skill_copy"], [corpus])} == {"skill_copy"}
    curve = Results(results).query("SELECT DISTINCT loss_dataset FROM curve WHERE task = 'skill_copy'").to_pylist()
    assert curve == [{"loss_dataset": "mine"}]
    other = tmp_path / "mine.txt"
    other.write_text(ENGLISH, encoding="utf-8")
    with pytest.raises(UserError, match="'mine' that were measured on something else"):
        run([], list(loss_corpora([str(other)], None)))
    with pytest.raises(UserError, match="nothing is asked"):
        run([], [])


def test_two_tokenizers_do_not_share_the_rows_of_a_packed_corpus(models: dict[str, Path], tmp_path: Path) -> None:
    kept = packed(tmp_path / "packed", byte_level(tmp_path / "tokenizer"), {"zh": [CHINESE * 6]})
    folder = tmp_path / "both"
    for name in ("byte_level", "sentencepiece"):
        (folder / name).mkdir(parents=True)
        (folder / name / "step1").symlink_to(models[name])
    shown: list[Any] = []
    axis = loss_corpora([f"held={kept.dir}"], None)
    with pytest.raises(UserError, match=r"would be measured by documents .*, and the results hold 'held' by rows") as refused:
        evaluate(str(folder), [], "torch", None, False, tmp_path / "r", None, losses=axis, present=shown.append)
    assert "--loss NAME=PATH" in refused.value.remedy
    assert {row["dataset"] for row in shown[0].to_pylist()} == {"held", "held/zh"}


def test_the_command(models: dict[str, Path], corpus: LossCorpus, tmp_path: Path, losslens: Callable[..., CompletedProcess[str]]) -> None:
    loss = ("--loss", f"mine={corpus.path}", "--stride", "24", "--results", tmp_path / "r", "--format", "json")
    done = losslens("evaluate", models["sentencepiece"], *loss)
    assert done.returncode == 0, done.stderr
    assert {(row["dataset"], row["bytes"]) for row in json.loads(done.stdout)} == {("mine", BYTES)}
    missing = losslens("evaluate", models["sentencepiece"], "--loss", tmp_path / "none.jsonl")
    assert missing.returncode == 2
    assert "there is no held-out corpus" in missing.stderr
