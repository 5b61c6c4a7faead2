"""`losslens drain-watcher`: runs on a node that a cloud may take back, until its notice came and Ray drains the node."""

from __future__ import annotations

import logging

from losslens.cluster.drain import watch
from losslens.cluster.notices import source_named


def watch_drain(source: str, endpoint: str | None, address: str | None, node_id: str | None, every_s: float) -> None:
    """Watch `source`, asking every `every_s` seconds; what happens goes to stderr, a line each.

    Raises:
        UserError: the source or the node is not clear.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    watch(source_named(source, endpoint), address, node_id, every_s)
