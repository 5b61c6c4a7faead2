"""Shape -> initialised module, and the roles of its parameters that optimizers and initialisation go by."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from losslens.families import Shape
from losslens.models.decoder import Decoder
from losslens.models.language_model import LanguageModel

_TOGETHER = 256  # rows of a matrix that have one stream of random numbers
# Tensor, one of a module's parameters -> the number of its first row in the whole matrix, and how many rows that has.
Part = Callable[[Tensor], tuple[int, int]]


def build(shape: Shape, *, seed: int, initialisation: str = "fan_in", eos_token_id: int = 0, hollow: bool = False) -> LanguageModel:
    """A freshly initialised model; equal arguments give equal weights, on any device.

    A `hollow` one takes no memory: its parameters are on the device `meta`, and what they begin with is told by `initialise`.
    Models of transformers' classes cannot be.
    """
    if shape.architecture in ("paper", "llama"):
        model: LanguageModel = Decoder(shape, device="meta" if hollow else "cpu")
        if hollow:
            return model
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _adapted(shape, eos_token_id)
    initialise(model, shape, initialisation, seed)
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


def _all_of(parameter: Tensor) -> tuple[int, int]:
    return 0, len(parameter)


@torch.no_grad()
def initialise(model: nn.Module, shape: Shape, scheme: str, seed: int, part: Part = _all_of) -> None:
    """Fill a model's parameters, or some rows of each: which, says `part`. Any rows get what they would get among all.

    `fan_in`: embeddings N(0, 1), hidden matrices N(0, 1 / fan_in), the two projections that write into the residual
    stream scaled by 1 / sqrt(2 L), head N(0, 1 / D^2) so that the first logits are small at any width.
    `normal`: N(0, 0.02^2) everywhere, residual projections scaled likewise (GPT-2).
    Decays, time steps and convolutions of state-space layers keep what their class gave them.
    """
    residual = 1 / math.sqrt(2 * shape.layers)
    by_role = roles(model)
    for name, weight in by_role["embedding"]:
        _draw(weight, f"{seed} {name}", 1.0 if scheme == "fan_in" and not shape.tie_embeddings else 0.02, part)
    for name, weight in by_role["hidden"]:
        std = 1 / math.sqrt(weight.shape[-1]) if scheme == "fan_in" else 0.02
        writes_residual = any(ending in name for ending in ("o_proj", "down_proj", "dense_4h_to_h", "attention.dense", "out_proj"))
        _draw(weight, f"{seed} {name}", std * residual if writes_residual else std, part)
    for name, weight in by_role["head"]:
        _draw(weight, f"{seed} {name}", 1 / shape.d_model if scheme == "fan_in" else 0.02, part)
    for name, gain in by_role["gain"]:
        if any(kept in name for kept in _OF_THE_CLASS):
            continue
        gain.fill_(0.0 if name.endswith("bias") else 1.0)


def _draw(weight: Tensor, stream: str, std: float, part: Part) -> None:
    """N(0, std^2), on the host, a few rows at a time: each `_TOGETHER` of the whole matrix have a stream of their own."""
    first, whole = part(weight)
    last = first + len(weight)
    for start in range(first - first % _TOGETHER, last, _TOGETHER):
        stop = min(start + _TOGETHER, whole)
        seed = hashlib.blake2b(f"{stream} {start}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(seed) >> 1)
        rows = torch.empty(stop - start, *weight.shape[1:]).normal_(std=std, generator=generator)
        low, high = max(start, first), min(stop, last)
        weight[low - first : high - first] = rows[low - start : high - start]
