"""Every planned run of a study with all its derived numbers: what `losslens plan` prints and training reads."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from losslens.errors import UserError
from losslens.families.shape import Shape, shape_of
from losslens.specs import CheckpointsSpec, SizeSpec, StudySpec, fingerprint

A100_PEAK = 312e12  # dense bf16 FLOP/s, NVIDIA A100 data sheet
ASSUMED_MFU = 0.45  # the paper's reported days give 0.44 to 0.51 (shared facts, derived)


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One size, one token budget, one seed: one training.

    `tokens` is the budget in whole global batches (at most the budget asked for); `global_batch` in sequences;
    `checkpoints` are the steps after which a checkpoint is written; `peak_lr` of the hidden matrices; `micro_batch` in
    sequences (None: a worker's whole share).
    """

    study: str
    run_id: str
    size: str
    seed: int
    shape: Shape
    tokens: int
    steps: int
    global_batch: int
    peak_lr: float
    checkpoints: tuple[int, ...]
    micro_batch: int | None = None

    @property
    def label(self) -> str:
        """Size, budget and seed: what people call the run within its study."""
        return self.run_id.removeprefix(f"{self.study}-").rpartition("-")[0]

    @property
    def batch_tokens(self) -> int:
        """Tokens of one global batch."""
        return self.global_batch * self.shape.seq_len

    @property
    def flops(self) -> float:
        """Training FLOPs of the whole run (`Shape.flops_per_token`)."""
        return self.shape.flops_per_token * self.tokens

    @property
    def disk_bytes(self) -> int:
        """All checkpoints in float32 plus two trainer states (weights, their average, two moments each)."""
        return self.shape.params * 4 * (len(self.checkpoints) + 2 * 4)

    def accelerator_hours(self, peak_flops: float = A100_PEAK, mfu: float = ASSUMED_MFU) -> float:
        """Hours on one accelerator of `peak_flops` FLOP/s at model-FLOPs utilisation `mfu`."""
        return self.flops / (peak_flops * mfu) / 3600


def planned_runs(spec: StudySpec) -> tuple[PlannedRun, ...]:
    """Every run of the study: sizes in the order given, then budgets, then seeds.

    Raises:
        UserError: two runs would be the same, which hides in a study that lists a size and a budget twice.
    """
    runs: list[PlannedRun] = []
    for size in spec.family.sizes:
        shape = shape_of(size, spec.family, spec.corpus.tokenizer.vocab_size, spec.corpus.seq_len)
        for tokens in _budgets(spec, size, shape):
            runs += [_run(spec, size, shape, tokens, spec.seed + k) for k in range(spec.seeds)]
    twice = [run_id for run_id, count in Counter(run.run_id for run in runs).items() if count > 1]
    if twice:
        raise UserError(f"the run {twice[0]} is planned twice", "list each token budget of a size once; for repetitions set seeds")
    return tuple(runs)


def checkpoint_steps(spec: CheckpointsSpec, steps: int) -> tuple[int, ...]:
    """Steps after which to save, ascending, the last equal to `steps`; with `initial`, step 0 first.

    Even spacing gives exactly `count` of them (or every step); log spacing fewer where early ones round to one step.
    """
    count = min(spec.count, steps)
    if spec.spacing == "even" or count == 1:
        chosen = {round(steps * k / count) for k in range(1, count + 1)}
    else:
        first = min(spec.first_step, steps)
        ratio = (steps / first) ** (1 / (count - 1))
        chosen = {min(steps, round(first * ratio**k)) for k in range(count)}
    return tuple(sorted(chosen | {steps} | ({0} if spec.initial else set())))


def _budgets(spec: StudySpec, size: SizeSpec, shape: Shape) -> tuple[int, ...]:
    if size.tokens:
        return size.tokens
    if spec.training.tokens:
        return (spec.training.tokens,)
    return (round(spec.training.tokens_per_param * shape.params),) if spec.training.tokens_per_param else ()


def _run(spec: StudySpec, size: SizeSpec, shape: Shape, tokens: int, seed: int) -> PlannedRun:
    global_batch = size.global_batch or spec.training.global_batch
    steps = max(1, tokens // (global_batch * shape.seq_len))
    # The peak rate stands for the size's override; other sizes, tasks and cluster settings do not change this run.
    lr = _peak_lr(spec, size)
    identity = fingerprint(spec.corpus, spec.training, spec.family.initialisation, repr(shape), tokens, global_batch, repr(lr), seed)
    return PlannedRun(
        study=spec.name,
        run_id=f"{spec.name}-{size.name}-{_short(tokens)}-s{seed}-{identity[:8]}",
        size=size.name,
        seed=seed,
        shape=shape,
        tokens=steps * global_batch * shape.seq_len,
        steps=steps,
        global_batch=global_batch,
        peak_lr=lr,
        checkpoints=checkpoint_steps(spec.training.checkpoints, steps),
        micro_batch=spec.training.micro_batch_of(global_batch),
    )


def _peak_lr(spec: StudySpec, size: SizeSpec) -> float:
    """The size's own rate, or the family's moved from its reference width."""
    optimizer = spec.training.optimizer
    if size.peak_lr:
        return size.peak_lr
    if optimizer.reference_width:
        return optimizer.lr * math.pow(optimizer.reference_width / size.d_model, optimizer.width_exponent)
    return optimizer.lr


def _short(tokens: int) -> str:
    """67_000_000_000 -> 67B: budgets as people write them."""
    for unit, scale in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if tokens >= scale:
            return f"{tokens / scale:g}{unit}" if tokens % (scale // 100 or 1) == 0 else f"{tokens / scale:.2f}{unit}"
    return str(tokens)
