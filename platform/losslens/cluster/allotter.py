"""The actor that hands out workers to the elastic runs of a cluster, whoever drives them. One per cluster, by name.

It holds nothing that cannot be told again: runs announce themselves every second or so, and one that falls silent is
forgotten. Shares change only when runs or slots come or go, never because work gets done: every change costs a restart.

It also orders nodes from an autoscaler, one empty placement group for each missing worker. Ray Train would ask for the most
of every run in one request, which the autoscaler grants whole or not at all: a family that wants more than the cluster can
ever have would get nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from losslens.cluster.allot import Demand, allot, reason
from losslens.cluster.nodes import Node, capacity, survey

NAME, NAMESPACE = "allotter", "losslens"
FORGET_S = 15.0  # a controller announces its run every second; starting one takes a few
SURVEY_S = 0.5  # between two looks at the cluster
PLACING_S = 5.0  # far more than Ray takes to put a placement group on a node that has room
PLACED_EVERY_S = 0.05  # between two looks whether it has


@dataclass(frozen=True, slots=True)
class Place:
    """What each worker of a run needs, how many the nodes that are there may hold (None: as many as fit; a number where
    nodes offer no slots of ours), and for how many nodes may be ordered."""

    need: Mapping[str, float]
    limit: int | None
    most: int


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to one run: its workers now, how many more places nobody holds, why none, and which nodes drain."""

    share: int
    free: int
    why: str
    draining: frozenset[str]


class Shares:
    """The state behind the actor: who asked when, and the shares in force."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard: dict[str, tuple[Demand, float]] = {}
        self._given: dict[str, int] = {}
        self._for: tuple[Any, ...] = ()

    def share(self, demand: Demand, slots: int) -> tuple[int, str]:
        """Workers for the run that asks, when the cluster has `slots`, and why none."""
        now = self._clock()
        self._heard[demand.run] = (demand, now)
        self._heard = {run: (d, heard) for run, (d, heard) in self._heard.items() if now - heard < FORGET_S}
        demands = [d for d, _ in self._heard.values()]
        situation = (slots, frozenset((d.run, d.low, d.high) for d in demands))
        if situation != self._for:
            self._for, self._given = situation, allot(slots, demands)
        return self._given[demand.run], reason(demand.run, slots, demands, self._given)

    def wanted(self) -> int:
        """Workers that all runs together could use."""
        return sum(demand.high for demand, _ in self._heard.values())

    def leave(self, run: str) -> None:
        """Its workers are free for the others."""
        self._heard.pop(run, None)


@dataclass(eq=False, slots=True)
class _Order:
    """A placement group of one worker's place; the nodes it may not use; since when it is no longer wanted."""

    group: PlacementGroup
    excluded: frozenset[str]
    surplus_since: float = float("inf")


class Orders:
    """Workers' places that are wanted and not there yet, as placement groups that wait for them.

    An order can only be filled by a node that comes later. On the nodes that are there it would race with the groups of
    workers for their slots.

    A group that is removed while Ray places it holds its slot for ever (Ray 2.60, ray-project/ray#64693; `test_orders.py`).
    So one that is no longer wanted, because a node has come, stays until it is placed.
    """

    def __init__(self) -> None:
        self._open: list[_Order] = []

    def keep(self, count: int, need: Mapping[str, float], nodes: Iterable[Node]) -> int:
        """Have `count` orders open beside `nodes`, and close those that found their place, so that a worker can take it.

        Returns how many more are still open, since they may be finding it just now: call again.
        """
        placed = [order for order in self._open if placement_group_table(order.group)["state"] == "CREATED"]
        waiting = [order for order in self._open if order not in placed]
        wanted, surplus = waiting[:count], waiting[count:]
        for order in wanted:
            order.surplus_since = float("inf")
        idle = self._idle(surplus)
        for order in placed + idle:
            remove_placement_group(order.group)
        kept = [order for order in surplus if order not in idle]
        excluded = frozenset(node.node_id for node in nodes)
        elsewhere = {"ray.io/node-id": f"!in({','.join(sorted(excluded))})"}
        for _ in range(count - len(wanted)):
            wanted.append(_Order(placement_group([dict(need)], bundle_label_selector=[elsewhere]), excluded))
        self._open = wanted + kept
        return len(kept)

    @staticmethod
    def _idle(surplus: Sequence[_Order]) -> list[_Order]:
        """Those that Ray cannot be placing: no node is there that they may use, or whoever was faster has had their place for long."""
        now = time.monotonic()
        for order in surplus:
            order.surplus_since = min(order.surplus_since, now)
        present = {node.node_id for node in survey()} if surplus else set()
        return [order for order in surplus if present <= order.excluded or now - order.surplus_since > PLACING_S]


class Allotter:
    """See the module. Every method answers at once; only `leave` may wait until no order is half placed."""

    def __init__(self) -> None:
        self._shares = Shares()
        self._nodes: tuple[Node, ...] = ()
        self._looked = float("-inf")
        self._orders = Orders()

    def grant(self, demand: Demand, place: Place, failed: bool) -> Grant:
        """Workers for a run. `failed`: it has just lost some, so nodes are tried before they are counted on."""
        if failed or time.monotonic() - self._looked > SURVEY_S:
            self._nodes, self._looked = survey(probe=failed), time.monotonic()
        room = capacity(self._nodes, place.need)
        slots = room if place.limit is None else min(room, place.limit)
        share, why = self._shares.share(demand, slots)
        self._orders.keep(max(0, min(self._shares.wanted(), place.most) - slots), place.need, self._nodes)
        return Grant(
            share, capacity(self._nodes, place.need, free=True), why, frozenset(node.node_id for node in self._nodes if node.draining)
        )

    def leave(self, run: str) -> None:
        """The run has ended."""
        self._shares.leave(run)
        while not self._shares.wanted() and self._orders.keep(0, {}, self._nodes):
            time.sleep(PLACED_EVERY_S)


def allotter() -> Any:
    """The cluster's allotter, made where there is none yet. It ends with the process that made it; the next caller makes another."""
    decorate: Any = ray.remote
    here = ray.get_runtime_context().get_node_id()
    options = {"num_cpus": 0, "name": NAME, "namespace": NAMESPACE, "get_if_exists": True}
    return decorate(**options, label_selector={"ray.io/node-id": here})(Allotter).remote()
