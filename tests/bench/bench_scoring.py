"""Options a second of both engines beside a plain transformers loop, and how far their log-probabilities differ from it.

    python -m tests.bench.bench_scoring [--items 300] [--engines torch,vllm]

Speed: the paper's block with 2.8M parameters and a vocabulary of 8,192, random words, float32, one thread unless
OMP_NUM_THREADS says more. `text` is like zero-shot HellaSwag (4 endings of 8 to 40 tokens after 20 to 70), `letter` like
few-shot MMLU (4 single-token options after 300 tokens). The plain loop is what most harnesses do: right-padded batches of
64 options sorted by length, all logits, its tokens made beforehand. `first` includes tokenising and planning, `next` is
every later checkpoint.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from eval_service.encoder import encoder_of
from eval_service.engine import Engine
from eval_service.torch_engine import TorchEngine
from eval_service.vllm_engine import VllmEngine, installed
from losslens.families import Shape
from losslens.models import build, write_hugging_face
from losslens.models.export import hugging_face_state
from losslens.tasks.requests import LogLikelihood, LogLikelihoodResult
from tests.plain_reference import plainly
from tests.tiny_models import requests, tiny_model

SHAPE = Shape("paper", 8192, 128, 352, 4, 2, 4, 512, 10_000.0, tie_embeddings=False)
ARCHITECTURES = ("paper", "llama", "gpt_neox")
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--engines", default="torch,vllm")
    given = parser.parse_args()
    engines: dict[str, Engine] = {}
    for name in given.engines.split(","):
        if name == "vllm" and not installed():
            print("vLLM is not installed: left out")
            continue
        engines[name] = TorchEngine() if name == "torch" else VllmEngine()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory() as folder:
        speed(Path(folder), engines, given.items)
        agreement(Path(folder), engines)
    for engine in engines.values():
        engine.close()


def speed(folder: Path, engines: dict[str, Engine], items: int) -> None:
    """Options a second, by workload."""
    directory = random_word_model(folder / "speed")
    for engine in engines.values():
        engine.load(directory)
    print(f"{SHAPE.params / 1e6:.1f}M parameters, {items} items of 4 options, {torch.get_num_threads()} thread(s): options/s")
    print(f"{'':24}{'first':>10}{'next':>10}")
    for workload, asked in {"text": endings(items), "letter": letters(items // 4)}.items():
        plain = seconds(plain_loop(directory, asked))
        print(f"{workload + ', plain loop':24}{'':>10}{len(asked) / plain:10,.0f}")
        for name, engine in engines.items():
            first = seconds(lambda engine=engine, asked=asked: engine.run(asked))  # type: ignore[misc]
            engine.load(directory)  # empties vLLM's prefix cache, as the next checkpoint does
            after = seconds(lambda engine=engine, asked=asked: engine.run(asked))  # type: ignore[misc]
            print(f"{workload + ', ' + name:24}{len(asked) / first:10,.0f}{len(asked) / after:10,.0f}")


def agreement(folder: Path, engines: dict[str, Engine]) -> None:
    """Largest absolute difference a token, in nats, after a reload in place."""
    print(f"\n{'max |difference| a token':24}" + "".join(f"{name:>12}" for name in engines))
    for architecture in ARCHITECTURES:
        directories = [tiny_model(folder / f"{architecture}-{seed}", architecture, seed) for seed in (0, 1)]
        line = f"{architecture:24}"
        for engine in engines.values():
            for directory in directories:
                engine.load(directory)
            pairs = zip(engine.run(requests()), plainly(directories[-1]), strict=True)
            worst = max(
                abs(a.logprob - b.logprob) / b.tokens
                for a, b in pairs
                if isinstance(a, LogLikelihoodResult) and isinstance(b, LogLikelihoodResult)
            )
            line += f"{worst:12.1e}"
        print(line)


def random_word_model(directory: Path) -> Path:
    """A model of SHAPE whose words w0, w1, ... are one token each."""
    words = {f"w{i}": i for i in range(SHAPE.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrap: Any = PreTrainedTokenizerFast  # untyped in transformers
    wrap(tokenizer_object=tokenizer, eos_token="w0").save_pretrained(directory)
    module = build(SHAPE, seed=0)
    write_hugging_face(directory, hugging_face_state(module.state_dict(), SHAPE), SHAPE, directory / "none", 0)
    return directory


def words(draw: np.random.Generator, low: int, high: int) -> str:
    return " ".join(f"w{i}" for i in draw.integers(1, SHAPE.vocab_size, draw.integers(low, high)))


def endings(items: int) -> list[LogLikelihood]:
    draw = np.random.default_rng(0)
    contexts = [words(draw, 20, 70) for _ in range(items)]
    return [LogLikelihood(context, " " + words(draw, 8, 40)) for context in contexts for _ in range(4)]


def letters(items: int) -> list[LogLikelihood]:
    draw = np.random.default_rng(1)
    contexts = [words(draw, 280, 320) for _ in range(items)]
    return [LogLikelihood(context, f" w{option}") for context in contexts for option in range(1, 5)]


def plain_loop(directory: Path, asked: list[LogLikelihood]) -> Callable[[], Any]:
    encoder, model = encoder_of(directory), AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    borders = [len(ids) for ids in encoder.encode([r.context for r in asked])]
    whole = encoder.encode([r.context + r.continuation for r in asked])
    order = sorted(range(len(asked)), key=lambda i: -len(whole[i]))

    @torch.inference_mode()
    def loop() -> list[float]:
        sums = []
        for first in range(0, len(order), BATCH):
            group = order[first : first + BATCH]
            tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(whole[i][:-1]) for i in group], batch_first=True)
            logprobs = model(tokens, use_cache=False).logits.log_softmax(-1)
            for b, i in enumerate(group):
                sums.append(float(logprobs[b, range(borders[i] - 1, len(whole[i]) - 1), whole[i][borders[i] :]].sum()))
        return sums

    return loop


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
