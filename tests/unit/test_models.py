"""The fast decoder against transformers, the export, and strict loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from losslens.errors import DataMismatch, UserError
from losslens.families import Shape
from losslens.models import build, initialise, roles, shape_from_config, transformers_config, write_hugging_face
from losslens.models.adapted import unevenness
from losslens.models.decoder import BLOCK
from losslens.models.export import hugging_face_state, module_state
from losslens.models.scoring import load_for_scoring

VOCABULARY = 97
ARCHITECTURES = ["paper", "llama", "gpt_neox", "mixtral", "mamba2"]
OWN: dict[str, dict[str, int]] = {"mixtral": {"experts": 5, "active_experts": 2}, "mamba2": {"state_size": 12}}


def shape(architecture: str = "paper", *, tie: bool = False, seq_len: int = 64) -> Shape:
    kv_heads = 4 if architecture in ("gpt_neox", "mamba2") else 2
    return Shape(architecture, VOCABULARY, 64, 176, 4, kv_heads, 3, seq_len, 1000.0, tie, **OWN.get(architecture, {}))


def save(directory: Path, of: Shape, seed: int = 3) -> torch.nn.Module:
    model = build(of, seed=seed)
    no_tokenizer = directory / "no-tokenizer"
    no_tokenizer.mkdir()
    write_hugging_face(directory, hugging_face_state(model.state_dict(), of), of, no_tokenizer, 0)
    return model


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (2, 64), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_model_is_the_same_model_in_transformers(tmp_path: Path, tokens: torch.Tensor, architecture: str, tie: bool) -> None:
    model = save(tmp_path, shape(architecture, tie=tie))
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    reference, info = loaded
    assert not any(info.values()), info
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), reference(tokens).logits, atol=1e-5, rtol=0)
        scoring = load_for_scoring(tmp_path)
        torch.testing.assert_close(scoring.head(scoring.features(tokens)), reference(tokens).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ["paper", "llama"])
def test_both_ways_of_attention_agree(architecture: str) -> None:
    """Training on a CPU writes attention out, in blocks where a row has several; scoring long rows takes the fused kernel."""
    model = build(shape(architecture, seq_len=300), seed=1)
    for T in (7, BLOCK, BLOCK + 1, 300):
        tokens = torch.randint(0, 64, (2, T), generator=torch.Generator().manual_seed(T))
        with torch.no_grad():
            fused = model(tokens)
        torch.testing.assert_close(model(tokens), fused, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_counted_parameters_are_the_real_ones(architecture: str, tie: bool) -> None:
    of = shape(architecture, tie=tie)
    assert sum(p.numel() for p in build(of, seed=0).parameters()) == of.params


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_roles_cover_every_parameter_once(architecture: str) -> None:
    model = build(shape(architecture), seed=0)
    named = [name for members in roles(model).values() for name, _ in members]
    assert sorted(named) == sorted(name for name, _ in model.named_parameters())
    assert [len(roles(model)[role]) for role in ("embedding", "head")] == [1, 1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_flops_count_what_a_token_meets(architecture: str) -> None:
    """6 for each parameter outside the look-up, of experts those that are active; and 6 L T D of attention, or 18 L I S of states."""
    of = shape(architecture)
    sizes = {name: p.numel() for name, p in build(of, seed=0).named_parameters() if "embed" not in name or "embed_out" in name}
    met = sum(size * 2 / 5 if "experts" in name else size for name, size in sizes.items())
    mixing = 18 * 3 * 128 * 12 if architecture == "mamba2" else 6 * 3 * 64 * 64
    assert of.flops_per_token == pytest.approx(6 * met + mixing)
    assert of.params_active == met + VOCABULARY * 64


def test_uneven_experts_cost() -> None:
    """1 where all are used alike, the number of experts where all goes to one; its gradient is no part of the loss that is told."""
    even, lopsided = torch.eye(4).repeat(5, 1) * 9, torch.tensor([9.0, 0, 0, 0]).repeat(20, 1)
    assert unevenness([even, even], 1) == pytest.approx(1)
    assert unevenness([lopsided], 1) == pytest.approx(4, rel=1e-2)
    model = build(shape("mixtral"), seed=0)
    tokens = torch.randint(0, VOCABULARY, (2, 9))
    model.features(tokens)
    penalty = model.penalty()
    assert penalty is not None and penalty.requires_grad and penalty > 0
    assert model.penalty() is None
    with torch.no_grad():
        model.features(tokens)
    assert model.penalty() is None


def test_shape_round_trips_through_the_config() -> None:
    for architecture in ("paper", "llama"):
        assert shape_from_config(transformers_config(shape(architecture), 0)) == shape(architecture)
    assert shape_from_config(transformers_config(shape("gpt_neox"), 0)) is None


def test_a_llama_with_partial_rotary_positions_is_left_to_transformers() -> None:
    config = transformers_config(shape("llama"), 0)
    config.rope_parameters["partial_rotary_factor"] = 0.5
    assert shape_from_config(config) is None


def test_export_and_import_are_inverse() -> None:
    for architecture in ("paper", "llama"):
        model = build(shape(architecture), seed=0)
        state = model.state_dict()
        back = module_state(hugging_face_state(state, shape(architecture)), shape(architecture))
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("rows", [1, 7, 100, 300, 512])
def test_any_rows_begin_as_they_do_among_all(rows: int) -> None:
    """Ranks of a sharded run, which hold some rows each, begin with the weights of a run that holds them whole."""
    of = replace(shape(), vocab_size=600)
    whole = dict(build(of, seed=3).named_parameters())
    for first in range(0, 600, rows):
        some = nn.ModuleDict({"model": nn.ModuleDict({"embed_tokens": nn.Embedding(min(rows, 600 - first), of.d_model)})})
        initialise(some, of, "fan_in", 3, lambda parameter, first=first: (first, 600))  # type: ignore[misc]
        [(name, found)] = some.named_parameters()
        assert torch.equal(found, whole[name][first : first + rows])
    assert 0.9 < whole["model.embed_tokens.weight"].std() < 1.1


def test_a_hollow_model_takes_no_memory() -> None:
    of = shape()
    hollow = build(of, seed=3, hollow=True)
    assert all(parameter.is_meta for parameter in hollow.parameters())
    assert {name: parameter.shape for name, parameter in hollow.named_parameters()} == {
        name: parameter.shape for name, parameter in build(of, seed=3).named_parameters()
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_tensor_is_saved_as_it_is_among_all(architecture: str) -> None:
    """A sharded run's checkpoint is written tensor by tensor."""
    of = shape(architecture)
    state = build(of, seed=0).state_dict()
    alone = {name: piece for given in state for name, piece in hugging_face_state({given: state[given]}, of).items()}
    together = hugging_face_state(state, of)
    assert alone.keys() == together.keys()
    assert all(torch.equal(alone[name], together[name]) for name in together)


def test_same_seed_same_weights_whatever_ran_before() -> None:
    first = build(shape(), seed=5).state_dict()
    torch.rand(7)
    again, other = build(shape(), seed=5).state_dict(), build(shape(), seed=6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loads_name_the_tensor_that_is_wrong(tmp_path: Path, architecture: str) -> None:
    save(tmp_path, shape(architecture))
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    victim = sorted(name for name in whole if ".1." in name and name.endswith("weight"))[0]

    save_file({name: tensor for name, tensor in whole.items() if name != victim}, file)
    with pytest.raises(DataMismatch, match=f"lacks the tensor {victim}"):
        load_for_scoring(tmp_path)
    save_file({**whole, "model.surprise.weight": torch.zeros(2)}, file)
    with pytest.raises(DataMismatch, match=r"unknown tensor model\.surprise\.weight"):
        load_for_scoring(tmp_path)


def test_unreadable_directories_get_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load_for_scoring(tmp_path)
    save(tmp_path, shape())
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        load_for_scoring(tmp_path)
    file.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        load_for_scoring(tmp_path)
