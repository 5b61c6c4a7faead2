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
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from losslens.families import Branch
from losslens.models import LanguageModel
from losslens.specs import TrainingSpec
from losslens.training import looks
from losslens.training.ahead import ahead
from losslens.training.compiling import compiled
from losslens.training.lanes import Lanes
from losslens.training.optimizers import Optimizers
from losslens.training.pace import Pace
from losslens.training.passes import Passes
from losslens.training.reduction import Agreement, FixedPoint, Plain, Reduction
from losslens.training.schedules import averaging_decay, multiplier
from losslens.training.watch import Watch

if TYPE_CHECKING:
    from losslens.training.sharding import Shards

STATE = 2**16  # a flag's worth that asks for a state; below it ranks that want to leave are counted
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
    compile: bool = False
    shards: Shards | None = None  # where the model's matrices are spread over ranks
    step: int = 0
    seen_loss: float | None = None  # the newest sound one that has left the device
    look: looks.Look | None = None  # what the newest `check` found
    looked: int = 0  # the step of that check
    being_read: torch.cuda.Event | None = None  # once it has passed, a save has copied weights and moments
    average: list[Tensor] = field(default_factory=list)
    losses: Tensor = field(init=False)
    grad_norms: Tensor = field(init=False)
    features: list[Callable[..., Tensor]] = field(init=False)  # of each lane
    reduction: Reduction = field(init=False)
    passes: Passes = field(init=False)

    def __post_init__(self) -> None:
        self.weights = self.shards.owned if self.shards else self.model
        self.parameters = [p for p in self.weights.parameters() if p.requires_grad]
        self.losses = torch.zeros(self.steps, device=self.device)
        self.grad_norms = torch.zeros(self.steps, device=self.device)
        if self.spec.schedule.average and not self.average:
            self.average = [p.detach().clone() for p in self.parameters]
        whole = FixedPoint if self.micro_batch else Plain
        self.reduction = self.shards.sums if self.shards else whole(self.parameters)
        self.passes, self.pace = Passes(self.micro_batch), Pace(self.device)
        self._lanes = Lanes(self.model, self.lanes)
        plain = [model.features for model in self._lanes.models]
        self.features = [compiled(each, self.device) for each in plain] if self.compile and not self.shards else plain

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """bfloat16 matrix products where the study asks for them; weights and sums stay float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.spec.precision == "bf16")

    def nll_sum(self, tokens: Tensor, lane: int = 0) -> Tensor:
        """Summed next-token loss in nats of rows [b, T + 1]."""
        model = self._lanes.models[lane]
        with self.autocast():
            nll = model.nll_sum(self.features[lane](tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        penalty = model.penalty()
        return nll if penalty is None else nll + tokens[:, 1:].numel() * (penalty - penalty.detach())

    def with_weights(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """What `function` returns, called where the model's weights are whole; on all ranks at once."""
        return self.shards.entry(function, *args) if self.shards else function(*args)

    def update(self, rows: Tensor, flag: int = 0) -> Tensor:
        """One optimizer update from this rank's share [b, T + 1] of the global batch; how many ranks passed a true `flag`.

        The loss is summed and divided by the global token count, so shares of unequal size weigh by tokens.
        """
        if self.shards:
            self.shards.go(rows, self.passes, self._pass)
        elif self.lanes > 1:
            self._lanes.go(self._lanes.pieces(rows, self.micro_batch), self._pass, self.reduction.add)
        else:
            self.passes.go(rows, lambda piece: self.reduction.add(self._pass(0, piece)), self.reduction.forget)
        self.pace.leave()
        total, flags = self.reduction.total(flag)
        self.pace.enter()
        norm = self.reduction.norm()
        if self.spec.optimizer.clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.spec.optimizer.clip, norm)
        sound = torch.isfinite(total) & torch.isfinite(norm)  # stays on the device, where an update that is not changes nothing
        if self.being_read is not None:
            torch.cuda.current_stream().wait_event(self.being_read)  # on the device, which has done the passes meanwhile
            self.being_read = None
        self.optimizers.step(multiplier(self.spec.schedule, self.step, self.steps, self.branch), sound)
        for parameter in self.parameters:
            parameter.grad = None
        if self.average:
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - averaging_decay(self.spec.schedule, self.step))
        self.losses[self.step] = total
        self.grad_norms[self.step] = norm
        self.step += 1
        return flags

    def _pass(self, lane: int, rows: Tensor, weight: float = 1.0) -> Tensor:
        """Forward and backward; the part of the global batch's mean loss, times `weight`."""
        loss = self.with_weights(self.nll_sum, rows, lane) * weight / (self.global_batch * self.seq_len)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

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


def run(trainer: Trainer, batches: Iterator[np.ndarray], watch: Watch) -> None:
    """Train to the end. `batches` yields this rank's rows [b, T + 1].

    Raises:
        TrainingDiverged: see `Trainer.check`.
    """
    agreement = Agreement(trainer.device)
    started, since = time.perf_counter(), trainer.step
    with contextlib.closing(ahead(batches, trainer.device)) as coming:
        while trainer.step < trainer.steps:
            flags = trainer.update(next(coming), watch.wants_to_leave() + STATE * watch.wants_state())
            saving = trainer.step in watch.save_at
            if saving or trainer.step % CHECK_EVERY == 0 or trainer.step == trainer.steps:
                trainer.check()
            if saving:
                seconds = time.perf_counter() - started
                watch.save((trainer.step - since) * trainer.global_batch * trainer.seq_len / max(seconds, 1e-9))
                started, since = time.perf_counter(), trainer.step
            watch.stepped()
            asked = agreement.reached(flags) if trainer.step < trainer.steps else 0
            if asked % STATE:
                watch.leave()
            elif asked:
                watch.save_state()
