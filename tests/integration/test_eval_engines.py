"""Both engines against plain transformers, one request at a time: every architecture, reloads in place, bad checkpoints."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval_service.engine import Engine
from eval_service.torch_engine import TorchEngine
from eval_service.vllm_engine import VllmEngine, installed
from losslens.errors import DataMismatch, EnvironmentFailure, LosslensError, UserError
from losslens.models.scoring import ScoringModel
from losslens.tasks.requests import GenerateResult, LogLikelihoodResult
from tests.plain_reference import plainly
from tests.tiny_models import requests, tiny_checkpoint, tiny_model

TOLERANCE = 1e-4  # nats per token
needs_vllm = pytest.mark.skipif(not installed(), reason="vLLM is not installed")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    root = tmp_path_factory.mktemp("models")

    def made(architecture: str, seed: int) -> Path:
        directory = root / f"{architecture}-{seed}"
        return directory if directory.exists() else tiny_model(directory, architecture, seed)

    return made


@pytest.fixture(scope="module")
def torch_engine() -> Iterator[TorchEngine]:
    engine = TorchEngine(batch_tokens=512)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def vllm_engine() -> Iterator[VllmEngine]:
    if not installed():
        pytest.skip("vLLM is not installed")
    engine = VllmEngine(warm=2)
    yield engine
    engine.close()


def require_equal(found: list[Any], expected: list[Any]) -> None:
    for request, ours, theirs in zip(requests(), found, expected, strict=True):
        if isinstance(theirs, GenerateResult):
            assert ours == theirs, request
            continue
        assert (ours.tokens, ours.greedy, ours.truncated) == (theirs.tokens, theirs.greedy, theirs.truncated), request
        assert abs(ours.logprob - theirs.logprob) / theirs.tokens <= TOLERANCE, request


@pytest.mark.parametrize("architecture", ["paper", "llama", "gpt_neox"])
def test_torch_agrees_with_plain_transformers(torch_engine: Engine, models: Callable[[str, int], Path], architecture: str) -> None:
    for seed in (0, 1):  # the second is a reload in place
        torch_engine.load(models(architecture, seed))
        require_equal(torch_engine.run(requests()), plainly(models(architecture, seed)))


@pytest.mark.parametrize("architecture", ["paper", "gpt_neox"])
def test_threads_change_nothing(models: Callable[[str, int], Path], architecture: str) -> None:
    """Each thread computes batches of its own with the same kernels: the same bits, after a reload too."""
    found = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            engine = TorchEngine(batch_tokens=64)
            for seed in (0, 1):
                engine.load(models(architecture, seed))
                found.append(engine.run(requests()))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        engine.close()
    assert found[:2] == found[2:]
    require_equal(found[3], plainly(models(architecture, 1)))


def test_requests_choose_something(models: Callable[[str, int], Path]) -> None:
    """The comparison is worth something: answers differ between weights, some are greedy, some truncated."""
    one, two = plainly(models("paper", 0)), plainly(models("paper", 1))
    scored = [r for r in one if isinstance(r, LogLikelihoodResult)]
    assert one != two
    assert {r.truncated for r in scored} == {r.greedy for r in scored} == {True, False}


@needs_vllm
@pytest.mark.parametrize("architecture", ["paper", "gpt_neox"])
def test_vllm_agrees_with_plain_transformers(vllm_engine: VllmEngine, models: Callable[[str, int], Path], architecture: str) -> None:
    for seed in (0, 1, 0):
        vllm_engine.load(models(architecture, seed))
        require_equal(vllm_engine.run(requests()), plainly(models(architecture, seed)))


@needs_vllm
def test_weights_that_did_not_arrive_are_refused(
    vllm_engine: VllmEngine, models: Callable[[str, int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reload that does nothing leaves the weights before: the probe must see it."""
    vllm_engine.load(models("paper", 0))
    for warm in vllm_engine._warm.values():
        for process in warm._processes():
            monkeypatch.setattr(process, "reload", lambda checkpoint: None)
    with pytest.raises(DataMismatch, match=r"the tensor model\.\S+ that was loaded is not the one in \S+paper-1"):
        vllm_engine.load(models("paper", 1))
    with pytest.raises(LosslensError, match="no checkpoint is loaded"):
        vllm_engine.run(requests())
    monkeypatch.undo()
    vllm_engine.load(models("paper", 1))
    require_equal(vllm_engine.run(requests()), plainly(models("paper", 1)))


@needs_vllm
def test_a_prefix_cache_of_the_weights_before_is_refused(vllm_engine: VllmEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (tiny_model(tmp_path / f"{seed}", seed=seed, seq_len=512) for seed in (0, 1))  # several blocks of the cache
    vllm_engine.load(one)
    for warm in vllm_engine._warm.values():
        for process in warm._processes():
            monkeypatch.setattr(process._llm, "reset_prefix_cache", lambda: True)
    with pytest.raises(DataMismatch, match="nats a token"):
        vllm_engine.load(two)
    monkeypatch.undo()
    vllm_engine.load(two)


def test_torch_names_the_tensor_that_did_not_arrive(models: Callable[[str, int], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine()
    engine.load(models("llama", 0))
    monkeypatch.setattr(ScoringModel, "load", lambda self, directory: None)
    with pytest.raises(DataMismatch, match=r"the tensor model\.\S+ that was loaded is not the one in \S+llama-1"):
        engine.load(models("llama", 1))
    with pytest.raises(LosslensError, match="no checkpoint is loaded"):
        engine.run(requests())


@pytest.mark.parametrize("architecture", ["paper", "llama", "gpt_neox"])
def test_torch_shares_what_it_can(torch_engine: TorchEngine, models: Callable[[str, int], Path], architecture: str) -> None:
    torch_engine.load(models(architecture, 0))
    assert torch_engine._shares


def test_tied_weights_are_one_tensor(torch_engine: Engine, tmp_path: Path) -> None:
    tied = tiny_model(tmp_path / "tied", "llama", tied=True)
    state = load_file(tied / "model.safetensors")
    assert "lm_head.weight" not in state
    torch_engine.load(tied)
    require_equal(torch_engine.run(requests()), plainly(tied))
    save_file(state | {"lm_head.weight": state["model.embed_tokens.weight"] + 1}, tied / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataMismatch, match=r"has a tensor lm_head\.weight of its own"):
        torch_engine.load(tied)


def test_log_probabilities_of_tokens(torch_engine: Engine, models: Callable[[str, int], Path]) -> None:
    torch_engine.load(models("paper", 0))
    model = AutoModelForCausalLM.from_pretrained(models("paper", 0), dtype=torch.float32)
    sequences, first = [[5, 6, 7, 8], [5, 6], list(range(100))], [2, 1, 99]
    with torch.inference_mode():
        for found, sequence, at in zip(torch_engine.logprobs(sequences, first), sequences, first, strict=True):
            logprob = model(torch.tensor([sequence[:-1]])).logits[0].log_softmax(-1)[range(len(sequence) - 1), sequence[1:]]
            assert found == pytest.approx(logprob[at - 1 :].double().numpy(), abs=TOLERANCE)


_SCRIPT = """
import json, sys
from pathlib import Path
from eval_service.vllm_engine import VllmEngine
from tests.tiny_models import requests
if __name__ == "__main__":
    engine = VllmEngine()
    engine.load(Path(sys.argv[1]))
    print(json.dumps([getattr(r, "logprob", None) for r in engine.run(requests())]))
    engine.close()
"""


@needs_vllm
def test_a_process_that_used_vllm_ends_well(models: Callable[[str, int], Path], tmp_path: Path, environment: dict[str, str]) -> None:
    script = tmp_path / "score.py"
    script.write_text(_SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script, models("llama", 0)], capture_output=True, text=True, env=environment, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for ours, theirs in zip(json.loads(done.stdout), plainly(models("llama", 0)), strict=True):
        assert ours is None or (isinstance(theirs, LogLikelihoodResult) and abs(ours - theirs.logprob) <= TOLERANCE * theirs.tokens)


def _flip(directory: Path) -> None:
    file = directory / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _cut(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    _sign(directory)


def _drop(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    _sign(directory)


def _add(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.7.mlp.down_proj.weight"] = torch.zeros(2, 2)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    _sign(directory)


def _infinite(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"][3] = float("nan")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    _sign(directory)


def _sign(directory: Path) -> None:
    """The card as if the file had been written so."""
    card = json.loads((directory / "losslens.json").read_text(encoding="utf-8"))
    card["files"]["model.safetensors"] = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    (directory / "losslens.json").write_text(json.dumps(card), encoding="utf-8")


@pytest.mark.parametrize("engine", ["torch", pytest.param("vllm", marks=needs_vllm)])
@pytest.mark.parametrize(
    ("damage", "error", "sentence"),
    [
        (_flip, DataMismatch, "model.safetensors is not what was written"),
        (_cut, UserError, "model.safetensors cannot be read"),
        (_drop, DataMismatch, "lacks the tensor model.layers.1.mlp.down_proj.weight"),
        (_add, DataMismatch, "holds the unknown tensor model.layers.7.mlp.down_proj.weight"),
    ],
)
def test_bad_checkpoints_are_refused(
    torch_engine: Engine, engine: str, damage: Callable[[Path], None], error: type[LosslensError], sentence: str, tmp_path: Path
) -> None:
    directory = tiny_checkpoint(tmp_path, "run", 1)
    damage(directory)
    held = torch_engine if engine == "torch" else VllmEngine()
    with pytest.raises(error) as refused:
        held.load(directory)
    assert sentence in str(refused.value)
    with pytest.raises(LosslensError, match="no checkpoint is loaded"):
        held.run(requests())


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path, "run", 1)
    _infinite(directory)
    with pytest.raises(DataMismatch, match="differ by nan"):
        TorchEngine().load(directory)


def test_a_head_size_that_vllm_lacks_is_a_sentence(models: Callable[[str, int], Path], tmp_path: Path) -> None:
    directory = Path(shutil.copytree(models("paper", 0), tmp_path / "odd"))
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4}), encoding="utf-8")
    with pytest.raises(EnvironmentFailure, match="no head size 16"):
        VllmEngine().load(directory)


def test_a_model_saved_by_transformers_itself_is_scored(models: Callable[[str, int], Path], torch_engine: Engine, tmp_path: Path) -> None:
    """transformers stores a GPT-NeoX head under its older name."""
    model = AutoModelForCausalLM.from_pretrained(models("gpt_neox", 0))
    model.save_pretrained(tmp_path / "saved")
    AutoTokenizer.from_pretrained(models("gpt_neox", 0)).save_pretrained(tmp_path / "saved")
    torch_engine.load(tmp_path / "saved")
    require_equal(torch_engine.run(requests()), plainly(models("gpt_neox", 0)))
