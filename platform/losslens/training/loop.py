"""The hot loop: torch only, one screen, every device synchronisation with its reason.

It knows nothing of Ray, files or tables. Batches come in as arrays; what happens between updates (checkpoints, progress,
leaving before a resize) happens in a `Watch`.

Legend: b sequences of this rank's share, T sequence length, V vocabulary.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from losslens.families import Branch
from losslens.models import LanguageModel
from losslens.specs import TrainingSpec
from losslens.training import looks
from losslens.training.lanes import Lanes
from losslens.training.optimizers import Optimizers
from losslens.training.pace import Pace
from losslens.training.passes import Passes
from losslens.training.reduction import Agreement, FixedPoint, Plain, Reduction
from losslens.training.schedules import averaging_decay, multiplier

CHECK_EVERY = 25  # steps between looks at the loss: each look is a device synchronisation


@dataclass
class Trainer:
    """One run's live state on one rank. `step` updates are done; `losses[k]` is the mean loss of update k.

    With a `micro_batch` (in sequences) gradients are summed exactly and do not depend on the number of ranks, provided that
    every rank's share begins at a multiple of it; without one, a rank's whole share goes through at once. On a CPU `lanes` passes
    run side by side, a thread each.
    """

    model: LanguageModel
    optimizers: Optimizers
    spec: TrainingSpec
    steps: int
    global_batch: int
    seq_len: int
    device: torch.device
    micro_batch: int | None = None
    branch: Branch | None = None  # where the run left another, whose schedule it follows up to there
    lanes: int = 1
    step: int = 0
    seen_loss: float | None = None  # the newest sound one that has left the device
    look: looks.Look | None = None  # what the newest `check` found
    looked: int = 0  # the step of that check
    average: list[Tensor] = field(default_factory=list)
    losses: Tensor = field(init=False)
    grad_norms: Tensor = field(init=False)
    features: list[Callable[..., Tensor]] = field(init=False)  # of each lane
    reduction: Reduction = field(init=False)
    passes: Passes = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.losses = torch.zeros(self.steps, device=self.device)
        self.grad_norms = torch.zeros(self.steps, device=self.device)
        if self.spec.schedule.average and not self.average:
            self.average = [p.detach().clone() for p in self.parameters]
        self.reduction = FixedPoint(self.parameters) if self.micro_batch else Plain(self.parameters)
        self.passes, self.pace = Passes(self.micro_batch), Pace(self.device)
        self._lanes = Lanes(self.model, self.lanes)
        plain = [model.features for model in self._lanes.models]
        self.features = [torch.compile(each, dynamic=False) for each in plain] if self.spec.compile else plain

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """bfloat16 matrix products where the study asks for them; weights and sums stay float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.spec.precision == "bf16")

    def nll_sum(self, tokens: Tensor, lane: int = 0) -> Tensor:
        """Summed next-token loss in nats of rows [b, T + 1]."""
        with self.autocast():
            logits = self._lanes.models[lane].head(self.features[lane](tokens[:, :-1]))
        return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")

    def update(self, rows: Tensor, flag: bool = False) -> Tensor:
        """One optimizer update from this rank's share [b, T + 1] of the global batch; how many ranks passed a true `flag`.

        The loss is summed and divided by the global token count, so shares of unequal size weigh by tokens.
        """
        if self.lanes > 1:
            self._lanes.go(self._lanes.pieces(rows, self.micro_batch), self._pass, self.reduction.add)
        else:
            self.passes.go(rows, lambda piece: self.reduction.add(self._pass(0, piece)), self.reduction.forget)
        self.pace.leave()
        total, flags = self.reduction.total(flag)
        self.pace.enter()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.spec.optimizer.clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.spec.optimizer.clip, norm)
        sound = torch.isfinite(total) & torch.isfinite(norm)  # stays on the device, where an update that is not changes nothing
        self.optimizers.step(multiplier(self.spec.schedule, self.step, self.steps, self.branch), sound)
        for parameter in self.parameters:
            parameter.grad = None
        if self.average:
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - averaging_decay(self.spec.schedule, self.step))
        self.losses[self.step] = total
        self.grad_norms[self.step] = norm
        self.step += 1
        return flags

    def _pass(self, lane: int, rows: Tensor) -> Tensor:
        """Forward and backward; the part of the global batch's mean loss."""
        loss = self.nll_sum(rows, lane) / (self.global_batch * self.seq_len)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the model holds the averaged weights, which are what is saved and scored."""
        if not self.average:
            yield
            return
        raw = [p.detach().clone() for p in self.parameters]
        torch._foreach_copy_([p.data for p in self.parameters], self.average)
        try:
            yield
        finally:
            torch._foreach_copy_([p.data for p in self.parameters], raw)

    def check(self) -> None:
        """Look at the numbers since the look before: `look` says what is new in them. Called at the same steps on every rank.

        Raises:
            TrainingDiverged: too many updates were skipped, or the loss ran away from the best window so far.
        """
        losses, norms = self.losses[: self.step].cpu(), self.grad_norms[: self.step].cpu()  # synchronises: the verdict needs them
        since, self.looked = self.looked, self.step
        found = losses[looks.sound_updates(losses, norms)]
        self.seen_loss = float(found[-1]) if len(found) else None
        seconds, hosts = self.pace.gather()
        slow = looks.slow_ranks(seconds, hosts) if seconds else ()
        self.look = looks.Look(looks.new_skips(losses, norms, since), looks.new_spikes(norms, since), slow)
        looks.refuse_divergence(losses, norms, most_skipped=self.spec.most_skipped, rise=self.spec.diverged_at, window=CHECK_EVERY)


class Watch:
    """What happens between updates; this one does nothing. `training/worker.py` has the one that writes."""

    save_at: frozenset[int] = frozenset()

    def save(self, tokens_per_second: float) -> None:
        """Called at each step of `save_at` with the mean rate since the last call, saving time left out."""

    def stepped(self) -> None:
        """Called after every update."""

    def wants_to_leave(self) -> bool:
        """Whether this rank was asked to save and leave."""
        return False

    def leave(self) -> None:
        """Called on every rank after the same update, once any rank wanted to leave; training goes on when it returns."""


def run(trainer: Trainer, batches: Iterator[np.ndarray], watch: Watch) -> None:
    """Train to the end. `batches` yields this rank's rows [b, T + 1].

    Raises:
        TrainingDiverged: see `Trainer.check`.
    """
    agreement = Agreement(trainer.device)
    started, since = time.perf_counter(), trainer.step
    while trainer.step < trainer.steps:
        rows = torch.from_numpy(next(batches)).to(trainer.device, non_blocking=True)
        flags = trainer.update(rows, watch.wants_to_leave())
        saving = trainer.step in watch.save_at
        if saving or trainer.step % CHECK_EVERY == 0 or trainer.step == trainer.steps:
            trainer.check()
        if saving:
            seconds = time.perf_counter() - started
            watch.save((trainer.step - since) * trainer.global_batch * trainer.seq_len / max(seconds, 1e-9))
            started, since = time.perf_counter(), trainer.step
        watch.stepped()
        if agreement.reached(flags) and trainer.step < trainer.steps:
            watch.leave()
