"""What computing shared context once saves the torch engine, by batch size, how far both engines are
from transformers, and memory.

    python -m tests.bench.bench_scoring [--items 300] [--engines torch,vllm]

Savings: the paper's block with 2.8M parameters and a vocabulary of 8,192, random words, float32, one thread unless
OMP_NUM_THREADS says more; later checkpoints, whose plan is there. `text` is like zero-shot HellaSwag (4 endings of 8 to 40
tokens after 20 to 70), `letter` like one subject of five-shot MMLU (4 single-token options after 60 to 140 tokens after 300
that all items share). Speed beside other programs: bench_lm_eval.py.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eval_service.encoder import encoder_of
from eval_service.engine import Engine
from eval_service.forest import forest
from eval_service.planner import plan
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
SMALL = Shape("paper", 512, 32, 96, 1, 1, 1, 512, 10_000.0, tie_embeddings=False)  # quick, so that tasks can be long
BUDGETS = (512, 1024, 2048, 4096)


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
        savings(Path(folder), given.items)
        agreement(Path(folder), engines)
        memory(Path(folder))
    for engine in engines.values():
        engine.close()


def savings(folder: Path, items: int) -> None:
    """Computed tokens and options a second, by workload, with and without sharing, by padded tokens a batch."""
    directory = random_word_model(folder / "speed")
    print(
        f"{SHAPE.params / 1e6:.1f}M parameters, {items} items of 4 options, {torch.get_num_threads()} thread(s): options/s by batch tokens"
    )
    print(f"{'':20}{'tokens':>10}" + "".join(f"{budget:>9,}" for budget in BUDGETS))
    for workload, asked in {"text": endings(items), "letter": letters(items // 4)}.items():
        for share in (False, True):
            line = "".join(f"{rate(directory, asked, budget, share):9,.0f}" for budget in BUDGETS)
            print(f"{workload + (', shared' if share else ', apart'):20}{computed(directory, asked, share):10,}{line}")


def rate(directory: Path, asked: list[LogLikelihood], budget: int, share: bool) -> float:
    """Options a second once the plan is there."""
    engine = TorchEngine(batch_tokens=budget)
    engine.load(directory)
    engine._shares = share
    engine.run(asked)
    return len(asked) / statistics.median(seconds(lambda: engine.run(asked)) for _ in range(3))


def computed(directory: Path, asked: list[LogLikelihood], share: bool) -> int:
    """Tokens that pass the model, padding left out."""
    groves = forest(plan(asked, encoder_of(directory), SHAPE.seq_len).pieces, 1, share=share)
    return sum(batch.tokens.size for grove in groves for batch in ((grove.stems,) if grove.stems else ()) + grove.batches)


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


def memory(folder: Path) -> None:
    """Megabytes that a process holds at most while it scores ever longer tasks, each in a process of its own."""
    directory = random_word_model(folder / "small", SMALL)
    print("\nitems of 4 options: largest resident memory")
    for items in (100, 5_000, 20_000, 80_000):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            before, after = pool.apply(_held, (directory, items))
        print(f"{items:10,}{after:9,.0f} MB, of it {before:,.0f} MB before the first answer: libraries, model, the requests' text")


def _held(directory: Path, items: int) -> tuple[float, float]:
    engine = TorchEngine()
    engine.load(directory)
    asked = endings(items)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    engine.run(asked)
    return before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def random_word_model(directory: Path, shape: Shape = SHAPE) -> Path:
    """A model whose words w0, w1, ... are one token each."""
    words = {f"w{i}": i for i in range(shape.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrap: Any = PreTrainedTokenizerFast  # untyped in transformers
    wrap(tokenizer_object=tokenizer, eos_token="w0").save_pretrained(directory)
    module = build(shape, seed=0)
    write_hugging_face(directory, hugging_face_state(module.state_dict(), shape), shape, directory / "none", 0)
    return directory


def words(draw: np.random.Generator, low: int, high: int) -> str:
    return " ".join(f"w{i}" for i in draw.integers(1, SMALL.vocab_size, draw.integers(low, high)))


def endings(items: int) -> list[LogLikelihood]:
    draw = np.random.default_rng(0)
    contexts = [words(draw, 20, 70) for _ in range(items)]
    return [LogLikelihood(context, " " + words(draw, 8, 40)) for context in contexts for _ in range(4)]


def letters(items: int) -> list[LogLikelihood]:
    draw = np.random.default_rng(1)
    examples = words(draw, 300, 301)
    contexts = [f"{examples} {words(draw, 60, 140)}" for _ in range(items)]
    return [LogLikelihood(context, f" w{option}") for context in contexts for option in range(1, 5)]


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
