"""One size of tests/bench/train_gpu.py: the training loop's own steps on random tokens, timed, weighed and profiled.

Legend: T sequence length.
"""

from __future__ import annotations

import gc
import itertools
import time
import warnings
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from losslens.families import A100_PEAK, Shape, shape_of
from losslens.families.fit import GPUS
from losslens.families.memory import replicated
from losslens.models import build
from losslens.specs import FamilySpec, OptimizerSpec, ScheduleSpec, SizeSpec, TrainingSpec, dialect
from losslens.training.loop import Trainer, run
from losslens.training.optimizers import Optimizers
from losslens.training.watch import Watch
from tests.bench.kernel_classes import profiled, shares

TINY = Shape("paper", 257, 64, 176, 2, 1, 2, 128, 10_000.0, tie_embeddings=False)
PEAKS = {"H100": GPUS["h100"].peak_flops, "H200": GPUS["h200"].peak_flops, "A100": A100_PEAK}  # by what device names contain
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}
PROFILED, CHECKED, REPEATED = 2, 3, 4  # steps under the profiler, in the check for synchronisations, in the check for equal bits


@dataclass(frozen=True, slots=True)
class Setting:
    """`sequences` make a step, at most `most` of them a pass (None: found by trying); `sdpa` "default" leaves the choice to torch."""

    size: str
    compiled: bool
    device: str
    sequences: int
    most: int | None
    seq_len: int
    steps: int
    warm_up: int
    sdpa: str = "default"
    peak: float | None = None
    sync_check: bool = False
    deterministic: bool = False
    bits: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """What was found; `error` says why the rest is missing. Memory in bytes, `kernels` are parts of a step."""

    size: str
    compiled: bool
    error: str | None = None
    params: int | None = None
    flops_per_token: float | None = None
    sequences_per_pass: int | None = None
    sequences_per_step: int | None = None
    warm_up_seconds: float | None = None
    step_seconds: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    peak_memory: int | None = None
    predicted_memory: int | None = None
    kernels: dict[str, float] | None = None
    sdpa: tuple[str, ...] = ()
    losses: tuple[float, ...] = ()
    synchronisations: dict[str, int] | None = None
    same_bits: bool | None = None


def shapes(seq_len: int) -> dict[str, Shape]:
    """The bundled study `paper`'s sizes, and `tiny`, at another sequence length.

    Read without checks, which need msgspec.
    """
    text = (resources.files("losslens.specs") / "studies" / "paper.yaml").read_text(encoding="utf-8")
    study = dialect.read(text)
    sizes = [SizeSpec(**{**size, "tokens": None}) for size in study["family"]["sizes"]]
    family = FamilySpec(architecture=study["family"]["architecture"], sizes=tuple(sizes))
    vocabulary = study["corpus"]["tokenizer"]["vocab_size"]
    return {size.name: shape_of(size, family, vocabulary, seq_len) for size in sizes} | {"tiny": replace(TINY, seq_len=seq_len)}


def peak_of(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a device as torch names it, from NVIDIA's data sheets; None for others."""
    return next((peak for name, peak in PEAKS.items() if name in device_name), None)


def measured(setting: Setting) -> Row:
    """Everything about one size in this process."""
    device, shape = torch.device(setting.device), shapes(setting.seq_len)[setting.size]
    torch.use_deterministic_algorithms(setting.deterministic)
    with _attention(setting.sdpa):
        same_bits = _same_bits(setting, shape) if setting.bits else None
        trainer, rows = make(setting, shape), random_rows(setting, shape)
        warm_up = _steps(trainer, rows, setting.warm_up)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        each = _steps(trainer, rows, setting.steps) / setting.steps
        peak_memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
        losses = trainer.losses[: trainer.step].tolist()
        waits = _synchronisations(trainer, rows) if setting.sync_check and device.type == "cuda" else None
        parts = profiled(lambda: _steps(trainer, rows, PROFILED), PROFILED, device)
    rate = setting.sequences * shape.seq_len / each
    most = min(trainer.passes.most or setting.sequences, setting.sequences)
    return Row(
        size=setting.size,
        compiled=setting.compiled,
        params=shape.params,
        flops_per_token=shape.flops_per_token,
        sequences_per_pass=most,
        sequences_per_step=setting.sequences,
        warm_up_seconds=warm_up,
        step_seconds=each,
        tokens_per_second=rate,
        mfu=rate * shape.flops_per_token / setting.peak if setting.peak else None,
        peak_memory=peak_memory,
        predicted_memory=replicated(shape, trainer.spec, most, exact=False),
        kernels=shares(parts.seconds, each),
        sdpa=parts.sdpa,
        losses=tuple(losses),
        synchronisations=waits,
        same_bits=same_bits,
    )


def make(setting: Setting, shape: Shape) -> Trainer:
    """The loop's trainer as `training/worker.py` makes it, with weights drawn on the device: 3B takes minutes on a CPU."""
    device = torch.device(setting.device)
    spec = TrainingSpec(
        global_batch=setting.sequences,
        optimizer=OptimizerSpec(lr=1e-4),
        schedule=ScheduleSpec(name="constant", warmup_steps=0),
    )
    with device:
        model = build(shape, seed=0)
    trainer = Trainer(
        model=model,
        optimizers=Optimizers(model, spec.optimizer, peak_lr=spec.optimizer.lr, width=shape.d_model),
        spec=spec,
        steps=setting.warm_up + setting.steps + CHECKED + PROFILED + REPEATED,
        global_batch=setting.sequences,
        seq_len=shape.seq_len,
        device=device,
        compile=setting.compiled,
    )
    trainer.passes.most = setting.most
    return trainer


def random_rows(setting: Setting, shape: Shape) -> list[np.ndarray]:
    """A few batches [sequences, T + 1] of random tokens, always the same ones."""
    draw = np.random.default_rng(0)
    return [draw.integers(0, shape.vocab_size, (setting.sequences, shape.seq_len + 1)) for _ in range(4)]


def _attention(sdpa: str) -> AbstractContextManager[None]:
    return nullcontext() if sdpa == "default" else sdpa_kernel(BACKENDS[sdpa])


def _steps(trainer: Trainer, rows: list[np.ndarray], count: int) -> float:
    """Seconds of so many more steps of `loop.run`, which ends by looking at the losses and thus waits for the device."""
    began = time.perf_counter()
    trainer.steps = trainer.step + count
    run(trainer, itertools.cycle(rows), Watch())
    return time.perf_counter() - began


def _synchronisations(trainer: Trainer, rows: list[np.ndarray]) -> dict[str, int]:
    """Where, and how often in `CHECKED` steps, the host waited for the device; the look after the last of them is meant to."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _steps(trainer, rows, CHECKED)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = (found for found in caught if "synchroniz" in str(found.message))
    return dict(Counter(f"{Path(found.filename).name}:{found.lineno}" for found in waits))


def _same_bits(setting: Setting, shape: Shape) -> bool:
    """Whether two trainings from one seed have the same losses and weights to the last bit after a few steps."""
    found: list[list[torch.Tensor]] = []
    for _ in range(2):
        trainer = make(setting, shape)
        _steps(trainer, random_rows(setting, shape), REPEATED)
        found.append([trainer.losses.cpu(), *(p.detach().cpu() for p in trainer.parameters)])
        del trainer
        gc.collect()
    return all(torch.equal(a, b) for a, b in zip(*found, strict=True))
