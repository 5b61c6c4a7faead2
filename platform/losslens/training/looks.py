"""What the regular look at a run's numbers finds: updates that were skipped, gradient spikes, a loss that ran away, a slow rank.

Functions from numbers that have left the device to findings; `loop.Trainer.check` fetches the numbers, `worker.Writer` tells.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from losslens.errors import TrainingDiverged

SPIKE = 10.0  # a gradient norm above this multiple of the running median is told
NORMS = 200  # sound updates that the running median goes over
FEWEST_NORMS = 20  # before that there is no median to speak of
SLOW = 2.0  # a rank that takes more than this multiple of the median's time is named

DIVERGED = "checkpoints before it are kept: lower training.optimizer.lr, lengthen the warm-up, or change the seed"


@dataclass(frozen=True, slots=True)
class Spike:
    """A gradient norm far above the running median of those before it; `step` counts from 1."""

    step: int
    norm: float
    median: float


@dataclass(frozen=True, slots=True)
class SlowRank:
    """A rank whose own part of a step takes long: median seconds of it and of the median rank."""

    rank: int
    host: str
    seconds: float
    median: float


@dataclass(frozen=True, slots=True)
class Look:
    """What is new since the look before: steps (from 1) of skipped updates, spikes, and who is slow now."""

    skipped: tuple[int, ...] = ()
    spikes: tuple[Spike, ...] = ()
    slow: tuple[SlowRank, ...] = ()


def sound_updates(losses: Tensor, norms: Tensor) -> Tensor:
    """Which updates were carried out, [steps] bool: those whose loss and gradient norm are finite."""
    return torch.isfinite(losses) & torch.isfinite(norms)


def refuse_divergence(losses: Tensor, norms: Tensor, *, most_skipped: int, rise: float, window: int) -> None:
    """Raise when more than `most_skipped` updates were skipped in all, or the mean loss of the newest whole window of
    `window` updates is `rise` nats above the best.

    Raises:
        TrainingDiverged: naming the first step and the newest.
    """
    sound = sound_updates(losses, norms)
    skipped = (torch.nonzero(~sound).flatten() + 1).tolist()
    if len(skipped) > most_skipped:
        what = "the loss is" if not torch.isfinite(losses[skipped[0] - 1]) else "the gradient norm is"
        value = (losses if what == "the loss is" else norms)[skipped[0] - 1].item()
        more = f", and {len(skipped)} updates were skipped by step {skipped[-1]}" if len(skipped) > 1 else ""
        raise TrainingDiverged(f"{what} {value} at step {skipped[0]}{more}", DIVERGED)
    if len(losses) < 2 * window:
        return
    whole = len(losses) // window * window
    windows = torch.where(sound, losses, torch.nan)[:whole].view(-1, window).nanmean(1)
    if windows[-1] > windows[~windows.isnan()].min() + rise:
        sentence = f"the loss rose from {windows[~windows.isnan()].min():.2f} to {windows[-1]:.2f} nats by step {len(losses)}"
        raise TrainingDiverged(sentence, DIVERGED)


def new_skips(losses: Tensor, norms: Tensor, since: int) -> tuple[int, ...]:
    """Steps (from 1) after `since` whose update was skipped."""
    return tuple((torch.nonzero(~sound_updates(losses, norms)[since:]).flatten() + since + 1).tolist())


def new_spikes(norms: Tensor, since: int) -> tuple[Spike, ...]:
    """Spikes after step `since`, each against the median of the `NORMS` finite norms before it."""
    found = []
    for index in range(since, len(norms)):
        before = norms[max(0, index - NORMS) : index]
        before = before[torch.isfinite(before)]
        if len(before) < FEWEST_NORMS or not torch.isfinite(norms[index]):
            continue
        median = before.median().item()
        if norms[index] > SPIKE * median:
            found.append(Spike(index + 1, norms[index].item(), median))
    return tuple(found)


def slow_ranks(seconds: Sequence[float], hosts: Mapping[int, str]) -> tuple[SlowRank, ...]:
    """Ranks that take more than `SLOW` times the median rank's time; of two ranks, the faster one is the median."""
    median = statistics.median_low(seconds)
    return tuple(SlowRank(rank, hosts.get(rank, ""), each, median) for rank, each in enumerate(seconds) if each > SLOW * median)
