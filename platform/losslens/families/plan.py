"""Every planned run of a study with all its derived numbers: what `losslens plan` prints and training reads."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from losslens.errors import UserError
from losslens.families.shape import Shape, shape_of
from losslens.specs import BranchSpec, CheckpointsSpec, OptimizerSpec, SizeSpec, StudySpec, fingerprint, levels_of, variants

A100_PEAK = 312e12  # dense bf16 FLOP/s, NVIDIA A100 data sheet
ASSUMED_MFU = 0.45  # the paper's reported days give 0.44 to 0.51 (shared facts, derived)


@dataclass(frozen=True, slots=True)
class Branch:
    """Where a run leaves another: the state of `parent` after update `step`; `parent_steps` are the parent's in all."""

    parent: str
    step: int
    parent_steps: int

    @property
    def checkpoint_id(self) -> str:
        """The parent's checkpoint at that step."""
        return f"{self.parent}/step-{self.step:08d}"


PARENT = "parent/"  # `parent/heldout`: the loss of the checkpoint that a run was tuned from


@dataclass(frozen=True, slots=True)
class Origin:
    """The checkpoint whose weights a run begins with, at step 0: `path` is its Hugging Face directory, `weights_sha256` that of its
    weights (of several files: of their hashes in order), `losses` its rows of `losses`, as far as they are known."""

    checkpoint_id: str
    path: str
    weights_sha256: str
    losses: tuple[dict[str, Any], ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One size, one token budget, one seed: one training.

    `tokens` is the budget in whole global batches (at most the budget asked for); `global_batch` in sequences;
    `checkpoints` are the steps after which a checkpoint is written; `peak_lr` of the hidden matrices; `micro_batch` in
    sequences (None: a worker's whole share). A run with a `branch` begins there and counts the parent's steps and tokens as
    its own; one with an `origin` begins with its weights and counts from 0. `kept_states` are the steps whose state is kept
    for branches. `variant` names the study it is planned from, one of
    `specs.variants`. `sharded` and `recompute` say how it is trained, not what comes out; its identity does not know of them.
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
    branch: Branch | None = None
    kept_states: tuple[int, ...] = ()
    variant: str = ""
    sharded: bool = False
    recompute: bool = False
    origin: Origin | None = None

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
        """All checkpoints in float32 plus the trainer states kept and two more (weights, their average, two moments each)."""
        return self.shape.params * 4 * (len(self.checkpoints) + (2 + len(self.kept_states)) * 4)

    def accelerator_hours(self, peak_flops: float = A100_PEAK, mfu: float = ASSUMED_MFU) -> float:
        """Hours on one accelerator of `peak_flops` FLOP/s at model-FLOPs utilisation `mfu`."""
        own = 1 - (self.branch.step / self.steps if self.branch else 0)
        return self.flops * own / (peak_flops * mfu) / 3600


def planned_runs(spec: StudySpec) -> tuple[PlannedRun, ...]:
    """Every run of the study: variants, sizes in the order given, then budgets, then seeds; each run's branches after it.

    Raises:
        UserError: two runs would be the same, which hides in a study that lists a size and a budget twice; a branch fits no run.
    """
    runs = [run for variant, of in variants(spec).items() for run in _of_variant(of, variant)]
    twice = [run_id for run_id, count in Counter(run.run_id for run in runs).items() if count > 1]
    if twice:
        raise UserError(f"the run {twice[0]} is planned twice", "list each token budget of a size once; for repetitions set seeds")
    return tuple(runs)


def _of_variant(spec: StudySpec, variant: str) -> list[PlannedRun]:
    runs: list[PlannedRun] = []
    for size in spec.family.sizes:
        shape = shape_of(size, spec.family, spec.corpus.tokenizer.vocab_size, spec.corpus.seq_len)
        for tokens in _budgets(spec, size, shape):
            for k in range(spec.seeds):
                runs += _branched(spec, _run(spec, size, shape, tokens, spec.seed + k, variant))
    for branch in spec.training.branches:
        _leaves_some_run(branch, runs)
    return runs


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


def _run(spec: StudySpec, size: SizeSpec, shape: Shape, tokens: int, seed: int, variant: str) -> PlannedRun:
    global_batch = size.global_batch or spec.training.global_batch
    steps = max(1, tokens // (global_batch * shape.seq_len))
    # The peak rate stands for the size's override; other sizes, tasks, branches and cluster settings do not change this run.
    lr = _peak_lr(spec, size)
    training = msgspec.structs.replace(spec.training, branches=())
    identity = fingerprint(spec.corpus, training, spec.family.initialisation, repr(shape), tokens, global_batch, repr(lr), seed)
    return PlannedRun(
        study=spec.name,
        run_id=f"{_named(spec.name, variant, size.name)}-{short(tokens)}-s{seed}-{identity[:8]}",
        size=size.name,
        seed=seed,
        shape=shape,
        tokens=steps * global_batch * shape.seq_len,
        steps=steps,
        global_batch=global_batch,
        peak_lr=lr,
        checkpoints=checkpoint_steps(spec.training.checkpoints, steps),
        micro_batch=spec.training.micro_batch_of(global_batch),
        variant=variant,
        sharded=spec.cluster.sharded if size.sharded is None else size.sharded,
        recompute=spec.cluster.recompute if size.recompute is None else size.recompute,
    )


def _named(study: str, variant: str, size: str) -> str:
    return "-".join((study, *levels_of(variant).values(), size))


def _branched(spec: StudySpec, run: PlannedRun) -> list[PlannedRun]:
    """The run, which keeps what its branches start from, and after it the branches."""
    fits = [branch for branch in spec.training.branches if all(_steps(branch, run)) and sum(_steps(branch, run)) <= run.steps]
    leaves_at = {_steps(branch, run)[0] for branch in fits}
    checkpoints = tuple(sorted({*run.checkpoints, *leaves_at}))
    kept = checkpoints if spec.cluster.keep_states else tuple(sorted(leaves_at))
    trunk = replace(run, checkpoints=checkpoints, kept_states=kept)
    return [trunk, *(_branch(branch, run) for branch in fits)]


def _branch(spec: BranchSpec, parent: PlannedRun) -> PlannedRun:
    step, steps = _steps(spec, parent)
    identity = fingerprint(parent.run_id, step, steps, spec.checkpoints)
    budget = f"{short(step * parent.batch_tokens)}-decay{short(steps * parent.batch_tokens)}"
    return replace(
        parent,
        run_id=f"{_named(parent.study, parent.variant, parent.size)}-{budget}-s{parent.seed}-{identity[:8]}",
        tokens=(step + steps) * parent.batch_tokens,
        steps=step + steps,
        checkpoints=tuple(sorted({step + -(-steps * k // spec.checkpoints) for k in range(1, spec.checkpoints + 1)})),
        branch=Branch(parent.run_id, step, parent.steps),
    )


def _steps(branch: BranchSpec, run: PlannedRun) -> tuple[int, int]:
    """The step at which the branch leaves the run, and how many steps it has of its own."""
    return branch.at // run.batch_tokens, branch.decay // run.batch_tokens


def _leaves_some_run(branch: BranchSpec, runs: list[PlannedRun]) -> None:
    trunks = [run for run in runs if not run.branch]
    for run in trunks:
        if not all(_steps(branch, run)):
            sentence = f"a branch at {branch.at:,} tokens with {branch.decay:,} of decay is less than one global batch of {run.size}"
            raise UserError(sentence, f"give both at least {run.batch_tokens:,} tokens")
    longest = max(run.tokens for run in trunks)
    if not any(sum(_steps(branch, run)) <= run.steps for run in trunks):
        sentence = f"no run is long enough for a branch at {branch.at:,} tokens with {branch.decay:,} of decay: the longest has {longest:,}"
        raise UserError(sentence, "let the branch end within a run's budget: lower at or decay, or raise the budget")


def _peak_lr(spec: StudySpec, size: SizeSpec) -> float:
    """The size's own rate, or the family's moved from its reference width."""
    optimizer = spec.training.optimizer
    return size.peak_lr or rate_at(optimizer, size.d_model)


def rate_at(optimizer: OptimizerSpec, width: int) -> float:
    """The peak rate of hidden matrices at this width."""
    if optimizer.reference_width:
        return optimizer.lr * math.pow(optimizer.reference_width / width, optimizer.exponent())
    return optimizer.lr


def short(tokens: int) -> str:
    """67_000_000_000 -> 67B: budgets as people write them."""
    for unit, scale in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if tokens >= scale:
            return f"{tokens / scale:g}{unit}" if tokens % (scale // 100 or 1) == 0 else f"{tokens / scale:.2f}{unit}"
    return str(tokens)
