"""The nodes of the connected cluster that can be counted on: alive, and known to be leaving or not."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import ray
from ray._private.state import available_resources_per_node, state

PROBE_S = 0.5  # for a raylet to accept a connection
_PROBES = 32  # at once


@dataclass(frozen=True, slots=True)
class Node:
    """An alive node: what it offers in all, what of that nobody holds, and whether it drains."""

    node_id: str
    address: str
    port: int
    resources: Mapping[str, float]
    free: Mapping[str, float]
    draining: bool = False


def survey(*, probe: bool = False) -> tuple[Node, ...]:
    """Every node that the cluster holds for alive.

    The cluster notices a dead node only after some missed heartbeats. With `probe` each raylet's port is tried, and nodes
    that refuse are left out at once: after a failure that saves the wait.
    """
    draining: dict[str, int] = state.get_draining_nodes() or {}
    free: dict[str, dict[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]
    found = [
        Node(
            node["NodeID"],
            node["NodeManagerAddress"],
            int(node["NodeManagerPort"]),
            node["Resources"],
            free.get(node["NodeID"], {}),
            node["NodeID"] in draining,
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]
    return tuple(_answering(found)) if probe else tuple(found)


def capacity(nodes: Iterable[Node], need: Mapping[str, float], *, free: bool = False) -> int:
    """How many workers that each need `need` fit on the nodes that do not drain, were they empty; with `free`, as they are."""
    wanted = {name: amount for name, amount in need.items() if amount > 0}
    # 1e-9: tenths of a CPU are not exact in binary.
    offers = ((node.free if free else node.resources) for node in nodes if not node.draining)
    return sum(int(min(offer.get(name, 0.0) / amount for name, amount in wanted.items()) + 1e-9) for offer in offers)


def _answering(nodes: list[Node]) -> list[Node]:
    with ThreadPoolExecutor(_PROBES) as pool:
        return [node for node, answers in zip(nodes, pool.map(_answers, nodes), strict=True) if answers]


def _answers(node: Node) -> bool:
    try:
        with socket.create_connection((node.address, node.port), timeout=PROBE_S):
            return True
    except OSError:
        return False
