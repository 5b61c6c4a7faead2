"""Two studies with variants whose truth is known, as Parquet parts: what notebook 05 and comparisons by factor are tested on.

What counts is `b`, bits a byte on a shared text. `tokenizers`: three vocabularies whose tokens hold more and more bytes, on two
mixtures; scores follow b alone. `architectures`: three under two optimizers; scores follow b, and state-space models copy worse.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from losslens.results import Results

BYTES_PER_TOKEN = {"bytes": 1.0, "bpe512": 1.9, "bpe2048": 2.6}
UNIGRAM = {"bytes": 3.1, "bpe512": 5.0, "bpe2048": 6.2}  # nats a token
SIZES = {"d32": 50_000, "d64": 200_000}
CHECKPOINTS = 12
ITEMS = 900
WORSE = 0.12  # what state-space models lack at copying
TASKS = ("cloze_near", "skill_copy")


def write_variants(root: Path, seed: int = 0) -> Results:
    """Write both studies under `root`."""
    random = np.random.default_rng(seed)
    results = Results(root)
    for tokenizer, mixture, (size, params) in product(BYTES_PER_TOKEN, ("prose", "code"), SIZES.items()):
        run = _run("tokenizers", f"tokenizer={tokenizer},mixture={mixture}", size, params) | {"tokenizer": tokenizer}
        _write(results, run, tokenizer, 0.1 * (mixture == "code"), 0.0, random)
    for architecture, optimizer, (size, params) in product(("llama", "mamba2", "paper"), ("adamw", "muon"), SIZES.items()):
        run = _run("architectures", f"architecture={architecture},optimizer={optimizer}", size, params) | {"architecture": architecture}
        _write(results, run | {"optimizer": optimizer}, "bytes", 0.15 * (optimizer == "adamw"), WORSE * (architecture == "mamba2"), random)
    return results


def _run(study: str, variant: str, size: str, params: int) -> dict[str, Any]:
    return {"run_id": f"{study}-{variant}-{size}", "study": study, "variant": variant, "size": size, "params": params, "seed": 0}


def _write(results: Results, run: dict[str, Any], tokenizer: str, harder: float, worse: float, random: np.random.Generator) -> None:
    lowest = 2.2 + harder + 0.25 * (run["params"] < 100_000) + random.normal(0, 0.02)
    for step, progress in enumerate(np.geomspace(0.02, 1.0, CHECKPOINTS), 1):
        b = lowest + 2.0 * ((1 / progress) ** 0.35 - 1) / (50**0.35 - 1)
        checkpoint = {"checkpoint_id": f"{run['run_id']}/{step}", "run_id": run["run_id"], "step": step}
        tokens = int(1e6 * progress)
        results.write("checkpoints", [checkpoint | {"tokens": tokens, "flops": 6.0 * run["params"] * tokens}])
        about = {"checkpoint_id": checkpoint["checkpoint_id"]}
        results.write("losses", [about | loss for loss in _losses(b, tokenizer)])
        results.write("scores", [about | _score(task, b, worse * (task == "skill_copy"), random) for task in TASKS])
    results.write("runs", [run])


def _losses(b: float, tokenizer: str) -> Iterator[dict[str, Any]]:
    nats = b * math.log(2) * BYTES_PER_TOKEN[tokenizer]
    units = {"bits/byte": b, "nats/token": nats, "nats/token_vs_unigram": nats - UNIGRAM[tokenizer]}
    for unit, value in units.items():
        yield {"dataset": "shared", "unit": unit, "value": value, "stderr": 0.01, "tokens": 9000, "bytes": 20_000}


def _score(task: str, b: float, worse: float, random: np.random.Generator) -> dict[str, Any]:
    chance, format, metric = (0.25, "text", "acc_norm") if task == "cloze_near" else (0.0, "open", "exact_match")
    truth = float(np.clip(chance + (0.9 - chance) * (1 / (1 + math.exp(4 * (b - 3)))) - worse * (b < 3.2), 0.01, 0.99))
    value = random.binomial(ITEMS, truth) / ITEMS
    score = {"task": task, "task_version": 1, "format": format, "shots": 0, "metric": metric, "value": value, "n": ITEMS}
    return score | {"stderr": (truth * (1 - truth) / ITEMS) ** 0.5, "chance": chance, "higher_is_better": True, "engine": "simulated"}
