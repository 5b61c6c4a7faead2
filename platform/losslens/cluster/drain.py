"""Turns a notice that this machine goes away into a drain of its Ray node, so that training saves and moves in time.

Nothing in Ray watches what clouds announce. `losslens drain-watcher` runs beside the raylet of every node that may be
taken back and does what `ray drain-node` does, with the same request but in this process: to start that command takes a
second or two of the 30 that some clouds give.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import TypeVar

from ray._private import services
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION  # type: ignore[attr-defined]
from ray.core.generated.gcs_pb2 import GcsNodeInfo  # type: ignore[attr-defined]
from ray.exceptions import RayError

from losslens.cluster.notices import Notice, Source
from losslens.errors import UserError

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

RETRY_S = 1.0
RPC_TIMEOUT_S = 5.0
TROUBLE = (RayError, OSError, ValueError)  # of a source or of the cluster: it passes, or the machine does


@dataclass(frozen=True, slots=True)
class Target:
    """The node that is meant, and the address (host:port) of its cluster."""

    node_id: str
    cluster: str


def watch(source: Source, cluster: str | None, node_id: str | None, every_s: float) -> None:
    """Wait for a notice, asking every `every_s` seconds, then drain the node until Ray has accepted or the node is gone.

    `cluster` (host:port) and `node_id` (hex) are needed only where several raylets share the machine.

    Raises:
        UserError: it is not clear which node is meant, or there is no such node.
    """
    known = _node_at_start(cluster, node_id)
    logger.info("watching for node %s", known.node_id if known else "to come")
    notice = _until(source, every_s, "the source of notices")
    logger.warning("%s; seconds left: %s", notice.why, notice.remaining(time.time()))
    outcome = _until(lambda: drain(this_node(cluster, node_id), notice, seen=known is not None), RETRY_S, "Ray")
    logger.warning(outcome)


def drain(node: Target | None, notice: Notice, *, seen: bool) -> str | None:
    """Ask Ray once to drain the node; what came of it, None while it is not there yet. Asking again is harmless.

    Raises:
        ConnectionError: Ray refuses.
        RayError: Ray cannot be reached.
    """
    if node is None:
        return "the node has gone by itself" if seen else None
    now = time.time()
    remaining = notice.remaining(now)
    deadline_ms = 0 if remaining is None else int((now + remaining) * 1000)  # 0 is Ray's word for none
    request = (node.node_id, DRAIN_NODE_REASON_PREEMPTION, notice.why, deadline_ms)
    accepted, refusal = GcsClient(address=node.cluster).drain_node(*request, timeout=RPC_TIMEOUT_S)
    if not accepted:
        raise ConnectionError(f"Ray does not accept the drain: {refusal}")
    return f"node {node.node_id} drains"


def this_node(cluster: str | None, node_id: str | None) -> Target | None:
    """The node that is meant, None while it is not alive.

    Raises:
        UserError: several could be meant.
        RayError: Ray cannot be reached.
    """
    # Not Ray's public `find_gcs_addresses`: it remembers a cluster whose head has moved since.
    cluster = cluster or only(services._find_address_from_flag("--gcs-address"), "clusters have a raylet", "--address HOST:PORT")
    if cluster is None:
        return None
    alive = GcsClient(address=cluster).get_all_node_info(timeout=RPC_TIMEOUT_S, state_filter=GcsNodeInfo.GcsNodeState.ALIVE)
    here = {node_id} if node_id else services._find_address_from_flag("--node_id")
    found = only({node.hex() for node in alive} & here, "nodes of the cluster run", "--node-id HEX")
    return Target(found, cluster) if found else None


def only(names: Set[str], what: str, option: str) -> str | None:
    """The single name, None when there is none.

    Raises:
        UserError: there are several.
    """
    if len(names) > 1:
        raise UserError(f"{len(names)} {what} on this machine", f"name the one that is meant with {option}: {', '.join(sorted(names))}")
    return next(iter(names), None)


def _node_at_start(cluster: str | None, node_id: str | None) -> Target | None:
    """`this_node`, so that a mistake is said now and not when the notice comes."""
    if cluster and not cluster.rpartition(":")[2].isdigit():
        raise UserError(f"{cluster!r} is not the address of a cluster", "give --address HOST:PORT")
    try:
        known = this_node(cluster, node_id)
    except TROUBLE as error:
        logger.warning("Ray does not answer, and will be asked again when a notice comes: %s", error)
        return None
    if known is None and node_id:
        raise UserError(f"there is no live node {node_id}", "take its ID from `ray list nodes`")
    return known


def _until(ask: Callable[[], Answer | None], every_s: float, who: str) -> Answer:
    """Ask until there is an answer. Trouble is logged when it begins and when it is over."""
    troubled = False
    while True:
        try:
            answer = ask()
        except TROUBLE as error:
            if not troubled:
                logger.warning("%s does not answer, and is asked again every %g s: %s", who, every_s, error)
            troubled = True
        else:
            if troubled:
                logger.info("%s answers again", who)
            if answer is not None:
                return answer
            troubled = False
        time.sleep(every_s)
