"""What the driver sees of its cluster, left beside the results every other second, so that `losslens status` can show it.

A file and not a question to Ray: whoever asks may have no token, no route to the cluster, or a results directory only.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from losslens.cluster.slots import EVAL, TRAIN
from losslens.families import PlannedRun
from losslens.training import journal

EVERY_S = 2.0
OLD = timedelta(seconds=60)  # a view older than this is of a study that no longer runs
FILE = "cluster.json"

# (resources, whether it drains) of an alive node; resources and how many of them are asked for
SeenNode = tuple[Mapping[str, float], bool]
Demand = tuple[Mapping[str, float], int]


class ClusterView:
    """Keeps `results/cluster.json` fresh while a job runs; call `refresh` as often as you like."""

    def __init__(self, results: Path, runs: Sequence[PlannedRun] = ()) -> None:
        self._file, self._due = results / FILE, 0.0
        self._runs = [
            {"run_id": run.run_id, "study": run.study, "size": run.size, "seed": run.seed, "tokens_planned": run.tokens} for run in runs
        ]

    def refresh(self) -> None:
        """Look and write when the last look is `EVERY_S` old. A look that fails is left out: the work goes on."""
        from ray.exceptions import RayError

        if time.monotonic() < self._due:
            return
        with contextlib.suppress(OSError, RayError):
            content = look() | {"runs": self._runs, "time": datetime.now(UTC).isoformat()}
            journal.replace(self._file, content)
        self._due = time.monotonic() + EVERY_S


def look() -> dict[str, int]:
    """`counts` of the cluster that this process is connected to."""
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status

    from losslens.cluster.nodes import survey

    nodes = survey()
    free = {slot: sum(node.free.get(slot, 0.0) for node in nodes) for slot in (TRAIN, EVAL)}
    asked = get_cluster_status(ray.get_runtime_context().gcs_address)
    demands = [*asked.resource_demands.ray_task_actor_demand, *asked.resource_demands.placement_group_demand]
    coming = len(asked.pending_nodes) + sum(launch.count for launch in asked.pending_launches)
    bundles = [(shape.bundle, shape.count) for demand in demands for shape in demand.bundles_by_count]
    return counts([(node.resources, node.draining) for node in nodes], free, bundles, coming)


def counts(nodes: Sequence[SeenNode], free: Mapping[str, float], demands: Iterable[Demand], coming: int) -> dict[str, int]:
    """Nodes (alive, draining, on their way) and slots of each kind (there, used, asked for in vain so far)."""
    view = {"nodes": len(nodes), "nodes_draining": sum(draining for _, draining in nodes), "nodes_pending": coming}
    asked = list(demands)
    for slot, name in ((TRAIN, "train_slots"), (EVAL, "eval_slots")):
        total = round(sum(resources.get(slot, 0) for resources, _ in nodes))
        view[name] = total
        view[f"{name}_used"] = max(0, total - round(free.get(slot, 0)))
        view[f"{name}_pending"] = round(sum(bundle.get(slot, 0) * count for bundle, count in asked))
    return view


def read_view(results: Path, now: datetime) -> dict[str, Any] | None:
    """The view of a job that runs now; None when none does, or none has looked yet."""
    view = journal.state(results / FILE)
    return view if view and now - datetime.fromisoformat(view["time"]) < OLD else None
