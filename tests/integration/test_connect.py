"""Connecting to Ray where it fails: a local node that is late, a cluster that is not there."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from losslens.cluster.connect import connected
from losslens.errors import EnvironmentFailure
from losslens.specs import ClusterSpec

LATE = "The current node timed out during startup."


def test_a_local_node_that_is_late_gets_a_second_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    tried, start = [], ray.init

    def late(**options: Any) -> Any:
        tried.append(options["address"])
        if len(tried) == 1:
            raise Exception(LATE)
        return start(**options)

    monkeypatch.setattr(ray, "init", late)
    with connected(ClusterSpec(workers=(1, 1), train_slots=2)) as slots:
        assert (slots.train, slots.eval) == (2, 1)
    assert tried == ["local", "local"]


def test_a_node_that_never_comes_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def never(**options: Any) -> Any:
        tried.append(options["address"])
        raise Exception(LATE)

    monkeypatch.setattr(ray, "init", never)
    for address in (None, "127.0.0.1:1"):
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        if address:
            monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(EnvironmentFailure, match="no connection to Ray: The current node timed out"), connected(ClusterSpec()):
            pass
    assert tried == ["local", "local", "127.0.0.1:1"]
