"""Small random models as real checkpoint directories, written by the product's own export: what engines are tested on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from losslens.corpus.tokenizer import Encoder, make
from losslens.families import Shape
from losslens.models import build, write_hugging_face
from losslens.models.export import hugging_face_state
from losslens.specs import TokenizerSpec
from losslens.tasks.requests import Generate, LogLikelihood

SEQ_LEN = 128


def tiny_model(directory: Path, architecture: str = "paper", seed: int = 0, seq_len: int = SEQ_LEN, *, tied: bool = False) -> Path:
    """Two layers of width 64, two heads of size 32, every byte a token; logits spread enough to make choices."""
    directory.mkdir(parents=True)
    tokenizer = directory.parent / f"{directory.name}-tokenizer"
    make(TokenizerSpec(kind="byte", vocab_size=257), (), tokenizer)
    kv_heads = 2 if architecture in ("gpt_neox", "mamba2") else 1
    own = {"mixtral": {"experts": 4, "active_experts": 2}, "mamba2": {"state_size": 16}}.get(architecture, {})
    shape = Shape(architecture, 257, 64, 96, 2, kv_heads, 2, seq_len, 10_000.0, tie_embeddings=tied, **own)
    eos = Encoder(tokenizer).eos
    module = build(shape, seed=seed, eos_token_id=eos)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "lm_head" in name or "embed_out" in name:
                weight.mul_(20)
    write_hugging_face(directory, hugging_face_state(module.state_dict(), shape), shape, tokenizer, eos)
    return directory


def tiny_checkpoint(results: Path, run_id: str, step: int, seed: int = 0) -> Path:
    """A tiny model where a study of these results would put it, with its `losslens.json`."""
    directory = tiny_model(results / "checkpoints" / run_id / f"step-{step:08d}", seed=seed)
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()}
    card = {
        "format": 1,
        "checkpoint_id": f"{run_id}/{directory.name}",
        "run_id": run_id,
        "study": "tiny",
        "size": "d64",
        "step": step,
        "tokens": step * 1024,
        "flops": step * 1e9,
        "weights_sha256": files["model.safetensors"],
        "created_at": f"2026-01-01T00:00:{step % 60:02d}+00:00",
        "files": files,
    }
    (directory / "losslens.json").write_text(json.dumps(card), encoding="utf-8")
    return directory


def requests(seed: int = 0) -> list[LogLikelihood | Generate]:
    """Every kind of request: options of one and many tokens, nested contexts, empty, too long, Chinese, generation."""
    draw = np.random.default_rng(seed)

    def text(length: int) -> str:
        return "".join(draw.choice(list("abcdef gh\n"), length))

    asked: list[LogLikelihood | Generate] = []
    for _ in range(12):
        context = text(int(draw.integers(1, 70)))
        asked += [LogLikelihood(context, f" {letter}") for letter in "ABCD"]
        asked += [LogLikelihood(context, letter) for letter in "abcd"]
        asked += [LogLikelihood(context, text(int(draw.integers(2, 20)))) for _ in range(3)]
    for _ in range(2):  # every ASCII letter is an option: more than one request to vLLM holds, and one of them is likely greedy
        context = text(20)
        asked += [LogLikelihood(context, chr(letter)) for letter in range(1, 128)]
        asked += [LogLikelihood(context, letter) for letter in "éü"]
    row = text(100)
    asked += [LogLikelihood(row[:at], row[at : at + 3]) for at in range(10, 90, 8)]
    asked += [
        LogLikelihood("", "from nothing"),
        LogLikelihood("问题：一加一等于", "二"),
        LogLikelihood(text(300), "yes"),
        LogLikelihood("a", text(127)),
    ]
    examples = text(60)
    for question in (text(8) for _ in range(6)):
        asked += [LogLikelihood(examples + question, option) for option in (" yes", " no", " a b c")]
    asked += [Generate(examples + text(n), ("e",), 12) for n in (3, 9, 30)]
    asked += [Generate(text(n), ("e", "\n"), room) for n, room in ((3, 30), (40, 7), (90, 20), (200, 25), (0, 12))]
    return asked
