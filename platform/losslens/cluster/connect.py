"""A connection to Ray for the length of a job: an existing cluster when RAY_ADDRESS names one, else a local one."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray._private.state import state

from losslens.cluster.slots import EVAL, TRAIN, Slots, slots_of
from losslens.errors import EnvironmentFailure
from losslens.specs import ClusterSpec

logger = logging.getLogger(__name__)

# Read by Ray Train in the driver and passed on to its controller and workers (measured: facts about Ray 2.60).
TRAIN_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",  # of a worker that is there and does not answer
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # our scaling policy handles drains
}
# Read by a local raylet. Workers here hold slots instead of CPUs, so more processes than CPUs are expected, not a fault to warn of.
LOCAL_SETTINGS = {"RAY_worker_maximum_startup_concurrency": "16"}
OBJECT_STORE_BYTES = 1 << 30  # of a local cluster: blocks of text and tokens pass through it, models do not


@contextlib.contextmanager
def connected(spec: ClusterSpec) -> Iterator[Slots]:
    """Connect, yield what the cluster offers, disconnect; a local cluster is stopped with us.

    Raises:
        EnvironmentFailure: Ray cannot be started or reached, or is too small.
    """
    for name, value in TRAIN_SETTINGS.items():
        os.environ.setdefault(name, value)
    told_to_end = signal.getsignal(signal.SIGTERM)
    try:
        _join(_options(spec))
        if callable(told_to_end) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, told_to_end)  # Ray's own ends the process before anything could be saved
    except Exception as error:  # where a node is slow to start, nothing more special
        remedy = "check RAY_ADDRESS, or unset it to start Ray on this machine; where that is busy, run the command again"
        raise EnvironmentFailure(f"no connection to Ray: {error}", remedy) from error
    with contextlib.ExitStack() as stack:
        stack.callback(ray.shutdown)
        try:
            present: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            most: dict[str, int] | None = state.get_max_resources_from_cluster_config()
            yield slots_of(present, most, wanted_train=spec.train_slots, wanted_eval=spec.eval_slots, min_workers=spec.workers[0])
        except KeyboardInterrupt:
            # Threads of runs still wait for Ray: shut down under them, it would end the process with its own exit code. The
            # process ends now in any case, and a local cluster with it.
            stack.pop_all()
            raise


def in_ray_job() -> bool:
    """Whether this process is the driver of `ray job submit`."""
    return bool(os.environ.get("RAY_JOB_ID") or os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"))


def _join(options: Mapping[str, Any]) -> None:
    """Start or reach Ray. On a busy machine a local node may not be up within the 30 s that Ray gives it: it gets a second chance."""
    try:
        ray.init(**options)
    except Exception:  # Ray says it with nothing more special
        if options["address"] != "local":
            raise
        ray.shutdown()
        ray.init(**options)


def _options(spec: ClusterSpec) -> dict[str, Any]:
    shared: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        return {**shared, "address": os.environ["RAY_ADDRESS"], "runtime_env": _runtime_env()}
    for name, value in LOCAL_SETTINGS.items():
        os.environ.setdefault(name, value)
    return {
        **shared,
        "address": "local",
        "include_dashboard": False,
        # Logical CPUs: workers and scorers hold slots, so these are for Ray Data's tasks, which mostly wait on disk.
        "num_cpus": max(4, os.cpu_count() or 1),
        "object_store_memory": OBJECT_STORE_BYTES,
        "resources": {TRAIN: spec.train_slots, EVAL: spec.eval_slots},
    }


def _runtime_env() -> dict[str, Any]:
    """Workers of a submitted job find the packages in its working directory; setting the variable twice fails to merge."""
    if not in_ray_job() or "PYTHONPATH" in os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "") or not Path("platform/losslens").is_dir():
        return {}
    return {"env_vars": {"PYTHONPATH": "platform:."}}
