"""litgpt's own pretraining loop and model on a shape of ours: a rival of tests/bench/bench_trainers.py.

It is installed beside the environment, never into it: it asks for an older huggingface-hub. Its loop is `litgpt.pretrain.fit`; what
it does beside training (validation, logs, checkpoints, clipping) is left out, its optimizer is fused, and it runs compiled, as
it always does, and not.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from losslens.families import Shape

REPO = Path(__file__).resolve().parents[2]
PLACE = REPO / "build" / "litgpt-rival"
# Everything else it imports is the environment's own.
PINNED = ("litgpt==0.5.13", "lightning==2.6.6", "lightning-utilities==0.15.3", "torchmetrics==1.9.0", "jsonargparse==4.41.0")


class Done(Exception):
    """Enough was timed."""


class Clock:
    """Random rows [b, T + 1] until `seconds` have passed after the warm-up; the loop asks for the next when a step is done."""

    def __init__(self, rows: Tensor, warm_up: int, seconds: float) -> None:
        self._rows, self._warm_up, self._seconds = rows, warm_up, seconds
        self.moments: list[float] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            for row in self._rows:
                self.moments.append(time.perf_counter())
                if len(self.moments) > self._warm_up + 1 and self.moments[-1] - self.moments[self._warm_up] > self._seconds:
                    raise Done
                yield row

    def steps_per_second(self) -> float:
        counted = self.moments[self._warm_up :]
        return (len(counted) - 1) / (counted[-1] - counted[0])


def install() -> None:
    """Put litgpt into its place unless it is there."""
    marker = PLACE / "pinned.txt"
    if marker.is_file() and marker.read_text(encoding="utf-8") == "\n".join(PINNED):
        return
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--upgrade"]
    subprocess.run([*command, "--target", str(PLACE), *PINNED], check=True)
    marker.write_text("\n".join(PINNED), encoding="utf-8")


def tokens_per_second(shape: Shape, batch: int, seconds: float, *, lr: float, warm_up: int, compiled: bool) -> float:
    """Tokens a second of litgpt in this process."""
    sys.path.append(str(PLACE))
    os.environ["TQDM_DISABLE"] = "1"
    pretrain: Any = import_module("litgpt.pretrain")
    args, model_of = (import_module(f"litgpt.{name}") for name in ("args", "model"))
    fabric = import_module("lightning").Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    fabric.print = lambda *_, **__: None
    fabric.clip_gradients = lambda *_, **__: None
    pretrain.validate = lambda *_, **__: torch.zeros(())
    config = config_of(shape)
    module = model_of.GPT(config)
    pretrain.initialize_weights(fabric, module, n_layer=config.n_layer, n_embd=config.n_embd)
    assert sum(p.numel() for p in module.parameters()) == shape.params
    model = fabric.setup(torch.compile(module) if compiled else module)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    clock = Clock(torch.randint(0, shape.vocab_size, (64, batch, shape.seq_len + 1)), warm_up, seconds)
    train = args.TrainArgs(
        save_interval=None, log_interval=10**9, global_batch_size=batch, micro_batch_size=batch, max_tokens=10**12, lr_warmup_steps=0
    )  # fmt: skip
    with contextlib.suppress(Done):
        pretrain.fit(
            fabric=fabric,
            devices=1,
            state={"model": model, "optimizer": fabric.setup_optimizers(optimizer), "iter_num": 0, "step_count": 0},
            train_dataloader=clock,
            val_dataloader=None,
            out_dir=PLACE,
            tokenizer_dir=None,
            train=train,
            eval=args.EvalArgs(interval=10**9, initial_validation=False, final_validation=False),
        )
    return clock.steps_per_second() * batch * shape.seq_len


def config_of(shape: Shape) -> Any:
    """The paper's block in litgpt's words."""
    return import_module("litgpt.config").Config(
        name="rival",
        block_size=shape.seq_len,
        n_layer=shape.layers,
        n_embd=shape.d_model,
        n_head=shape.heads,
        n_query_groups=shape.kv_heads,
        padded_vocab_size=shape.vocab_size,
        vocab_size=shape.vocab_size,
        intermediate_size=shape.d_ffn,
        rotary_percentage=0.5,
        rope_base=int(shape.rope_base),
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        parallel_residual=False,
        bias=False,
    )
