"""What training goes on from, as named tensors: taken from a trainer, put back into one, and copied to the host while it trains on.

A save needs the state of one moment, and the next update changes it in place. So it is copied into buffers on the host that
every save uses again. On a CUDA device they are pinned and filled by a stream of their own: the next step's passes, which only
read the weights, run meanwhile, and the update waits for the copies on the device, not on the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from losslens.models import LanguageModel
from losslens.training.loop import Trainer


def live_state(trainer: Trainer) -> dict[str, Tensor]:
    """Everything that training goes on from, where it lies: weights, average, optimizer, losses so far."""
    state: dict[str, Tensor] = {f"model.{name}": p.detach() for name, p in trainer.weights.named_parameters()}
    state |= {f"average.{i}": tensor for i, tensor in enumerate(trainer.average)}
    state |= {f"optimizer.{name}": tensor for name, tensor in trainer.optimizers.state().items()}
    return state | {"losses": trainer.losses, "grad_norms": trainer.grad_norms}


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """A copy of `live_state` in new memory on the host."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in live_state(trainer).items()}


@torch.no_grad()
def load_state(trainer: Trainer, step: int, state: dict[str, Tensor]) -> None:
    """The inverse of `state_of`."""
    for name, parameter in trainer.weights.named_parameters():
        parameter.copy_(state[f"model.{name}"])
    for i, tensor in enumerate(trainer.average):
        tensor.copy_(state[f"average.{i}"])
    trainer.optimizers.load({name.removeprefix("optimizer."): t for name, t in state.items() if name.startswith("optimizer.")})
    trainer.losses.copy_(state["losses"])
    trainer.grad_norms.copy_(state["grad_norms"])
    trainer.step = trainer.looked = step


def scored(model: nn.Module, state: Mapping[str, Tensor]) -> list[Tensor]:
    """The weights that are saved and scored, in the order of the model's parameters: their average where there is one."""
    names = [name for name, _ in model.named_parameters()]
    averaged = "average.0" in state
    return [state[f"average.{i}" if averaged else f"model.{name}"] for i, name in enumerate(names)]


def hang(model: LanguageModel, weights: Sequence[Tensor]) -> None:
    """Have the model hold these very tensors as its weights."""
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        parameter.data = weight


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A trainer after update `step`, on the host once `wait` has returned, until the next is taken. `nats` are the summed losses
    of held-out rows by source, where they were measured on the device."""

    step: int
    state: dict[str, Tensor]
    nats: dict[str, Tensor]
    copied: torch.cuda.Event | None = None
    sources: tuple[Tensor, ...] = ()  # kept until they are copied: the device's allocator knows of its own stream only

    def wait(self) -> None:
        """Until the copies are complete."""
        if self.copied is not None:
            self.copied.synchronize()


class Buffers:
    """The host's memory for one snapshot."""

    def __init__(self, device: torch.device) -> None:
        self._held: dict[str, Tensor] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def take(self, trainer: Trainer, nats: Mapping[str, Tensor]) -> Snapshot:
        """The trainer as it is now. The snapshot before must have been dealt with."""
        state = live_state(trainer)
        if self._stream is None:
            return Snapshot(trainer.step, self._copied("state", state), dict(nats))
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            copies, measured = self._copied("state", state), self._copied("nats", nats)
            trainer.being_read = self._stream.record_event()
        return Snapshot(trainer.step, copies, measured, trainer.being_read, tuple(nats.values()))

    def _copied(self, kind: str, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._buffer(f"{kind}.{name}", tensor).copy_(tensor, non_blocking=True) for name, tensor in live.items()}

    def _buffer(self, name: str, like: Tensor) -> Tensor:
        if name not in self._held:
            self._held[name] = torch.empty(like.shape, dtype=like.dtype, pin_memory=self._stream is not None)
        return self._held[name]
