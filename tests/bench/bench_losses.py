"""Tokens a second of held-out losses, beside the forward passes alone that they need.

    python -m tests.bench.bench_losses [--sizes 2.8M,18.9M] [--documents 40] [--rounds 5]

The paper's block with a vocabulary of 8,192 random words, float32, one thread unless OMP_NUM_THREADS says more; documents of 10
to 2,000 words, read from a jsonl file, stride of half a window of 512 tokens. `measured` is everything: reading, tokenising,
windows, log-probabilities, sums. `forward only` is the same engine's hidden states and output head on the same batches, with
nothing picked, all its windows made beforehand. Computed tokens include those that are read again as context; both columns
count the same.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from eval_service.encoder import encoder_of
from eval_service.forest import forest
from eval_service.forward import head_rows
from eval_service.loss_corpus import loss_corpora, texts
from eval_service.losses import Window, document_windows, measure
from eval_service.planner import Piece, pack
from eval_service.torch_engine import TorchEngine
from losslens.families import Shape
from tests.bench.bench_scoring import random_word_model, words

SHAPES = {
    "2.8M": Shape("paper", 8192, 128, 352, 4, 2, 4, 512, 10_000.0, tie_embeddings=False),
    "18.9M": Shape("paper", 8192, 384, 1024, 6, 2, 8, 512, 10_000.0, tie_embeddings=False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sizes", default=",".join(SHAPES))
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for size in given.sizes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            report(Path(folder), SHAPES[size], given.documents, given.rounds)


def report(folder: Path, shape: Shape, documents: int, rounds: int) -> None:
    directory = random_word_model(folder / "model", shape)
    draw = np.random.default_rng(0)
    file = folder / "held.jsonl"
    file.write_text("".join(json.dumps({"text": words(draw, 10, 2000)}) + "\n" for _ in range(documents)), encoding="utf-8")
    (corpus,) = loss_corpora([str(file)], None)
    engine, encoder = TorchEngine(), encoder_of(directory)
    engine.load(directory)
    (source,) = texts(corpus)
    made = list(document_windows(source.documents, encoder, engine.window, engine.window // 2))
    computed, scored = sum(len(w.ids) - 1 for w in made), sum(len(w.ids) - w.first for w in made)
    measured, alone = [], []
    for _ in range(rounds):  # in turn, so that both see the same noise
        began = time.perf_counter()
        measure(engine, encoder, corpus, None)
        measured.append(time.perf_counter() - began)
        alone.append(forward_only(engine, made))
    ratios = [b / a for a, b in zip(measured, alone, strict=True)]
    print(f"{shape.params / 1e6:.1f}M parameters, {documents} documents, {scored:,} tokens scored, {computed:,} computed, window", end=" ")
    print(f"{engine.window}, {torch.get_num_threads()} thread(s), median of {rounds}")
    for name, seconds in {"measured": measured, "forward only": alone}.items():
        middle = statistics.median(seconds)
        print(f"{name:14}{computed / middle:12,.0f} computed tokens/s{scored / middle:12,.0f} scored tokens/s")
    print(f"measured / forward only: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    engine.close()


@torch.inference_mode()
def forward_only(engine: TorchEngine, made: list[Window]) -> float:
    """Seconds of hidden states and head over the engine's own batches of these windows."""
    model = engine._loaded()
    pieces = [Piece(i, pack(w.ids[:-1].tolist()), pack(w.ids[w.first :].tolist())) for i, w in enumerate(made)]
    batches = [batch for grove in forest(pieces, engine._budget, share=False) for batch in grove.batches]
    began = time.perf_counter()
    for batch in batches:
        hidden = model.features(torch.from_numpy(batch.tokens)).flatten(0, 1)[torch.from_numpy(batch.rows)]
        for rows in torch.split(hidden, head_rows("cpu", model.vocab_size)):
            model.head(rows)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
