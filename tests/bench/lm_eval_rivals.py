"""The two sides of tests/bench/bench_lm_eval.py: our engines and lm-evaluation-harness's backends, asked the same, and models to ask.

A side is timed on warm scoring alone: the model is loaded, and the clock runs from text to log-probabilities.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq

from eval_service.encoder import encoder_of
from eval_service.engine import Engine
from losslens.corpus.tokenizer import Encoder, make
from losslens.families import Shape
from losslens.models import build, write_hugging_face
from losslens.models.export import hugging_face_state
from losslens.specs import TokenizerSpec
from losslens.tasks.requests import LogLikelihood, LogLikelihoodResult

WINDOW = 4096  # tokens: holds the longest five-shot prompts
# The paper's block.
SHAPES = {
    "2.8M": Shape("paper", 8192, 128, 352, 4, 2, 4, WINDOW, 10_000.0, tie_embeddings=False),
    "18.9M": Shape("paper", 8192, 384, 1024, 6, 2, 8, WINDOW, 10_000.0, tie_embeddings=False),
}
BATCH_SIZES = (8, 16, 32, 64)
_TEXT_BYTES = 8_000_000  # what the tokenizer is trained on
VLLM_SETTINGS: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": WINDOW,
    "enforce_eager": True,  # compiling takes minutes on a CPU
    "kv_cache_memory_bytes": 2**29,
    "disable_log_stats": True,
}

Asked = Sequence[LogLikelihood]


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of one pass, and what it found: log-probabilities in nats."""

    seconds: float
    logprobs: list[float] = field(repr=False)


class Ours:
    """One of our engines, with two checkpoints of one shape: the second shows what a reused plan saves."""

    def __init__(self, engine: Engine, checkpoints: Sequence[Path]) -> None:
        self._engine, self._checkpoints = engine, checkpoints
        for checkpoint in checkpoints:
            engine.load(checkpoint)

    def first(self, asked: Asked) -> Timed:
        """Requests never seen before: tokenising and planning count."""
        return self._pass(asked, self._checkpoints[0])

    def next(self, asked: Asked) -> Timed:
        """The same requests for the next checkpoint."""
        return self._pass(asked, self._checkpoints[1])

    def close(self) -> None:
        self._engine.close()

    def _pass(self, asked: Asked, checkpoint: Path) -> Timed:
        self._engine.load(checkpoint)  # empties vLLM's prefix cache too
        seconds, results = timed(lambda: self._engine.run(asked))
        return Timed(seconds, [result.logprob for result in results if isinstance(result, LogLikelihoodResult)])


class LmEval:
    """A backend of lm-eval, asked through its own `loglikelihood`; it tokenises at every call."""

    def __init__(self, lm: Any) -> None:
        self._lm = lm

    def first(self, asked: Asked) -> Timed:
        from lm_eval.api.instance import Instance

        instances = [Instance("loglikelihood", {}, (request.context, request.continuation), 0) for request in asked]
        seconds, results = timed(lambda: self._lm.loglikelihood(instances, disable_tqdm=True))
        return Timed(seconds, [logprob for logprob, _ in results])

    def best_batch_size(self, asked: Asked) -> dict[int, float]:
        """Seconds of one pass by batch size; the quickest is kept."""
        found = {}
        for size in BATCH_SIZES:
            self._lm.batch_size_per_gpu = size
            found[size] = self.first(asked).seconds
        self._lm.batch_size_per_gpu = min(found, key=lambda size: found[size])
        return found

    def close(self) -> None:
        if hasattr(self._lm.model, "llm_engine"):
            end_vllm(self._lm.model)
        self._lm = None


def lm_eval_hf(checkpoint: Path) -> LmEval:
    from lm_eval.models.huggingface import HFLM

    return LmEval(HFLM(pretrained=str(checkpoint), device="cpu", dtype="float32", batch_size=BATCH_SIZES[0]))


def lm_eval_vllm(checkpoint: Path) -> LmEval:
    with mock.patch("importlib.metadata.version", _version):
        from lm_eval.models.vllm_causallms import VLLM
    return LmEval(VLLM(pretrained=str(checkpoint), batch_size="auto", **VLLM_SETTINGS))


def _version(name: str) -> str:
    """lm-eval asks for the version of `vllm`, whose CPU build is distributed under another name."""
    import vllm

    return str(vllm.__version__) if name == "vllm" else version(name)


@contextmanager
def prefill_only(checkpoint: Path) -> Iterator[Callable[[Asked], Timed]]:
    """A vLLM that reads each option with its context and answers nothing: the ceiling of scoring options one by one."""
    from vllm import LLM, SamplingParams

    encoder = encoder_of(checkpoint)
    llm = LLM(model=str(checkpoint), enable_prefix_caching=False, **VLLM_SETTINGS)
    params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)

    def read(asked: Asked) -> Timed:
        sequences = encoder.encode([request.context + request.continuation for request in asked])
        prompts: Any = [{"prompt_token_ids": ids} for ids in sequences]
        return Timed(timed(lambda: llm.generate(prompts, params, use_tqdm=False))[0], [])

    try:
        read([LogLikelihood("warm", " up")])
        yield read
    finally:
        end_vllm(llm)


def end_vllm(llm: Any) -> None:
    """End a vLLM's processes; left to the interpreter's exit they abort it."""
    llm.llm_engine.engine_core.shutdown()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def tokenizer_of_8192(folder: Path, corpus: Path) -> Path:
    """A byte-level BPE of 8,192 entries trained on English text at hand, so that token counts are natural."""
    make(TokenizerSpec(kind="bpe", vocab_size=8192), english(corpus), folder)
    return folder


def english(corpus: Path) -> Iterator[str]:
    left = _TEXT_BYTES
    for file in sorted(corpus.glob("en-*.parquet")):
        for text in pq.read_table(file, columns=["text"])["text"].to_pylist():
            yield text
            left -= len(text)
            if left < 0:
                return


def checkpoints(folder: Path, size: str, tokenizer: Path, count: int) -> list[Path]:
    """Randomly initialised models of one shape as checkpoint directories."""
    shape, eos = SHAPES[size], Encoder(tokenizer).eos
    made = []
    for seed in range(count):
        directory = folder / f"step-{seed + 1:08d}"
        directory.mkdir(parents=True)
        state = hugging_face_state(build(shape, seed=seed, eos_token_id=eos).state_dict(), shape)
        write_hugging_face(directory, state, shape, tokenizer, eos)
        made.append(directory)
    return made
