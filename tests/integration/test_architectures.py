"""Architectures that transformers computes, not we: trained by the loop, saved, and scored as plain transformers does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, MambaConfig, OlmoeConfig, PretrainedConfig

from eval_service.checkpoints import read_config
from eval_service.choose import Available, choose
from eval_service.torch_engine import TorchEngine
from losslens.corpus.tokenizer import make
from losslens.errors import DataMismatch
from losslens.families import Shape
from losslens.families.memory import activations
from losslens.models import build
from losslens.models.scoring import ScoringModel
from losslens.specs import TokenizerSpec, TrainingSpec, load_study
from losslens.tasks.requests import GenerateResult
from tests.plain_reference import plainly
from tests.tiny_models import requests, tiny_model

TOLERANCE = 1e-4  # nats a token
HONOURS_MASKS = {"mixtral": True, "mamba2": False, "olmoe": True, "mamba": False}


def foreign(directory: Path, config: PretrainedConfig) -> Path:
    """A model of somebody else's, as transformers saves it."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    model.save_pretrained(directory)
    make(TokenizerSpec(kind="byte", vocab_size=257), (), directory)
    return directory


SHARED: dict[str, Any] = {"vocab_size": 257, "hidden_size": 64, "num_hidden_layers": 2, "bos_token_id": 256, "eos_token_id": 256}
SHARED |= {"pad_token_id": 256}


def made(folder: Path, name: str) -> Path:
    if name in ("mixtral", "mamba2"):
        return tiny_model(folder / name, name)
    if name == "mamba":
        return foreign(folder / name, MambaConfig(**SHARED | {"state_size": 8, "max_position_embeddings": 128}))
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 4, "num_experts_per_tok": 2}
    return foreign(folder / name, OlmoeConfig(**SHARED, **heads, intermediate_size=48, max_position_embeddings=128))


@pytest.mark.parametrize("name", ["mixtral", "mamba2"])
def test_scores_are_those_of_plain_transformers(tmp_path: Path, name: str) -> None:
    """A probe decides whether options share their context; both ways give the same."""
    directory = made(tmp_path, name)
    engine = TorchEngine(batch_tokens=512)
    try:
        engine.load(directory)
        assert engine._shares == HONOURS_MASKS[name]
        for request, ours, theirs in zip(requests(), engine.run(requests()), plainly(directory), strict=True):
            if isinstance(theirs, GenerateResult):
                assert ours == theirs, request
                continue
            assert not isinstance(ours, GenerateResult)
            assert (ours.tokens, ours.greedy, ours.truncated) == (theirs.tokens, theirs.greedy, theirs.truncated), request
            assert abs(ours.logprob - theirs.logprob) / theirs.tokens <= TOLERANCE, request
    finally:
        engine.close()


@pytest.mark.parametrize("name", ["olmoe", "mamba"])
def test_the_probe_decides_for_models_of_others(tmp_path: Path, name: str) -> None:
    engine = TorchEngine()
    engine.load(made(tmp_path, name))  # proves the load against plain transformers
    assert engine._shares == HONOURS_MASKS[name]
    engine.close()


@pytest.mark.parametrize("name", ["mixtral", "mamba2"])
def test_a_tensor_that_did_not_arrive_is_named(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are compared under the names of the file, experts one by one."""
    one, two = tiny_model(tmp_path / "one", name, seed=0), tiny_model(tmp_path / "two", name, seed=1)
    engine = TorchEngine()
    engine.load(one)
    monkeypatch.setattr(ScoringModel, "load", lambda self, directory: None)
    with pytest.raises(DataMismatch, match=r"the tensor \S+ that was loaded is not the one in \S+two"):
        engine.load(two)
    engine.close()


def test_a_model_without_positions_takes_any_length(tmp_path: Path) -> None:
    directory = foreign(tmp_path / "mamba", MambaConfig(**SHARED, state_size=8))
    assert "max_position_embeddings" not in read_config(directory)
    engine = TorchEngine()
    engine.load(directory)
    assert engine.window == 8192
    engine.close()


@pytest.mark.parametrize(("architecture", "precision"), [("mixtral", "float32"), ("mamba2", "float32"), ("mamba2", "bf16")])
def test_activations_are_about_those_planned(architecture: str, precision: str) -> None:
    """Of one more block, autocast's copies of its matrices left out."""
    own = {"mixtral": {"experts": 4, "active_experts": 2}, "mamba2": {"state_size": 64}}[architecture]
    one = Shape(architecture, 257, 256, 384, 8, 8, 1, 512, 1e4, tie_embeddings=False, **own)
    two = replace(one, layers=2)
    spec = load_study("demo", [f"training.precision={precision}"]).training
    copies = 2 * (two.params_non_embedding - one.params_non_embedding) if precision == "bf16" else 0
    kept = kept_by(two, spec) - kept_by(one, spec) - copies
    assert 512 * (activations(two, spec) - activations(one, spec)) == pytest.approx(kept, rel=0.15)


def kept_by(shape: Shape, spec: TrainingSpec) -> int:
    """Bytes that autograd keeps of one sequence's forward pass."""
    model = build(shape, seed=0)
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    bf16 = torch.autocast("cpu", torch.bfloat16, enabled=spec.precision == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), bf16:
        model.head(model.features(torch.zeros(1, shape.seq_len, dtype=torch.long) + torch.arange(shape.seq_len) % 257))
    return sum(tensor.untyped_storage().nbytes() for storage, tensor in kept.items() if storage not in own)


def test_vllm_is_not_chosen_for_what_it_does_not_serve(tmp_path: Path) -> None:
    engine, reason = choose("auto", read_config(tiny_model(tmp_path / "m", "mamba2")), Available(vllm=True, gpu=False))
    assert (engine, reason) == ("torch", "its config names no attention heads")
