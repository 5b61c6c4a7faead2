"""Learning rate over steps, as a multiplier of the peak rate. Pure arithmetic."""

from __future__ import annotations

import math

from losslens.families import Branch
from losslens.specs import ScheduleSpec


def multiplier(spec: ScheduleSpec, step: int, steps: int, branch: Branch | None = None) -> float:
    """Multiplier in (0, 1] for the update number `step` (from 0) of `steps`.

    Warm-up is linear and reaches 1 at update `warmup_steps`. `cosine` reaches `final_fraction` exactly at the last update
    (Loshchilov and Hutter 2017, arXiv 1608.03983, one cycle); `wsd` (Hu et al. 2024, arXiv 2404.06395) falls linearly to
    `final_fraction` over the last `decay_fraction` of the steps; `constant` stays at 1. A run that left another follows the
    other's schedule up to there, and falls linearly from what comes next in it to `final_fraction` of that at its own last
    update: a branch of a constant run is WSD.
    """
    if branch:
        top = multiplier(spec, min(step, branch.step), branch.parent_steps)
        left = (steps - 1 - step) / (steps - branch.step)
        return top if step < branch.step else top * (spec.final_fraction + (1 - spec.final_fraction) * left)
    if step < spec.warmup_steps:
        return (step + 1) / spec.warmup_steps
    if spec.name == "cosine":
        progress = (step - spec.warmup_steps) / max(1, steps - 1 - spec.warmup_steps)
        return spec.final_fraction + (1 - spec.final_fraction) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if spec.name == "wsd":
        left = (steps - 1 - step) / max(1.0, spec.decay_fraction * steps)
        return spec.final_fraction + (1 - spec.final_fraction) * min(1.0, left)
    return 1.0


def averaging_decay(spec: ScheduleSpec, step: int) -> float:
    """Decay of the weight average after update `step`: short memory first, so that the random start is forgotten."""
    return min(spec.average, (1 + step) / (10 + step))
