"""Shape -> initialised module, and the roles of its parameters that optimizers and initialisation go by."""

from __future__ import annotations

import math

import torch
from torch import nn

from losslens.families import Shape
from losslens.models.decoder import Decoder
from losslens.models.language_model import LanguageModel


def build(shape: Shape, *, seed: int, initialisation: str = "fan_in", eos_token_id: int = 0) -> LanguageModel:
    """A freshly initialised model; equal arguments give equal weights, on any device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Decoder(shape) if shape.architecture in ("paper", "llama") else _adapted(shape, eos_token_id)
        initialise(model, shape, initialisation)
    return model


def _adapted(shape: Shape, eos_token_id: int) -> LanguageModel:
    from losslens.models.adapted import AdaptedModel  # here: transformers takes two seconds to import
    from losslens.models.config import transformers_config

    return AdaptedModel(transformers_config(shape, eos_token_id))


def roles(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Parameters by role: `embedding`, `head`, `hidden` (matrices inside blocks, or stacks of them) and `gain` (gains, biases, and a
    convolution's weights, which channels do not mix).

    A tied head counts once, as embedding.
    """
    sorted_out: dict[str, list[tuple[str, nn.Parameter]]] = {"embedding": [], "head": [], "hidden": [], "gain": []}
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or "conv1d" in name:
            sorted_out["gain"].append((name, parameter))
        elif "embed" in name and "embed_out" not in name:
            sorted_out["embedding"].append((name, parameter))
        elif "lm_head" in name or "embed_out" in name:
            sorted_out["head"].append((name, parameter))
        else:
            sorted_out["hidden"].append((name, parameter))
    return sorted_out


_OF_THE_CLASS = ("conv1d", "A_log", "dt_bias")


@torch.no_grad()
def initialise(model: nn.Module, shape: Shape, scheme: str) -> None:
    """Fill weights in a fixed order from the current random state.

    `fan_in`: embeddings N(0, 1), hidden matrices N(0, 1 / fan_in), the two projections that write into the residual
    stream scaled by 1 / sqrt(2 L), head N(0, 1 / D^2) so that the first logits are small at any width.
    `normal`: N(0, 0.02^2) everywhere, residual projections scaled likewise (GPT-2).
    Decays, time steps and convolutions of state-space layers keep what their class gave them.
    """
    residual = 1 / math.sqrt(2 * shape.layers)
    by_role = roles(model)
    for _, weight in by_role["embedding"]:
        weight.normal_(std=1.0 if scheme == "fan_in" and not shape.tie_embeddings else 0.02)
    for name, weight in by_role["hidden"]:
        std = 1 / math.sqrt(weight.shape[-1]) if scheme == "fan_in" else 0.02
        writes_residual = any(part in name for part in ("o_proj", "down_proj", "dense_4h_to_h", "attention.dense", "out_proj"))
        weight.normal_(std=std * residual if writes_residual else std)
    for _, weight in by_role["head"]:
        weight.normal_(std=1 / shape.d_model if scheme == "fan_in" else 0.02)
    for name, gain in by_role["gain"]:
        if any(part in name for part in _OF_THE_CLASS):
            continue
        gain.fill_(0.0 if name.endswith("bias") else 1.0)
