"""A size -> shape, parameters, FLOPs, tokens, batch, learning rate. Pure arithmetic; each formula with its citation."""

from losslens.families.plan import A100_PEAK, ASSUMED_MFU, PARENT, Branch, Origin, PlannedRun, checkpoint_steps, planned_runs
from losslens.families.shape import Shape, shape_of

__all__ = ["A100_PEAK", "ASSUMED_MFU", "PARENT", "Branch", "Origin", "PlannedRun", "Shape", "checkpoint_steps", "planned_runs", "shape_of"]
