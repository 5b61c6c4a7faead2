"""How long this rank's own part of a step takes: from the end of one exchange with the others to the start of the next.

The whole step takes every rank equally long, since all wait for the slowest in the exchange; what lies between two exchanges
(input, passes, optimizer) tells who that is. On a CUDA device the moments are events in its stream, read when the loop looks
at its numbers, which synchronises anyway.
"""

from __future__ import annotations

import socket
import statistics
import time

import torch
import torch.distributed as dist

Moment = float | torch.cuda.Event


class Pace:
    """Call `leave` before the exchange of a step and `enter` after it; `gather` at each look, on every rank."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._entered: Moment | None = None
        self._parts: list[tuple[Moment, Moment]] = []
        self._hosts: dict[int, str] = {}

    def leave(self) -> None:
        """The rank's own part of this step is done. The first step is not counted: it warms up."""
        if self._entered is not None:
            self._parts.append((self._entered, self._now()))

    def enter(self) -> None:
        """The next step's part begins."""
        self._entered = self._now()

    def gather(self) -> tuple[list[float], dict[int, str]]:
        """Median seconds of each rank since the last call, and each rank's host; empty with one rank, or nothing measured."""
        parts, self._parts = self._parts, []
        if not (dist.is_initialized() and dist.get_world_size() > 1):
            return [], {}
        if not self._hosts:
            names: list[str] = [""] * dist.get_world_size()
            dist.all_gather_object(names, socket.gethostname())
            self._hosts = dict(enumerate(names))
        mine = statistics.median(_seconds(*part) for part in parts) if parts else 0.0
        gathered = torch.zeros(dist.get_world_size(), device=self._device)
        gathered[dist.get_rank()] = mine
        dist.all_reduce(gathered)
        return gathered.tolist(), self._hosts

    def _now(self) -> Moment:
        if self._device.type != "cuda":
            return time.perf_counter()
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _seconds(began: Moment, ended: Moment) -> float:
    if isinstance(began, float) and isinstance(ended, float):
        return ended - began
    assert isinstance(began, torch.cuda.Event)
    assert isinstance(ended, torch.cuda.Event)
    return float(began.elapsed_time(ended)) / 1000
