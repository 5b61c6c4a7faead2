"""How many GPUs a run needs, how they share it, and how long it then takes."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

from losslens.families.memory import Layout, Memory, sharded
from losslens.families.plan import PlannedRun
from losslens.specs import TrainingSpec

USABLE = 0.9  # of a GPU's memory: the rest is the context, NCCL's buffers and gaps between tensors; an assumption
NODE = 8  # GPUs that share a layer at most: those with NVLink between them


@dataclass(frozen=True, slots=True)
class Gpu:
    """Memory in bytes and dense bf16 FLOP/s, as NVIDIA's data sheets give them (half of what they print with sparsity)."""

    name: str
    memory: float
    peak_flops: float


GPUS = {"h100": Gpu("h100", 80e9, 989e12), "h200": Gpu("h200", 141e9, 989e12)}


def smallest(run: PlannedRun, training: TrainingSpec, gpu: Gpu, *, recompute: bool = True) -> Layout | None:
    """The fewest GPUs on which the run fits; None: on none.

    Every GPU takes one micro-batch of the study, or one sequence. Layers are shared only where they do not fit otherwise.
    """
    for tensor in _degrees(run):
        one = Layout(tensor, tensor, run.micro_batch or 1, recompute)

        def fits_on(ranks: int, one: Layout = one) -> bool:
            return fits(run, training, replace(one, gpus=ranks * one.tensor), gpu)

        most = _most_ranks(run)
        ranks = 1 + bisect_left(range(1, most + 1), True, key=fits_on)  # more never need more memory each
        if ranks <= most:
            return replace(one, gpus=ranks * tensor)
    return None


def layout_on(run: PlannedRun, training: TrainingSpec, gpu: Gpu, gpus: int) -> Layout | None:
    """How `gpus` GPUs share the run: layers as little as possible, blocks computed again only where they must be, then the
    largest micro-batch that fits (a power of two, unless the study sets it). Where nothing fits, the leanest; None where
    the global batch has too few sequences for so many."""
    leanest = None
    for tensor in _degrees(run):
        if gpus % tensor or gpus // tensor > _most_ranks(run):
            continue
        for recompute in (False, True):
            for micro in _micro_batches(run, gpus // tensor):
                leanest = Layout(gpus, tensor, micro, recompute)
                if fits(run, training, leanest, gpu):
                    return leanest
    return leanest


def memory_of(run: PlannedRun, training: TrainingSpec, layout: Layout) -> Memory:
    """`sharded` for the run's shape."""
    return sharded(run.shape, training, layout)


def fits(run: PlannedRun, training: TrainingSpec, layout: Layout, gpu: Gpu) -> bool:
    """Whether the run's memory is within what a GPU has to use."""
    return memory_of(run, training, layout).total <= USABLE * gpu.memory


def tokens_per_second(run: PlannedRun, gpu: Gpu, layout: Layout, mfu: float) -> float:
    """Of all GPUs together at model-FLOPs utilisation `mfu`; blocks that are computed again cost their forward pass
    (Korthikanti et al. 2022, arXiv 2205.05198, appendix A: hardware FLOPs)."""
    shape = run.shape
    again = 2.0 * shape.params_non_embedding + 2.0 * shape.layers * shape.seq_len * shape.d_model if layout.recompute else 0.0
    return layout.gpus * gpu.peak_flops * mfu / (shape.flops_per_token + again)


def seconds(run: PlannedRun, gpu: Gpu, layout: Layout, mfu: float) -> float:
    """Of all the training that is the run's own."""
    own_tokens = run.accelerator_hours(1.0, 1.0) * 3600 / run.shape.flops_per_token
    return own_tokens / tokens_per_second(run, gpu, layout, mfu)


def _degrees(run: PlannedRun) -> list[int]:
    """Numbers of GPUs that can share a layer: each gets whole heads."""
    shape = run.shape
    whole = [t for t in (1, 2, 4, NODE) if shape.heads % t == 0 and shape.d_ffn % t == 0]
    return [t for t in whole if shape.kv_heads % t == 0 or t % shape.kv_heads == 0]


def _most_ranks(run: PlannedRun) -> int:
    return -(-run.global_batch // (run.micro_batch or 1))


def _micro_batches(run: PlannedRun, ranks: int) -> list[int]:
    """Sizes to try, the largest first."""
    if run.micro_batch:
        return [run.micro_batch]
    share = -(-run.global_batch // ranks)
    return [2**k for k in range(share.bit_length() - 1, -1, -1)]
