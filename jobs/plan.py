"""Every derived number of a study, before anything runs: `losslens plan`. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from losslens.errors import UserError
from losslens.families import A100_PEAK, ASSUMED_MFU, PlannedRun, planned_runs
from losslens.families.fit import GPUS, USABLE, layout_on, memory_of, seconds, smallest, tokens_per_second
from losslens.families.memory import activations, replicated
from losslens.specs import StudySpec, TrainingSpec, variants

Row = dict[str, str | int | float | None]

# What a terminal has room for, by heading; JSON and CSV carry every column.
SHOWN = {
    "size": "size",
    "tokens": "tokens",
    "d_model": "d_model",
    "d_ffn": "d_ffn",
    "heads": "heads",
    "layers": "layers",
    "params": "params",
    "flops": "FLOPs",
    "global_batch": "batch",
    "steps": "steps",
    "peak_lr": "peak lr",
    "checkpoints": "saved",
    "accelerator_hours": "A100 h",
    "disk_gb": "disk GB",
    "days": "days",
}
NOTE = (
    f"batch in sequences; hours on A100s ({A100_PEAK / 1e12:.0f} TFLOP/s) at MFU {ASSUMED_MFU}; "
    "disk for all checkpoints and two trainer states"
)


# One line for each size and batch: memory does not depend on the token budget. GB are 10^9 bytes on one GPU.
SHOWN_MEMORY = {
    "size": "size",
    "global_batch": "batch",
    "min_h100": "H100s",
    "min_h200": "H200s",
    "gpus": "GPUs",
    "tensor_parallel": "TP",
    "micro_batch": "micro",
    "recompute": "again",
    "weights_gb": "weights",
    "gradients_gb": "grads",
    "optimizer_gb": "optim",
    "average_gb": "average",
    "gathered_gb": "gathered",
    "activations_stored_gb": "acts",
    "activations_recomputed_gb": "acts again",
    "workspace_gb": "workspace",
    "memory_gb": "total GB",
    "tokens_per_second": "tokens/s",
}


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the study would run on: `gpus` of a kind (None: the fewest that fit), at `mfu`, for `price` USD a GPU-hour."""

    gpu: str = "h100"
    gpus: int | None = None
    mfu: float = ASSUMED_MFU
    price: float | None = None


def plan(spec: StudySpec, hardware: Hardware = Hardware()) -> list[Row]:
    """One row per planned run. Tokens and parameters are counts, `flops` of the whole training, `global_batch` in
    sequences; the other units are in `NOTE`. What `hardware` makes of the run follows, None where the run cannot use it.

    Raises:
        UserError: no run of the study can use so many GPUs.
    """
    training = {name: of.training for name, of in variants(spec).items()}
    rows = [_row(run) | _fewest(run, training[run.variant]) | _on(run, training[run.variant], hardware) for run in planned_runs(spec)]
    if hardware.gpus and all(row["gpus"] is None for row in rows):
        sentence = f"no size of {spec.name} has sequences enough in a global batch to keep {hardware.gpus:,} GPUs busy"
        raise UserError(sentence, f"give --gpus at most {max(run.global_batch for run in planned_runs(spec)):,}, or raise global_batch")
    return rows


def columns(hardware: Hardware, rows: list[Row]) -> dict[str, str]:
    """What a terminal shows of each run."""
    shown = ({"variant": "variant"} if any(row["variant"] for row in rows) else {}) | SHOWN
    return shown if hardware.price is None else shown | {"cost_usd": "USD"}


def memory_rows(rows: list[Row]) -> list[Row]:
    """The first row of each size and batch."""
    return list({(row["variant"], row["size"], row["global_batch"], row["gpus"]): row for row in reversed(rows)}.values())[::-1]


def memory_columns(rows: list[Row]) -> dict[str, str]:
    """What a terminal shows of memory; exact sums where a run has them."""
    before, after = dict(list(SHOWN_MEMORY.items())[:-2]), dict(list(SHOWN_MEMORY.items())[-2:])
    before = ({"variant": "variant"} if any(row["variant"] for row in rows) else {}) | before
    return before | ({"sums_gb": "sums"} if any(row["sums_gb"] for row in rows) else {}) | after


def memory_note(hardware: Hardware) -> str:
    """What the table of memory counts."""
    gpu = GPUS[hardware.gpu]
    return (
        f"GB (10^9 bytes) on one {gpu.name.upper()} under FSDP2, {USABLE:.0%} of its {gpu.memory / 1e9:.0f} GB taken as usable; "
        "H100s, H200s: the fewest that fit; again: blocks are computed again in the backward pass; "
        f"tokens/s and days at MFU {hardware.mfu:g} (assumed, unless --mfu gives a measured one); see docs/PLAN.md"
    )


def _fewest(run: PlannedRun, training: TrainingSpec) -> Row:
    """The fewest GPUs of each kind, with blocks computed again and with every activation stored."""
    row: Row = {}
    for name, gpu in GPUS.items():
        for key, recompute in ((f"min_{name}", True), (f"min_{name}_stored", False)):
            layout = smallest(run, training, gpu, recompute=recompute)
            row[key] = layout.gpus if layout else None
    return row


def _on(run: PlannedRun, training: TrainingSpec, hardware: Hardware) -> Row:
    """How the GPUs share the run, the memory of one, and what the run takes."""
    gpu = GPUS[hardware.gpu]
    fewest = smallest(run, training, gpu)
    gpus = hardware.gpus or (fewest.gpus if fewest else 0)
    layout = layout_on(run, training, gpu, gpus) if gpus else None
    if layout is None:
        return dict.fromkeys(_ON)
    memory = memory_of(run, training, layout)
    tokens = layout.micro_batch * run.shape.seq_len
    stored, again = (tokens * activations(run.shape, training, tensor=layout.tensor, recompute=r) for r in (False, True))
    at_once = min(run.micro_batch or run.global_batch, -(-run.global_batch // gpus))
    today = replicated(run.shape, training, at_once, exact=run.micro_batch is not None, workers=gpus)
    rate, taken = (of(run, gpu, layout, hardware.mfu) for of in (tokens_per_second, seconds))
    bytes_of = (
        memory.weights, memory.gradients, memory.optimizer, memory.average, memory.sums, memory.gathered,
        memory.activations, stored, again, memory.workspace, memory.total, today,
    )  # fmt: skip
    how = (hardware.gpu, gpus, layout.tensor, layout.micro_batch, layout.recompute, memory.total <= USABLE * gpu.memory)
    cost = None if hardware.price is None else gpus * taken / 3600 * hardware.price
    return dict(zip(_ON, (*how, *(amount / 1e9 for amount in bytes_of), rate, taken / 86400, cost), strict=True))


_ON = (
    "gpu", "gpus", "tensor_parallel", "micro_batch", "recompute", "fits",
    "weights_gb", "gradients_gb", "optimizer_gb", "average_gb", "sums_gb", "gathered_gb",
    "activations_gb", "activations_stored_gb", "activations_recomputed_gb", "workspace_gb", "memory_gb", "replicated_gb",
    "tokens_per_second", "days", "cost_usd",
)  # fmt: skip


def _row(run: PlannedRun) -> Row:
    shape = run.shape
    return {
        "run_id": run.run_id,
        "size": run.size,
        "variant": run.variant or None,
        "seed": run.seed,
        "tokens": run.tokens,
        "architecture": shape.architecture,
        "d_model": shape.d_model,
        "d_ffn": shape.d_ffn,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "layers": shape.layers,
        "vocab_size": shape.vocab_size,
        "seq_len": shape.seq_len,
        "params": shape.params,
        "params_non_embedding": shape.params_non_embedding,
        "params_active": shape.params_active,
        "flops_per_token": shape.flops_per_token,
        "flops": run.flops,
        "global_batch": run.global_batch,
        "steps": run.steps,
        "peak_lr": run.peak_lr,
        "checkpoints": len(run.checkpoints),
        "accelerator_hours": run.accelerator_hours(),
        "disk_gb": run.disk_bytes / 1e9,
    }
