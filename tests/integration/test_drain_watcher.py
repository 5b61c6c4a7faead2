"""The drain watcher as a process of its own, beside real raylets: a notice becomes a drain of the right node."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray._private.authentication_test_utils import authentication_env_guard, reset_auth_token_state, set_auth_mode, set_auth_token_path
from ray._private.state import state

from tests.conftest import REPO
from tests.metadata_service import AWS_PATH, metadata_service
from tests.nodes import Machine, Machines, machines, wait_for


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Two nodes that an actor each keeps busy (a drained node that is idle ends at once), with token authentication."""
    with authentication_env_guard():
        set_auth_mode("token")
        set_auth_token_path(secrets.token_hex(32), tmp_path_factory.mktemp("auth") / "token")
        reset_auth_token_state()
        with machines(2) as running:
            ray.init(address=running.address, log_to_driver=False, configure_logging=False)
            busy = [Busy.remote() for _ in running.nodes]  # type: ignore[attr-defined]
            assert set(ray.get([actor.node.remote() for actor in busy])) == {machine.node_id for machine in running.nodes}
            yield running
            ray.shutdown()
    reset_auth_token_state()


@ray.remote(num_cpus=0, resources={"train_slot": 1})
class Busy:
    def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())


def command(cluster: Machines, *options: str | Path) -> list[str]:
    return [sys.executable, "-m", "jobs.cli", "drain-watcher", "--address", cluster.address, "--every", "0.1", *map(str, options)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{REPO / 'platform'}{os.pathsep}{REPO}"}


@contextlib.contextmanager
def watching(cluster: Machines, machine: Machine, *options: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A watcher that has begun to watch."""
    arguments = command(cluster, "--node-id", machine.node_id, *options)
    with subprocess.Popen(arguments, cwd=REPO, env=environment(), stderr=subprocess.PIPE, text=True) as watcher:
        assert watcher.stderr is not None
        try:
            assert machine.node_id in watcher.stderr.readline()
            yield watcher
        finally:
            watcher.kill()


def seconds_left(machine: Machine) -> float | None:
    """Until the deadline of the node's drain; None while it does not drain."""
    deadline_ms = state.get_draining_nodes().get(machine.node_id)
    return None if deadline_ms is None else deadline_ms / 1000 - time.time()


def test_a_file_drains_its_node_and_no_other(cluster: Machines, tmp_path: Path) -> None:
    machine, other = cluster.nodes
    file = tmp_path / "notice"
    with watching(cluster, machine, "--source", f"file:{file}") as watcher:
        assert seconds_left(machine) is None
        whole = tmp_path / "written"
        whole.write_text("300")
        whole.rename(file)
        assert watcher.wait(60) == 0
    left = seconds_left(machine)
    assert left is not None
    assert 200 < left <= 300
    assert seconds_left(other) is None


def test_aws_drains_its_node(cluster: Machines) -> None:
    machine = cluster.nodes[1]
    with metadata_service() as service, watching(cluster, machine, "--source", "aws", "--endpoint", service.endpoint) as watcher:
        wait_for(lambda: service.asked, 60, "the first question")
        assert watcher.poll() is None
        assert seconds_left(machine) is None
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 600))
        service.answers[AWS_PATH] = (200, f'{{"action": "terminate", "time": "{at}"}}')
        assert watcher.wait(60) == 0
        assert watcher.stderr is not None
        assert "AWS is about to terminate" in watcher.stderr.read()
    left = seconds_left(machine)
    assert left is not None
    assert 500 < left <= 600


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "losslens: 3 nodes of the cluster run on this machine\nremedy: name the one that is meant with --node-id HEX"),
        (["--node-id", "ab" * 28], f"losslens: there is no live node {'ab' * 28}\nremedy:"),
    ],
)
def test_an_unclear_node_is_a_mistake(options: list[str], sentence: str, cluster: Machines, tmp_path: Path) -> None:
    arguments = command(cluster, "--source", f"file:{tmp_path / 'notice'}", *options)
    ended = subprocess.run(arguments, cwd=REPO, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(sentence)
