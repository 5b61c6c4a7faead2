"""Slots: disjoint custom resources for training and for scoring, so that neither can starve the other.

Ray's elastic training counts what nodes have, not what is free; sharing CPUs between workers and other actors makes it
ask for workers that can never start. Clusters without our slots (a plain `ray start --head`) are shared by fractions of
a CPU instead.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from losslens.errors import EnvironmentFailure

TRAIN, EVAL = "train_slot", "eval_slot"
DRIVER = "driver"  # on the head of a cluster whose nodes with slots come and go: it carries the driver and no slot
WORKER_CPU, SCORER_CPU = 0.5, 0.25  # where there are no slots: leaves room for Ray Data's tasks of 0.25


@dataclass(frozen=True, slots=True)
class Slots:
    """How many workers and scorers the cluster takes at once, grown as far as it can, and what each asks Ray for."""

    train: int
    eval: int
    named: bool  # whether its nodes offer train_slot and eval_slot

    def worker_resources(self, gpus: int = 0) -> dict[str, float]:
        """Resources of one training worker."""
        resources: dict[str, float] = {TRAIN: 1, "CPU": 0.01} if self.named else {"CPU": WORKER_CPU}
        return resources | ({"GPU": gpus} if gpus else {})

    def scorer_options(self, gpus: int = 0) -> dict[str, object]:
        """`ray.remote` options of one scoring actor."""
        if self.named:
            return {"num_cpus": 0.01, "num_gpus": gpus, "resources": {EVAL: 1}}
        return {"num_cpus": SCORER_CPU, "num_gpus": gpus}


def slots_of(
    present: Mapping[str, float], most: Mapping[str, float] | None = None, *, wanted_train: int, wanted_eval: int, min_workers: int
) -> Slots:
    """What a cluster can run at once: `present` are its resources now, `most` what it can grow to where Ray knows that.

    An autoscaler brings nodes when somebody asks for them, so slots count before they are there. Ray's own autoscaler
    tells nobody its limits (2.60); a head that carries `driver`, as in cluster.yaml, stands for "slots come on demand",
    as many as the study wants.

    Raises:
        EnvironmentFailure: not even at its largest the cluster has room for `min_workers` workers and one scorer.
    """
    if not any(present.get(name) or (most or {}).get(name) for name in (TRAIN, EVAL, DRIVER)):
        return _fractions(present.get("CPU", 0.0), wanted_train, wanted_eval, min_workers)
    train, evaluate = _at_most(TRAIN, present, most, wanted_train), _at_most(EVAL, present, most, wanted_eval)
    if train < min_workers or evaluate < 1:
        raise EnvironmentFailure(
            f"the cluster offers at most {train} {TRAIN} and {evaluate} {EVAL}; the study needs at least {min_workers} and 1",
            f'start nodes with --resources=\'{{"{TRAIN}": {min_workers}, "{EVAL}": 1}}\', let an autoscaling cluster have more '
            "(its max_workers, the study's cluster.train_slots), or lower cluster.workers",
        )
    return Slots(train, evaluate, named=True)


def _at_most(name: str, present: Mapping[str, float], most: Mapping[str, float] | None, wanted: int) -> int:
    """How many slots there can be: a limit that is known, else `wanted` where nodes come on demand; never less than are there."""
    on_demand = sys.maxsize if present.get(DRIVER) else 0
    limit = on_demand if most is None else most.get(name, 0)
    return max(int(present.get(name, 0)), wanted if limit >= sys.maxsize else int(limit))


def _fractions(cpus: float, wanted_train: int, wanted_eval: int, min_workers: int) -> Slots:
    train = min(wanted_train, int((cpus - SCORER_CPU) / (WORKER_CPU + 0.25)))
    if train < min_workers:
        reason = f"{cpus:g} CPUs are too few for {min_workers} workers beside a scorer"
        raise EnvironmentFailure(reason, "add nodes or lower cluster.workers")
    return Slots(train, min(wanted_eval, 1), named=False)
