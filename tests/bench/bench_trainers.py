"""Tokens a second of our loop beside transformers.Trainer and litgpt: the same model, batch, optimizer and threads, bfloat16, on a CPU.

    make bench-training
    python tests/bench/bench_trainers.py [--sizes d64,d160,d384] [--rounds 3] [--seconds 10] [--no-compile] [--rivals Trainer,litgpt]

Each round runs one after the other in processes of their own; medians of the rounds, after a warm-up. Ours is `loop.Trainer` fed from
memory: what Ray, Ray Data and checkpoints cost on top is tests/bench/bench_training.py's. AdamW, fused, no clipping, no
weight average, random tokens. Each side runs compiled too (`compiled`, `comp.`); our faster way is compared with each rival as it is and
compiled. litgpt, which always compiles, is installed into a folder of its own by the first run (tests/bench/litgpt_rival.py).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from losslens.families import Shape
from losslens.models import build, transformers_config
from losslens.specs import OptimizerSpec, ScheduleSpec, TrainingSpec
from losslens.training.lanes import keep_freed_memory, lanes_of, share_threads
from losslens.training.loop import Trainer
from losslens.training.optimizers import Optimizers
from tests.bench import litgpt_rival

REPO = Path(__file__).resolve().parents[2]
# Shape, sequences of a batch, wanted ratio to transformers.Trainer.
SIZES = {
    "d64": (Shape("paper", 128, 64, 172, 2, 1, 4, 128, 100.0, tie_embeddings=False), 8, 2.5),
    "d160": (Shape("paper", 128, 160, 428, 2, 1, 4, 128, 100.0, tie_embeddings=False), 8, 1.8),
    "d384": (Shape("paper", 8192, 384, 1024, 6, 2, 8, 512, 10_000.0, tie_embeddings=False), 4, 1.5),
}
OURS = ("ours", "compiled")
RIVALS = {"Trainer": ("Trainer", "Trainer comp."), "litgpt": ("litgpt", "litgpt comp.")}
WANTED = {"litgpt": 1.1}
LR = 1e-3
WARM_UP = 3  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="every side compiled, too")
    parser.add_argument("--rivals", default=",".join(RIVALS))
    parser.add_argument("--one", choices=tuple(SIDES), help="run one side of one size and print its rate")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.one:
        print(json.dumps(SIDES[given.one](given.sizes, given.seconds)))
        return
    rivals = given.rivals.split(",")
    if "litgpt" in rivals:
        litgpt_rival.install()
    ways = {name: names if given.compile else names[:1] for name, names in {"ours": OURS, **RIVALS}.items()}
    sides = [side for name in ("ours", *rivals) for side in ways[name]]
    ratios = "".join(f"{f'/{way}':>15}" for rival in rivals for way in ways[rival]) + "  wanted"
    print(f"{'size':6}{'params':>8}" + "".join(f"{side:>14}" for side in sides) + f"{ratios}   tokens/s, {given.threads} threads")
    for size in given.sizes.split(","):
        rounds = [{side: alone(side, size, given) for side in sides} for _ in range(given.rounds)]
        middle = {side: statistics.median(each[side] for each in rounds) for side in sides}
        best = max(middle[side] for side in ways["ours"])
        shape, _, wanted = SIZES[size]
        figures = "".join(f"{middle[side]:14,.0f}" for side in sides)
        figures += "".join(f"{best / middle[way]:15.2f}" for rival in rivals for way in ways[rival])
        figures += "  " + ", ".join(f"{WANTED.get(rival, wanted):.1f} of {rival}" for rival in rivals)
        print(f"{size:6}{shape.params / 1e6:7.1f}M{figures}", flush=True)


def alone(side: str, size: str, given: argparse.Namespace) -> float:
    """The rate of one side in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.bench_trainers", "--one", side, "--sizes", size]
    command += ["--seconds", str(given.seconds), "--threads", str(given.threads)]
    threads = {"OMP_NUM_THREADS": str(given.threads), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | threads, cwd=REPO)
    assert done.returncode == 0, done.stderr[-2000:]
    return float(json.loads(done.stdout.splitlines()[-1]))


def ours(size: str, seconds: float, *, compiled: bool = False) -> float:
    shape, batch, _ = SIZES[size]
    trainer = make(shape, batch, compiled=compiled)
    rows = torch.randint(0, shape.vocab_size, (64, batch, shape.seq_len + 1))
    return rate(lambda step: trainer.update(rows[step % len(rows)]), batch * shape.seq_len, seconds)


def make(shape: Shape, batch: int, *, compiled: bool) -> Trainer:
    """Ours, with as many lanes as a run would have on torch's threads."""
    spec = TrainingSpec(
        global_batch=batch,
        optimizer=OptimizerSpec(lr=LR, clip=None),
        schedule=ScheduleSpec(name="constant", warmup_steps=0),
    )
    threads = torch.get_num_threads()
    lanes = lanes_of(threads, batch, None)
    share_threads(threads, lanes)
    keep_freed_memory()
    model = build(shape, seed=0)
    return Trainer(
        model=model,
        optimizers=Optimizers(model, spec.optimizer, peak_lr=LR, width=shape.d_model),
        spec=spec,
        steps=100_000,
        global_batch=batch,
        seq_len=shape.seq_len,
        device=torch.device("cpu"),
        lanes=lanes,
        compile=compiled,
    )


def rate(update: Callable[[int], object], tokens: int, seconds: float) -> float:
    """Tokens a second of so many seconds of updates."""
    for step in range(WARM_UP):
        update(step)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        update(done)
        done += 1
    return done * tokens / (time.perf_counter() - began)


def rival(size: str, seconds: float, *, compiled: bool = False) -> float:
    """transformers.Trainer on the class that our checkpoints load into."""
    from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments
    from transformers import Trainer as HuggingFaceTrainer

    shape, batch, _ = SIZES[size]
    make: Callable[..., torch.nn.Module] = AutoModelForCausalLM.from_config
    moments: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
            moments.append(time.perf_counter())
            if len(moments) > WARM_UP and moments[-1] - moments[WARM_UP - 1] > seconds:
                control.should_training_stop = True  # type: ignore[attr-defined]

    class Rows(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            rows = torch.randint(0, shape.vocab_size, (64 * batch, shape.seq_len))
            while True:
                yield from ({"input_ids": row, "labels": row} for row in rows)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=str(Path(folder)), per_device_train_batch_size=batch, max_steps=100_000, bf16=True, use_cpu=True,
            optim="adamw_torch_fused", learning_rate=LR, max_grad_norm=0.0, logging_strategy="no", save_strategy="no", report_to="none",
            disable_tqdm=True, torch_compile=compiled,
        )  # fmt: skip
        HuggingFaceTrainer(model=make(transformers_config(shape, 0)), args=arguments, train_dataset=Rows(), callbacks=[Clock()]).train()
    counted = moments[WARM_UP - 1 :]
    return (len(counted) - 1) * batch * shape.seq_len / (counted[-1] - counted[0])


def litgpt(size: str, seconds: float, *, compiled: bool = False) -> float:
    shape, batch, _ = SIZES[size]
    return litgpt_rival.tokens_per_second(shape, batch, seconds, lr=LR, warm_up=WARM_UP, compiled=compiled)


SIDES: dict[str, Callable[[str, float], float]] = {
    "ours": ours,
    "compiled": partial(ours, compiled=True),
    "Trainer": rival,
    "Trainer comp.": partial(rival, compiled=True),
    "litgpt": litgpt,
    "litgpt comp.": partial(litgpt, compiled=True),
}

if __name__ == "__main__":
    main()
