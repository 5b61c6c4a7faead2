"""Weights as Hugging Face directories: what plain transformers and vLLM load as they are."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from losslens.families import Shape
from losslens.models.config import SAVED_AS, transformers_config

TOKENIZER_FILES = "tokenizer*.json"


def write_hugging_face(directory: Path, state: Mapping[str, Tensor], shape: Shape, tokenizer: Path, eos_token_id: int) -> None:
    """Write config, float32 weights and tokenizer files into an existing directory.

    `state` maps names as given by `hugging_face_state` to tensors.
    """
    write_card(directory, shape, tokenizer, eos_token_id)
    # clone(): a view would drag its whole storage along. CPU: asynchronous writers come later.
    tensors = {name: tensor.detach().to("cpu", torch.float32).contiguous().clone() for name, tensor in state.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def write_card(directory: Path, shape: Shape, tokenizer: Path, eos_token_id: int) -> None:
    """Write what a Hugging Face directory holds beside its weights: config and tokenizer files."""
    config = transformers_config(shape, eos_token_id)
    config.architectures = [SAVED_AS[shape.architecture]]
    config.save_pretrained(directory)
    for file in sorted(tokenizer.glob("*.json")):
        shutil.copyfile(file, directory / file.name)


def hugging_face_state(state: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """The module's tensors under the names and in the pieces of the saved architecture."""
    if shape.architecture not in ("paper", "llama"):
        from losslens.models.adapted import saved_names  # here: transformers takes two seconds to import

        return saved_names(state, transformers_config(shape, 0))
    kept = {name: tensor for name, tensor in state.items() if not (shape.tie_embeddings and name == "lm_head.weight")}
    if shape.architecture == "paper":
        return kept
    split: dict[str, Tensor] = {}
    for name, tensor in kept.items():
        split.update(_llama_pieces(name, tensor, shape))
    return split


def module_state(saved: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """The inverse of `hugging_face_state` for `Decoder`: saved tensors under the module's names, fused again.

    Raises:
        KeyError: naming the saved tensor that is missing.
    """
    state = dict(saved)
    if shape.architecture == "llama":
        for layer in range(shape.layers):
            block = f"model.layers.{layer}"
            for fused, parts in _FUSED.items():
                pieces = [state.pop(f"{block}.{fused.rsplit('.', 1)[0]}.{part}.weight") for part in parts]
                state[f"{block}.{fused}.weight"] = torch.cat(pieces)
    if shape.tie_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return state


_FUSED = {"self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"), "mlp.gate_up_proj": ("gate_proj", "up_proj")}


def _llama_pieces(name: str, tensor: Tensor, shape: Shape) -> dict[str, Tensor]:
    for fused, parts in _FUSED.items():
        if name.endswith(f"{fused}.weight"):
            rows = [shape.heads * shape.head_dim] + [shape.kv_heads * shape.head_dim] * 2 if len(parts) == 3 else [shape.d_ffn] * 2
            stem = name.removesuffix(f"{fused.rsplit('.', 1)[1]}.weight")
            return {f"{stem}{part}.weight": piece for part, piece in zip(parts, torch.split(tensor, rows), strict=True)}
    return {name: tensor}
