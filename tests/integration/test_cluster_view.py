"""The view of a real cluster: what is used, and what is asked for in vain."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from jobs.cluster_view import FILE, ClusterView, look
from losslens.cluster.slots import EVAL, TRAIN
from losslens.families import planned_runs
from losslens.specs import load_study


@pytest.fixture
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, resources={TRAIN: 2, EVAL: 1}, include_dashboard=False, configure_logging=False, log_to_driver=False)
    yield
    ray.shutdown()


class Holder:
    """An actor that does nothing but hold its slot."""


def test_used_and_wanted_slots_are_seen(cluster: None, tmp_path: Path) -> None:
    remote = ray.remote(num_cpus=0.01, resources={EVAL: 1})(Holder)
    holders = [remote.remote() for _ in range(3)]
    expected = {
        "nodes": 1, "nodes_draining": 0, "nodes_pending": 0,
        "train_slots": 2, "train_slots_used": 0, "train_slots_pending": 0,
        "eval_slots": 1, "eval_slots_used": 1, "eval_slots_pending": 2,
    }  # fmt: skip
    until = time.monotonic() + 60
    while (seen := look()) != expected:
        assert time.monotonic() < until, seen
        time.sleep(0.1)
    assert len(holders) == 3

    runs = planned_runs(load_study("demo"))
    view = ClusterView(tmp_path, runs)
    view.refresh()
    written = json.loads((tmp_path / FILE).read_text())
    assert expected.items() <= written.items()
    assert [run["run_id"] for run in written["runs"]] == [run.run_id for run in runs]
    (tmp_path / FILE).unlink()
    view.refresh()
    assert not (tmp_path / FILE).exists()  # not due yet
