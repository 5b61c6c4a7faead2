"""torch.distributed for a group of workers, as ray.train.torch's TorchConfig sets it up, but without torch anywhere else.

Importing torch takes the driver and then the controller more than a second each on the way to the first step, and neither
computes anything. What runs in the workers is Ray's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.util import TrainingFramework

from losslens.training import leaving

SHUTDOWN_S = 30  # for a process group to end; the processes end after it in any case


@dataclass
class TorchGroup(BackendConfig):
    """`backend` is gloo or nccl; an exchange that takes longer than `timeout_s` fails."""

    backend: str
    timeout_s: int

    @property
    def backend_cls(self) -> type[Backend]:
        """See `BackendConfig`."""
        return _Group

    @property
    def train_func_context(self) -> Any:
        """See `BackendConfig`: what the training function runs in."""
        return _on_device

    @property
    def framework(self) -> TrainingFramework:
        """See `BackendConfig`."""
        return TrainingFramework.TORCH

    def to_dict(self) -> dict[str, Any]:
        """See `BackendConfig`."""
        return asdict(self)


class _Group(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        address, port = worker_group.execute_single(0, get_address_and_port)
        size = len(worker_group)
        ray.get([
            worker_group.execute_single_async(rank, _join, rank, size, address, port, backend_config.backend, backend_config.timeout_s)
            for rank in range(size)
        ])  # fmt: skip

    def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(leaving.listen)  # in their main threads, as signals need it; before a step, so none is done twice

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        try:
            ray.get(worker_group.execute_async(_part, len(worker_group) > 1), timeout=SHUTDOWN_S)
        except GetTimeoutError:
            return


@contextmanager
def _on_device() -> Iterator[None]:
    from ray.train.torch.config import TorchConfigContextManager

    with TorchConfigContextManager():
        yield


def _join(rank: int, size: int, address: str, port: int, backend: str, timeout_s: int) -> None:
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    _set_torch_distributed_env_vars()  # type: ignore[no-untyped-call]
    _setup_torch_process_group(backend, rank, size, "env://", timeout_s)


def _part(destroy: bool) -> None:
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group=destroy)  # type: ignore[no-untyped-call]
