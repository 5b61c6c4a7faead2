"""Ray's real autoscaler with fake nodes: they come up for a study and go away when it ends. Token authentication is on.

Ray's own `AutoscalingCluster` would end every other cluster on the machine (`ray stop --force`) and needs a file that is
not in Ray's wheel, so the head is started here with the same provider and settings.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

from jobs.status import status
from losslens.errors import UserError
from losslens.results import Results
from tests.e2e.test_job import RAY
from tests.ports import free_port

pytestmark = pytest.mark.timeout(600)

PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
IDLE_MINUTES = 0.2  # longer than a group of workers takes to restart
PATIENCE_S = 90
# What an external provider has no defaults for.
NOTHING: tuple[str, ...] = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
)


def node_kind(most: int, **resources: int) -> dict[str, Any]:
    return {"node_config": {}, "resources": resources, "min_workers": 0, "max_workers": most}


def configuration(port: int) -> dict[str, Any]:
    """What `ray up` would hand to the head's autoscaler: the shape of cluster.yaml, with nodes that are processes here."""
    return {name: [] for name in NOTHING} | {
        "cluster_name": "fake",
        "max_workers": 3,
        "idle_timeout_minutes": IDLE_MINUTES,
        "upscaling_speed": 4.0,
        "provider": {
            "type": "external",  # `fake_multinode` reads its defaults from a file that the wheel lacks
            "module": PROVIDER,
            "gcs_address": f"127.0.0.1:{port}",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,  # nothing to install on a process
            "disable_launch_config_check": True,
        },
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": {
            FAKE_HEAD_NODE_TYPE: node_kind(0, CPU=2, driver=1),
            "train": node_kind(2, CPU=1, train_slot=1),
            "score": node_kind(1, CPU=1, eval_slot=1),
        },
    }


@pytest.fixture
def environment(environment: dict[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """Of the command line here: it is a client of an autoscaling cluster that has no slots yet."""
    token, config, port = tmp_path / "token", tmp_path / "cluster.json", free_port()
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    config.write_text(json.dumps(configuration(port)), encoding="utf-8")
    sockets = Path("/tmp") / f"losslens-{os.getpid()}-a"  # socket paths have at most 107 characters
    client = environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "HOME": str(tmp_path)}
    autoscaler = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    start = [RAY, "start", "--head", f"--port={port}", f"--dashboard-port={free_port()}", f"--ray-client-server-port={free_port()}"]
    start += [f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={sockets}", f"--autoscaling-config={config}"]
    start += ["--num-cpus=2", '--resources={"driver": 1}', "--disable-usage-stats", "--block"]
    with (tmp_path / "head.log").open("w") as log, subprocess.Popen(start, env=client | autoscaler, stdout=log, stderr=log) as head:
        try:
            yield client | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
        finally:
            for process in [*psutil.Process(head.pid).children(recursive=True), head]:  # the fake nodes are among them
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            shutil.rmtree(sockets, ignore_errors=True)


# Two sizes that want more than the cluster can have. The first lasts longer than the test, on any machine.
SIZES = "{name: s, d_model: 32, d_ffn: 96, heads: 2, kv_heads: 1, layers: 2, tokens: 40M}, "
SIZES += "{name: m, d_model: 32, d_ffn: 96, heads: 2, kv_heads: 1, layers: 2, tokens: 100k}"
SETTINGS = (
    f"family.sizes=[{SIZES}]",
    "training.checkpoints.count=3",
    "cluster.workers=[1,2]",
    "cluster.train_slots=4",
    "cluster.eval_slots=1",
)

WATCHER = """
import json, os, time, ray
while True:
    try:
        ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
        break
    except ConnectionError:
        time.sleep(0.5)
while True:
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    print(json.dumps([sum(int(r.get(slot, 0)) for r in alive) for slot in ("train_slot", "eval_slot")]), flush=True)
    time.sleep(0.25)
"""


class Watch:
    """(train slots, eval slots) of the cluster as time goes on, seen by a driver of its own."""

    def __init__(self, log: Path, environment: dict[str, str]) -> None:
        self._log = log
        with log.open("w") as out:
            self.process = subprocess.Popen([sys.executable, "-c", WATCHER], env=environment, stdout=out, stderr=subprocess.DEVNULL)

    def seen(self) -> list[tuple[int, int]]:
        lines = self._log.read_text(encoding="utf-8").splitlines()
        return [(pair[0], pair[1]) for line in lines if line.endswith("]") and (pair := json.loads(line))]

    def wait_for(self, now: tuple[int, int]) -> None:
        until = time.monotonic() + PATIENCE_S
        while self.seen()[-1:] != [now]:
            assert time.monotonic() < until, self.seen()[-1:]
            time.sleep(0.2)


@pytest.fixture
def watch(environment: dict[str, str], tmp_path: Path) -> Iterator[Watch]:
    watch = Watch(tmp_path / "seen", environment)
    yield watch
    watch.process.kill()
    watch.process.wait()


def rows(results: Path) -> list[dict[str, Any]]:
    """What `losslens status` shows."""
    try:
        return status(results)
    except UserError:  # nothing there yet
        return []


def test_nodes_come_up_for_a_study_and_go_away_with_it(watch: Watch, study_file: Path, tmp_path: Path, start: Callable[..., Any]) -> None:
    results = tmp_path / "results"
    watch.wait_for((0, 0))
    study = start("run", study_file, "--results", results, *(word for setting in SETTINGS for word in ("--set", setting)))
    study.wait_for(lambda: any(row["waits_for"] for row in rows(results)), 240)  # for its first node
    study.wait_for(lambda: any(row["state"] == "scored" for row in rows(results)), 240)  # the small one
    study.wait_for(lambda: any(row["world_size"] == row["train_slots"] == 2 for row in rows(results)), 240)  # the other has both
    code, _, stderr = study.end(signal.SIGINT)
    assert code == 130, stderr
    seen = watch.seen()
    assert {train for train, _ in seen} >= {0, 1}
    assert max(train for train, _ in seen) <= 2
    assert {evaluate for _, evaluate in seen} == {0, 1}
    (log,) = Results(results).query("SELECT count(*) - count(DISTINCT (run_id, step)) AS twice FROM train_log").to_pylist()
    assert log == {"twice": 0}
    watch.wait_for((0, 0))  # though their driver ended without a word
