"""What a cluster takes: slots that are there, slots that an autoscaler can bring, and CPUs where nobody named slots."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray._private.state import GlobalState
from ray.core.generated.autoscaler_pb2 import ClusterConfig  # type: ignore[attr-defined]

from losslens.cluster.slots import DRIVER, EVAL, TRAIN, slots_of
from losslens.errors import EnvironmentFailure

HEAD = {"CPU": 2.0, DRIVER: 1.0}


def test_named_slots_are_taken_as_they_are() -> None:
    slots = slots_of({"CPU": 2, TRAIN: 3, EVAL: 2}, wanted_train=1, wanted_eval=1, min_workers=1)
    assert (slots.train, slots.eval, slots.named) == (3, 2, True)
    assert slots.worker_resources()[TRAIN] == 1
    assert slots.scorer_options()["resources"] == {EVAL: 1}


@pytest.mark.parametrize(
    ("present", "most", "expected"),
    [
        ({}, {TRAIN: 8, EVAL: 4}, (8, 4)),  # a limit that is known counts before any node is there
        ({TRAIN: 9, EVAL: 1}, {TRAIN: 8, EVAL: 4}, (9, 4)),  # nodes joined by hand count too
        ({}, {TRAIN: sys.maxsize, EVAL: sys.maxsize}, (2, 3)),  # no limit: what the study wants
        ({TRAIN: 5, EVAL: 1}, {TRAIN: sys.maxsize, EVAL: sys.maxsize}, (5, 3)),
        (HEAD, None, (2, 3)),  # an autoscaler that does not tell its limits
        (HEAD | {TRAIN: 1, EVAL: 4}, None, (2, 4)),
        (HEAD, {TRAIN: 1, EVAL: 1}, (1, 1)),  # a known limit is believed
    ],
)
def test_slots_that_nodes_can_bring_count(present: dict[str, float], most: dict[str, float] | None, expected: tuple[int, int]) -> None:
    slots = slots_of(present, most, wanted_train=2, wanted_eval=3, min_workers=1)
    assert (slots.train, slots.eval) == expected
    assert slots.named


@given(st.integers(1, 64), st.integers(1, 8))
def test_without_slots_workers_scorers_and_data_tasks_fit_the_cpus(cpus: int, wanted: int) -> None:
    slots = slots_of({"CPU": cpus}, wanted_train=wanted, wanted_eval=2, min_workers=1)
    scorer = float(str(slots.scorer_options()["num_cpus"])) * slots.eval
    assert slots.train * (slots.worker_resources()["CPU"] + 0.25) + scorer <= cpus
    assert 1 <= slots.train <= wanted
    assert not slots.named


@pytest.mark.parametrize(
    ("present", "most"),
    [
        ({"CPU": 8, TRAIN: 1, EVAL: 1}, None),
        ({"CPU": 8, TRAIN: 2}, None),
        ({"CPU": 1}, None),
        ({"CPU": 1}, {"CPU": 8, TRAIN: 0}),
        (HEAD, {TRAIN: 1, EVAL: 4}),
        (HEAD, {TRAIN: 4, "CPU": sys.maxsize}),
    ],
)
def test_a_cluster_that_can_never_be_large_enough_is_refused(present: dict[str, float], most: dict[str, float] | None) -> None:
    with pytest.raises(EnvironmentFailure) as failure:
        slots_of(present, most, wanted_train=2, wanted_eval=1, min_workers=2)
    assert failure.value.remedy


def limits(*groups: tuple[dict[str, int], int]) -> dict[str, float]:
    """What Ray makes of a published cluster configuration: groups of (resources, most nodes)."""
    config = ClusterConfig()
    for resources, count in groups:
        group = config.node_group_configs.add(max_count=count)
        group.resources.update(resources)
    names = {name for resources, _ in groups for name in resources}
    return {name: GlobalState._calculate_max_resource_from_cluster_config(config, name) or 0 for name in names}


def test_rays_own_limits_are_read_right() -> None:
    most = limits(({TRAIN: 8, "CPU": 192}, 3), ({EVAL: 1, "CPU": 4}, -1))
    assert most == {TRAIN: 24, EVAL: sys.maxsize, "CPU": sys.maxsize}
    slots = slots_of({"CPU": 8}, most, wanted_train=1, wanted_eval=2, min_workers=24)
    assert (slots.train, slots.eval) == (24, 2)
    assert limits(({TRAIN: 8}, 0)) == {TRAIN: 0}
