"""What the time of a training step goes into, from torch.profiler: kernels by class, and which attention kernel ran."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

CLASSES = ("attention", "matmul", "norm/elementwise", "optimizer", "cross-entropy", "memcpy", "idle")
# The first that matches. CUDA's kernels have names of their own, Triton's those of the operations they fuse; a CPU's are aten's.
_RULES = (
    ("memcpy", re.compile(r"^Mem(cpy|set)")),
    ("cross-entropy", re.compile(r"log_?softmax|SoftMax(Forward|Backward)|softmax_warp|nll_loss|cross_entropy", re.IGNORECASE)),
    ("norm/elementwise", re.compile(r"^triton_(poi|per|red)_")),
    ("attention", re.compile(r"flash|fmha|sdpa|scaled_dot_product|attention", re.IGNORECASE)),
    ("optimizer", re.compile(r"multi_tensor_apply|fused_adam|_foreach_", re.IGNORECASE)),
    ("matmul", re.compile(r"gemm|nvjet|cutlass|xmma|cublas|splitk|triton_tem|aten::(mm|addmm|bmm|baddbmm)$|mkldnn|onednn", re.IGNORECASE)),
)
_ATTENTION = re.compile(r"aten::_scaled_dot_product_(?:attention_(?=math))?(\w+?)(?:_attention)?(?:_for_cpu)?$")


@dataclass(frozen=True, slots=True)
class Profiled:
    """`seconds` of one step by class; `sdpa` are the attention kernels that ran, as aten names them."""

    seconds: dict[str, float]
    sdpa: tuple[str, ...]


def class_of(name: str) -> str:
    """The class of a kernel or operation."""
    return next((kind for kind, rule in _RULES if rule.search(name)), "norm/elementwise")


def by_class(kernels: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Sums of (name, seconds)."""
    sums = dict.fromkeys(CLASSES, 0.0)
    for name, seconds in kernels:
        sums[class_of(name)] += seconds
    return sums


def shares(seconds: dict[str, float], step: float) -> dict[str, float]:
    """Parts of a step that took `step` seconds without the profiler; what no kernel takes is idle."""
    found = {kind: seconds[kind] / step for kind in CLASSES}
    return found | {"idle": max(0.0, 1 - sum(found.values()))}


def profiled(steps: Callable[[], object], count: int, device: torch.device) -> Profiled:
    """Run `steps`, which takes `count` of them."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as found:
        steps()
    events = list(found.events() or ())
    kernels = _on_cuda(events) if device.type == "cuda" else _on_cpu(events)
    names = {match[1] for event in events if (match := _ATTENTION.match(event.name))}
    return Profiled({kind: seconds / count for kind, seconds in by_class(kernels).items()}, tuple(sorted(names)) or ("written out",))


def _on_cuda(events: Iterable[Any]) -> list[tuple[str, float]]:
    kernels = (event for event in events if event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False))
    return [(event.name, event.time_range.elapsed_us() / 1e6) for event in kernels]


def _on_cpu(events: Iterable[Any]) -> list[tuple[str, float]]:
    """Time within operations themselves, of all threads together."""
    return [(event.name, event.self_cpu_time_total / 1e6) for event in events if "::" in event.name]
