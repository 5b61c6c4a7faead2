"""Orders of workers' places: none holds a slot longer than it takes to see that it was filled."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from losslens.cluster import allotter
from losslens.cluster.allotter import Orders
from losslens.cluster.connect import connected
from losslens.cluster.nodes import Node, capacity, survey
from losslens.cluster.slots import TRAIN
from losslens.specs import ClusterSpec
from tests.nodes import wait_for

NEED = {TRAIN: 1.0}
GONE = [Node("0" * 56, "localhost", 1, {}, {})]  # the nodes that were there: an order made beside it may use the one that is there now


@pytest.fixture(scope="module", autouse=True)
def one_slot() -> Iterator[None]:
    with connected(ClusterSpec(workers=(1, 1), train_slots=1)):
        yield


def free_slots() -> int:
    return capacity(survey(), NEED, free=True)


def test_an_order_is_withdrawn_before_or_after_ray_places_it_and_never_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    # Withdrawn at once, one in some hundred keeps its slot for ever.
    removed: list[str] = []

    def remove(group: PlacementGroup) -> None:
        removed.append(placement_group_table(group)["state"])
        remove_placement_group(group)

    monkeypatch.setattr(allotter, "remove_placement_group", remove)
    orders, moment = Orders(), random.Random(0)
    for _ in range(10):
        orders.keep(1, NEED, GONE)
        time.sleep(moment.choice([0, 0.001, 0.01]))
        while orders.keep(0, NEED, GONE):
            time.sleep(0.005)
    assert removed == ["CREATED"] * 10
    wait_for(lambda: free_slots() == 1, 10, "a free slot")


def test_an_order_waits_for_a_node_to_come_and_can_be_withdrawn_until_then() -> None:
    orders, nodes = Orders(), survey()
    orders.keep(2, NEED, nodes)
    time.sleep(0.5)
    assert free_slots() == 1  # none has taken the slot that is there
    assert orders.keep(1, NEED, nodes) == orders.keep(0, NEED, nodes) == 0


def test_an_order_whose_place_went_to_somebody_faster_is_withdrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allotter, "PLACING_S", 0.5)
    faster = placement_group([NEED])
    assert faster.wait(60)
    orders = Orders()
    orders.keep(1, NEED, GONE)
    assert orders.keep(0, NEED, GONE) == 1
    time.sleep(0.6)
    assert orders.keep(0, NEED, GONE) == 0
    remove_placement_group(faster)
    wait_for(lambda: free_slots() == 1, 10, "a free slot")
