"""A real Ray cluster of several nodes on this machine, whose nodes come, go, freeze and drain as spot nodes do."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from losslens.cluster.drain import Target, drain
from losslens.cluster.notices import Notice
from tests.ports import free_port

# Of the head: a dead node is noticed after about 2 s, a frozen one after at most 6 s.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1500",
    "RAY_health_check_failure_threshold": "3",
    "RAY_worker_maximum_startup_concurrency": "16",
}


@dataclass(eq=False)
class Machine:
    """One node: a raylet and everything it started."""

    node: Any

    @property
    def node_id(self) -> str:
        """Ray's name for it."""
        return str(self.node.node_id)

    @property
    def raylet(self) -> psutil.Process:
        """The process that makes it a node."""
        return psutil.Process(self.node.all_processes["raylet"][0].process.pid)

    def processes(self) -> list[psutil.Process]:
        """Everything on it, the raylet first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self.raylet, *self.raylet.children(recursive=True)]
        return []

    def trainers(self) -> list[psutil.Process]:
        """Its training workers."""
        return [p for p in self.processes() if "RayTrainWorker" in _title(p)]

    def send(self, number: int, processes: list[psutil.Process]) -> None:
        """A signal to some of its processes."""
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


class Machines:
    """The cluster: a head that offers no train slot, and nodes with one each."""

    def __init__(self, eval_slots: int = 0) -> None:
        os.environ.update(HEALTH)
        resources = {"eval_slot": eval_slots} if eval_slots else {}
        head = {"num_cpus": 4, "resources": resources, "include_dashboard": False, "dashboard_agent_listen_port": free_port()}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = str(self._cluster.address)
        self.nodes: list[Machine] = []

    def join(self, slots: int = 1) -> Machine:
        """A new node with train slots."""
        node = self._cluster.add_node(num_cpus=2, resources={"train_slot": slots})
        self.nodes.append(Machine(node))
        return self.nodes[-1]

    def kill(self, machine: Machine) -> None:
        """The whole node is gone at once, as if its plug were pulled."""
        processes = machine.processes()
        machine.send(signal.SIGKILL, processes)
        self.forget(machine)

    def kill_raylet(self, machine: Machine) -> None:
        """Only the raylet dies; its workers notice and end."""
        machine.send(signal.SIGKILL, [machine.raylet])
        self.forget(machine)

    def freeze(self, machine: Machine) -> None:
        """Nothing on it moves, but its connections stay open; `thaw` ends it."""
        machine.send(signal.SIGSTOP, machine.processes())
        self.nodes.remove(machine)

    def bury(self, machine: Machine) -> None:
        """End a frozen or drained node."""
        machine.send(signal.SIGKILL, machine.processes())
        self._remove(machine)

    def drain(self, machine: Machine, seconds: float) -> None:
        """Tell Ray that the node will go away in so many seconds, as the watcher of a spot node does."""
        drain(Target(machine.node_id, self.address), Notice("spot notice", time.time() + seconds), seen=True)

    def forget(self, machine: Machine) -> None:
        """It is no longer one of ours."""
        if machine in self.nodes:
            self.nodes.remove(machine)
        self._remove(machine)

    def close(self) -> None:
        """End every node, the head last."""
        for machine in list(self.nodes):
            self.kill(machine)
        with contextlib.suppress(Exception):
            self._cluster.shutdown()  # type: ignore[no-untyped-call]

    def _remove(self, machine: Machine) -> None:
        with contextlib.suppress(Exception):  # most of its processes are dead already
            self._cluster.remove_node(machine.node, allow_graceful=False)


@contextlib.contextmanager
def machines(nodes: int, eval_slots: int = 0) -> Iterator[Machines]:
    """A cluster for the length of the block."""
    before = dict(os.environ)
    cluster = Machines(eval_slots)
    try:
        for _ in range(nodes):
            cluster.join()
        yield cluster
    finally:
        cluster.close()
        for name in HEALTH:
            os.environ.pop(name, None)
        os.environ.update({name: before[name] for name in HEALTH if name in before})


def wait_for(condition: Any, seconds: float, what: str) -> Any:
    """What `condition()` returns once it is true."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > until:
            raise TimeoutError(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.05)
    return found


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
