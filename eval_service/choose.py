"""Which engine scores a model, and why: a pure decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eval_service.engine import EngineDied
from eval_service.vllm_engine import installed, serves
from losslens.errors import DataMismatch, EnvironmentFailure, LosslensError, UserError

# Parameters from which vLLM is taken on a CPU. Measured at 2.8M and 18.9M, where one plain forward scores more options a
# second than vLLM does (tests/bench/bench_lm_eval.py); not measured above 19M.
LARGE_ON_CPU = 300_000_000


@dataclass(frozen=True, slots=True)
class Available:
    """What this machine has."""

    vllm: bool
    gpu: bool


def available() -> Available:
    """Look at this machine. Imports torch, not vLLM."""
    from eval_service.torch_engine import best_device

    return Available(vllm=installed(), gpu=best_device() == "cuda")


def choose(engine: str, config: Mapping[str, Any], machine: Available) -> tuple[str, str]:
    """(engine's short name, reason) for a model's config.json. `engine` is what the user asked for.

    Raises:
        UserError: vLLM was asked for by name and does not serve this model, or there is no such engine.
        EnvironmentFailure: vLLM was asked for by name and is not installed.
    """
    if engine in ("torch", "fake"):
        return engine, "asked for"
    if engine not in ("auto", "vllm"):
        raise UserError(f"there is no engine {engine!r}", "choose from auto, vllm, torch")
    against = serves(config, machine.gpu)
    if engine == "vllm":
        if not machine.vllm:
            raise EnvironmentFailure("vLLM is not installed", "run `losslens doctor`, or use --engine torch")
        if against:
            raise UserError(f"vLLM does not serve this model: {against}", "use --engine torch or auto")
        return "vllm", "asked for"
    if not machine.vllm:
        return "torch", "vLLM is not installed"
    if against:
        return "torch", against
    if machine.gpu:
        return "vllm", "there is a GPU"
    params = rough_params(config)
    if params >= LARGE_ON_CPU:
        return "vllm", f"about {params / 1e6:,.0f}M parameters are many for one plain forward on a CPU"
    return "torch", f"for about {params / 1e6:,.1f}M parameters on a CPU a plain batched forward is faster"


def instead(asked: str, engine: str, error: LosslensError) -> tuple[str, str] | None:
    """(engine, reason) to try when loading has failed: torch, where nobody asked for vLLM by name and it does not run the model or does
    not compute what plain transformers computes. None: the error stands; a process that died gets another try."""
    if asked != "auto" or engine != "vllm" or isinstance(error, EngineDied) or not isinstance(error, EnvironmentFailure | DataMismatch):
        return None
    return "torch", f"vLLM does not serve it: {error.message}"


def rough_params(config: Mapping[str, Any]) -> int:
    """Parameters to within some tens of per cent: embeddings, and 4 D^2 + 3 D F a layer."""
    d, layers = int(config.get("hidden_size", 0)), int(config.get("num_hidden_layers", 0))
    return int(config.get("vocab_size", 0)) * d * 2 + layers * (4 * d * d + 3 * d * int(config.get("intermediate_size") or 4 * d))
