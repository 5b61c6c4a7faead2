"""The vLLM engine: one warm vLLM per shape, its weights replaced in place, float32.

vLLM runs in processes of its own: loading a model through its transformers backend patches transformers' classes, so the
reference forward that proves each load must live elsewhere. Log-probabilities come from a scoring twin of the model
(`vllm_scorer`) that reads the prefix cache for the context; a second vLLM, which generates, is started on the same weights when
the first open question is asked.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from eval_service.checkpoints import read_config, shape_key, verify_files, verify_tensors
from eval_service.encoder import HubEncoder, encoder_of
from eval_service.engine import EngineDied
from eval_service.planner import (
    Choice,
    Floats,
    Ints,
    Packed,
    Plan,
    Prefill,
    Prompt,
    Scores,
    assemble,
    cut,
    length,
    pack,
    plan,
    prefills,
    require_known,
    unpack,
)
from eval_service.plans import Plans, blocks
from losslens.errors import DataMismatch, EnvironmentFailure, LosslensError
from losslens.tasks.requests import GenerateResult, Request, Result

# vllm/v1/attention/backends/cpu_attn.py, CPUAttentionBackend.get_supported_head_sizes, vLLM 0.32
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
_AT_ONCE = 2000  # requests handed over together
_EXTRA = 2  # positions beyond the window: the last scored token, and the token vLLM insists on generating
_CLOSING_S = 5.0
_CACHE_BYTES = {"cpu": 2**28, "cuda": 2**32}  # keys and values of each of the two vLLMs; weights come on top, once for each
# Tokens of a block of keys and values. A prefix is shared by whole blocks, and options of one item within one step: with the
# CPU's default of 128 the options of HellaSwag share nothing, with 32, its least, they do (1.0 to 1.3 of prefill instead of 0.8 to 0.9).
_BLOCK: dict[str, int | None] = {"cpu": 32, "cuda": None}
_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout belongs to the rows a verb prints
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_PLUGINS": "losslens_scorer",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # its default pins every engine to the same cores
    "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1),
}


def serves(config: Mapping[str, Any], gpu: bool = False) -> str | None:
    """Why vLLM does not serve a model with this config.json, or None when nothing is known against it."""
    heads = config.get("num_attention_heads")
    if not heads or not config.get("hidden_size"):
        return "its config names no attention heads"
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    if not gpu and head_size not in CPU_HEAD_SIZES:
        return f"vLLM's CPU attention has no head size {head_size}"
    if "LlamaForCausalLM" in (config.get("architectures") or ()) and _rotary_fraction(config) != 1:
        return "transformers ignores a Llama's partial_rotary_factor and vLLM honours it: they are two models"
    return None


def installed() -> bool:
    """Whether vLLM is on this machine, without importing it."""
    return importlib.util.find_spec("vllm") is not None


class VllmEngine:
    """At most `warm` vLLM processes, one per shape and tokenizer; the least recently used one makes room."""

    name = "vllm/float32"

    def __init__(self, warm: int = 4) -> None:
        self._warm: OrderedDict[tuple[str, str], _Warm] = OrderedDict()
        self._most = warm
        self._current: _Warm | None = None
        self._plans: Plans[tuple[Plan, tuple[Choice, ...], tuple[Prefill, ...]]] = Plans()

    def load(self, checkpoint: Path) -> None:
        """Hold this directory; see `Engine.load`. Every load is proven by a probe against plain transformers."""
        from eval_service.torch_engine import plain_logprobs, probe_tokens, require_agreement
        from losslens.models.scoring import plain_transformers

        self._current = None  # a failed load leaves nothing that could be scored
        if reason := serves(read_config(checkpoint), gpu=_device() == "cuda"):
            raise EnvironmentFailure(f"vLLM does not serve {checkpoint}: {reason}", "use the torch engine (--engine torch)")
        verify_files(checkpoint)
        encoder = encoder_of(checkpoint)
        reference = plain_transformers(checkpoint)
        warm = self._warmed(checkpoint, encoder)
        warm.verify()
        probe = probe_tokens(warm.vocab_size, warm.window)
        expected = plain_logprobs(reference, probe)
        found = [scores for scores, _ in warm.prefill([_whole(sequence) for sequence in probe])]
        require_agreement(checkpoint, self.name, found, expected)
        # Once more through the prefix cache, which would tell on keys and values of the weights before.
        last = [scores for scores, _ in warm.choose([Choice(pack(s[:-1]), (s[-1],), (0,)) for s in probe])]
        require_agreement(checkpoint, self.name, last, [logprob[-1:] for logprob in expected])
        self._current = warm

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in order."""
        return [result for block in blocks(requests) for result in self._block(block)]

    def _block(self, requests: tuple[Request, ...]) -> list[Result]:
        warm = self._loaded()
        terms = (warm.encoder, warm.window, warm.vocab_size)
        made, choices, whole = self._plans.of(requests, *terms, make=lambda: _planned(requests, *terms))
        scored = [
            *((np.array(c.owners), *scores) for c, scores in zip(choices, warm.choose(choices), strict=True)),
            *((p.owner, *scores) for p, scores in zip(whole, warm.prefill(whole), strict=True)),
        ]
        results: dict[int, Result] = {}
        if scored:
            results.update(assemble(made.truncated, *(np.concatenate(parts) for parts in zip(*scored, strict=True))))
        for prompt, text in zip(made.prompts, warm.generate(made.prompts), strict=True):
            results[prompt.owner] = GenerateResult(text, made.truncated[prompt.owner])
        return [results[i] for i in range(len(requests))]

    @property
    def encoder(self) -> HubEncoder:
        """The tokenizer of the loaded checkpoint."""
        return self._loaded().encoder

    @property
    def window(self) -> int:
        """Input tokens that the loaded checkpoint takes at most."""
        return self._loaded().window

    def logprobs(self, sequences: Sequence[Sequence[int] | Ints], first: Sequence[int]) -> list[Floats]:
        """See `Engine.logprobs`."""
        asked = [_whole(sequence, at) for sequence, at in zip(sequences, first, strict=True)]
        return [logprob for logprob, _ in self._loaded().prefill(asked)]

    def close(self) -> None:
        """Shut every vLLM process down: left to the interpreter's exit they abort it."""
        self._current = None
        while self._warm:
            self._warm.popitem()[1].shutdown()

    def _loaded(self) -> _Warm:
        if self._current is None:
            raise LosslensError("no checkpoint is loaded", "load one first")
        return self._current

    def _warmed(self, checkpoint: Path, encoder: HubEncoder) -> _Warm:
        """A vLLM of the checkpoint's shape that holds its weights."""
        key = (shape_key(checkpoint), encoder.fingerprint)
        warm = self._warm.pop(key, None)
        try:
            if warm is None:
                while len(self._warm) >= self._most:
                    self._warm.popitem(last=False)[1].shutdown()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # its imports use what torch has deprecated: nothing we or users can mend
                    warm = _Warm(checkpoint, encoder)
            else:
                warm.reload(checkpoint)
        except Exception as error:  # vLLM raises whatever its parts raise
            if warm is None:
                raise EnvironmentFailure(f"vLLM cannot load {checkpoint}: {error}", "use the torch engine (--engine torch)") from error
            warm.shutdown()
            raise EngineDied(f"vLLM could not take over the weights of {checkpoint}: {error}", "score again") from error
        self._warm[key] = warm
        return warm


class _Warm:
    """A shape's vLLMs: one that scores, and one that generates once that is asked for. The window is what the torch engine
    gives the same model, so both truncate alike."""

    def __init__(self, checkpoint: Path, encoder: HubEncoder) -> None:
        for variable, value in _ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        from transformers import AutoConfig

        from eval_service.torch_engine import window_of

        self._config: Any = AutoConfig.from_pretrained(checkpoint)
        self.encoder = encoder
        self.vocab_size = int(self._config.vocab_size)
        positions = int(self._config.max_position_embeddings)
        self.window = window_of(positions)
        if not _any_length(self._config):
            self.window = min(self.window, positions - _EXTRA)
        self._checkpoint = checkpoint
        self._scoring = _Process(checkpoint, self._config, self.window, scoring=True)
        self._generating: _Process | None = None

    def reload(self, checkpoint: Path) -> None:
        """Replace the weights in place."""
        self._checkpoint = checkpoint
        for process in self._processes():
            process.reload(checkpoint)

    def verify(self) -> None:
        """Every vLLM holds the bits of the files; see `checkpoints.verify_tensors`."""
        for process in self._processes():
            loaded, fused = process.checksums()
            verify_tensors(self._checkpoint, loaded, fused)

    def prefill(self, whole: Sequence[Prefill]) -> list[Scores]:
        """Per sequence: log-probability and greediness of its scored tokens."""
        starts = [int(p.position.min()) - 1 for p in whole]
        asked = [{"start": start} for start in starts]
        found = self._scoring.score(
            [p.tokens for p in whole], asked, [length(p.tokens) - 1 - start for p, start in zip(whole, starts, strict=True)]
        )
        return [_columns(rows[p.position - 1 - start]) for rows, p, start in zip(found, whole, starts, strict=True)]

    def choose(self, choices: Sequence[Choice]) -> list[Scores]:
        """Per choice: log-probability and greediness of its targets right after its tokens."""
        asked = [{"ids": list(choice.targets)} for choice in choices]
        return [_columns(rows) for rows in self._scoring.score([c.tokens for c in choices], asked, [len(c.targets) for c in choices])]

    def generate(self, prompts: Sequence[Prompt]) -> list[str]:
        """Greedy text of each prompt. Ids are decoded here, so that both engines turn ids into text alike."""
        if not prompts:
            return []
        if self._generating is None:
            self._generating = _Process(self._checkpoint, self._config, self.window, scoring=False)
            self.verify()
        ends = sorted(self.encoder.ends)
        answers = self._generating.generate(
            [p.tokens for p in prompts], [{"max_tokens": p.room, "stop": list(p.stop), "stop_token_ids": ends} for p in prompts]
        )
        return [cut(self.encoder.decode(ids), p.stop) for p, ids in zip(prompts, answers, strict=True)]

    def shutdown(self) -> None:
        """End vLLM's processes and wait for them."""
        for process in self._processes():
            process.shutdown()

    def _processes(self) -> list[_Process]:
        return [process for process in (self._scoring, self._generating) if process is not None]


class _Process:
    """One running vLLM, as the scoring twin of its model (`vllm_scorer`) or as the model itself."""

    def __init__(self, checkpoint: Path, config: Any, window: int, *, scoring: bool) -> None:
        from vllm import LLM

        overrides: dict[str, Any] = {"max_position_embeddings": max(int(config.max_position_embeddings), window + _EXTRA)}
        if scoring:
            overrides["architectures"] = [f"Scored{_architecture(config)}"]
        self._llm: Any = LLM(
            model=str(checkpoint),
            runner="pooling" if scoring else "generate",
            dtype="float32",
            enforce_eager=True,  # compiling takes minutes and is lost with the process
            max_model_len=window + _EXTRA,
            hf_overrides=overrides,
            kv_cache_memory_bytes=_cache_bytes(config, window),
            enable_prefix_caching=True,
            block_size=_BLOCK[_device()],
            generation_config="vllm",  # the model's own sampling defaults have no say in a measurement
            disable_log_stats=True,
            use_tqdm_on_load=False,
            worker_extension_cls="eval_service.vllm_scorer.Proof",
        )

    def reload(self, checkpoint: Path) -> None:
        """Replace the weights in place. The prefix cache knows nothing of it and must be emptied."""
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(checkpoint)})
        if not self._llm.reset_prefix_cache():
            raise EnvironmentFailure("vLLM kept a prefix cache of the weights before", "score again")

    def checksums(self) -> tuple[dict[str, int], dict[str, list[str]]]:
        """Of every parameter it holds, and which it fuses of which."""
        ((found, fused),) = self._llm.collective_rpc("checksums")
        return {name: int(value) for name, value in found.items()}, fused

    def score(self, prompts: Sequence[Packed], asked: Sequence[dict[str, Any]], expected: Sequence[int]) -> list[Floats]:
        """Per prompt `expected` rows of log-probability and greediness. What the prefix cache swallowed is asked again without it."""
        found = self._encode(prompts, asked, cached=True)
        again = [i for i, (rows, count) in enumerate(zip(found, expected, strict=True)) if len(rows) != count]
        for i, rows in zip(again, self._encode([prompts[i] for i in again], [asked[i] for i in again], cached=False), strict=True):
            if len(rows) != expected[i]:
                raise DataMismatch("vLLM answered for other tokens than it was asked", "score with the torch engine")
            found[i] = rows
        return found

    def generate(self, prompts: Sequence[Packed], settings: Sequence[dict[str, Any]]) -> list[Sequence[int]]:
        """Greedy ids of each prompt."""
        from vllm import SamplingParams

        params = [SamplingParams(temperature=0.0, **setting) for setting in settings]
        return [output.outputs[0].token_ids for output in self._ask(self._llm.generate, prompts, params)]

    def shutdown(self) -> None:
        """End its processes and wait for them."""
        core = self._llm.llm_engine.engine_core
        core.shutdown()
        core.output_queue_thread.join(_CLOSING_S)  # it closes its own socket; then nothing is left to the garbage collector
        core.ctx.destroy(linger=0)

    def _encode(self, prompts: Sequence[Packed], asked: Sequence[dict[str, Any]], *, cached: bool) -> list[Floats]:
        from vllm import PoolingParams

        params = [PoolingParams(task="token_classify", extra_kwargs=kwargs, skip_reading_prefix_cache=not cached) for kwargs in asked]
        encode = partial(self._llm.encode, pooling_task="token_classify")
        return [output.outputs.data.double().numpy().reshape(-1, 2) for output in self._ask(encode, prompts, params)]

    def _ask(self, verb: Callable[..., list[Any]], prompts: Sequence[Packed], params: Sequence[Any]) -> Iterator[Any]:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            for first in range(0, len(prompts), _AT_ONCE):
                part = slice(first, first + _AT_ONCE)
                yield from verb([{"prompt_token_ids": unpack(p).tolist()} for p in prompts[part]], list(params[part]), use_tqdm=False)
        except EngineDeadError as error:
            raise EngineDied("vLLM's process died", "score again; see its last lines above, often it is memory") from error


def _planned(
    requests: tuple[Request, ...], encoder: HubEncoder, window: int, vocab_size: int
) -> tuple[Plan, tuple[Choice, ...], tuple[Prefill, ...]]:
    made = plan(requests, encoder, window)
    require_known(made, vocab_size)
    return (replace(made, pieces=()), *prefills(made.pieces))  # a plan is kept for long, its pieces are not needed again


def _whole(sequence: Sequence[int] | Ints, first: int = 1) -> Prefill:
    return Prefill(pack(sequence), np.arange(first, len(sequence)), np.zeros(len(sequence) - first, np.int64))


def _columns(rows: Floats) -> Scores:
    return rows[:, 0], rows[:, 1] > 0


def _architecture(config: Any) -> str:
    """vLLM's class for the model; transformers' own behind an adapter where it has none."""
    from vllm import ModelRegistry

    named = (config.architectures or [""])[0]
    return named if named in ModelRegistry.models else "TransformersForCausalLM"


def _device() -> str:
    from eval_service.torch_engine import best_device

    return best_device()


def _rotary_fraction(config: Mapping[str, Any]) -> float:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return float(rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1)) or 1)


def _any_length(config: Any) -> bool:
    """Whether positions beyond the trained ones change nothing before them: plain rotary embedding."""
    rope = getattr(config, "rope_parameters", None) or {}
    return bool(rope) and rope.get("rope_type", "default") in ("default", "linear", "llama3")


def _cache_bytes(config: Any, window: int) -> int:
    """Room for keys and values: a fixed small amount, but four sequences of full length at least."""
    heads = config.num_attention_heads
    width = (getattr(config, "head_dim", None) or config.hidden_size // heads) * (getattr(config, "num_key_value_heads", None) or heads)
    return max(_CACHE_BYTES[_device()], int(4 * 2 * 4 * config.num_hidden_layers * width * (window + 128)))
