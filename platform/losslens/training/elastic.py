"""The one file that knows Ray Train: a planned run as an elastic group of workers.

Position and weights live in our own states, so a restarted group of any size finds its place by itself and nothing
depends on what Ray remembers. Ray Train places, starts, watches and ends the workers. When to resize and when to give up
is decided in `resizing.py`; the policies here ask it and carry it out. They stand on private parts of Ray 2.60 (no public
way to pass a scaling policy exists), each held by a test.
"""

from __future__ import annotations

import json
import logging
import re
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import RayActorError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.exceptions import RayTrainError, UserExceptionWithTraceback, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision, ScalingDecision, ScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from losslens.cluster.allot import Demand
from losslens.cluster.allotter import Grant, Place, allotter
from losslens.cluster.slots import Slots
from losslens.errors import EnvironmentFailure, LosslensError
from losslens.families import PlannedRun
from losslens.specs import StudySpec
from losslens.training import journal, leaving
from losslens.training.checkpoint import run_directory, saved_step
from losslens.training.outcome import Outcome
from losslens.training.rendezvous import TorchGroup
from losslens.training.resizing import GRACE_S, Act, Asked, Fault, Group, Move, Offer, PassTooLarge, next_move, try_again, within_reach

logger = logging.getLogger("ray.train.losslens")  # below Ray Train's own: it ends in the controller's log

COLLECTIVE_TIMEOUT_S = 120
GRANT_EVERY_S = 1.0  # between two questions to the allotter
ANSWER_S = 5.0  # for it to answer
WAIT_S = 0.25  # between two looks while there are too few workers: Ray's own control loop would spin
LEFT = "left"  # the metric by which a rank tells its controller that it has saved


def fit(spec: StudySpec, planned: PlannedRun, results: Path, corpus_dir: Path, slots: Slots) -> Outcome:
    """Train one run on the connected cluster until its budget; returns how it ended. Thread-safe: runs may share a driver.

    Lost nodes and processes are survived while anything gets saved in between; with fewer than the least number of workers
    the run waits, and says so in `workers.json`.

    Raises:
        EnvironmentFailure: a fault that would come again, or failures in a row without progress.
    """
    terms = Terms.of(spec, planned, results, slots)
    trainer = _Trainer(
        _worker,
        train_loop_config={"spec": spec, "planned": planned, "results": results, "corpus_dir": corpus_dir},
        backend_config=TorchGroup("nccl" if spec.cluster.gpus_per_worker > 0 else "gloo", COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=terms.high,
            use_gpu=spec.cluster.gpus_per_worker > 0,
            resources_per_worker=dict(terms.place.need),
        ),
        run_config=RunConfig(
            name=planned.run_id,
            storage_path=str((results / "ray").resolve()),
            failure_config=FailureConfig(max_failures=-1),  # _Retries decides
        ),
    )
    trainer.terms = terms
    outcome_file(results, planned.run_id).unlink(missing_ok=True)
    # Announced before its controller is up, so that runs which start together get their shares at once; nobody waits for the answer.
    share_out = allotter()
    share_out.grant.remote(terms.demand(0), terms.place, False)
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise EnvironmentFailure(
            f"the run {planned.run_id} failed: {_cause(error)}", "run the same command again: it resumes from the last checkpoint"
        ) from error
    return Outcome(**json.loads(outcome_file(results, planned.run_id).read_text(encoding="utf-8")))


def outcome_file(results: Path, run_id: str) -> Path:
    """Where rank 0 leaves the `Outcome`: Ray Train does not hand return values back."""
    return run_directory(results, run_id) / "outcome.json"


def _worker(config: dict[str, Any]) -> None:
    from losslens.corpus.feed import windows  # here: the driver and the controller import this module, and do without torch
    from losslens.training.worker import train

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()

    def left(step: int) -> None:
        ray.train.report({LEFT: step})  # waits for all ranks: rank 0 has written the state by then

    outcome = train(config["spec"], config["planned"], config["results"], config["corpus_dir"], windows, rank=rank, world=world, left=left)
    if rank == 0:
        outcome_file(config["results"], outcome.run_id).write_text(json.dumps(asdict(outcome)), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Terms:
    """What a run asks of the cluster, as its controller needs it."""

    run_id: str
    home: Path  # the run's directory
    low: int
    high: int
    place: Place
    flops: float
    steps: int
    batch_tokens: int
    grow_after: float

    @classmethod
    def of(cls, spec: StudySpec, planned: PlannedRun, results: Path, slots: Slots) -> Terms:
        """The terms of a planned run."""
        low, high = spec.cluster.workers
        return cls(
            run_id=planned.run_id,
            home=run_directory(results.resolve(), planned.run_id),
            low=low,
            high=high,
            place=Place(slots.worker_resources(spec.cluster.gpus_per_worker), None if slots.named else slots.train, slots.train),
            flops=planned.flops,
            steps=planned.steps,
            batch_tokens=planned.batch_tokens,
            grow_after=spec.cluster.grow_after,
        )

    def demand(self, held: int) -> Demand:
        """What the run asks for when it holds `held` workers; the work left is what its progress file says."""
        done = journal.state(self.home / "progress.json").get("step", 0)
        return Demand(self.run_id, self.low, self.high, self.flops * (1 - done / self.steps), held)


class _Trainer(DataParallelTrainer):
    """Ray Train's trainer with our policies. `_initialize_and_run_controller` is where Ray passes its own to the controller."""

    terms: Terms

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        settings["scaling_policy"] = _Resizes(self.scaling_config, self.terms)
        settings["failure_policy"] = _Retries(self.run_config, self.terms)
        return super()._initialize_and_run_controller(**settings)


class _Resizes(ScalingPolicy):
    """Lives in the run's controller: how many workers, from the allotter's shares; see `resizing.py`."""

    def __init__(self, scaling_config: Any, terms: Terms) -> None:
        super().__init__(scaling_config)
        self._terms = terms
        self._grant: Grant | None = None
        self._granted_at = self._share_since = float("-inf")
        self._world_size = self._starts = 0  # starts: since a group last ran
        self._asked: _Request | None = None
        self._failed = False
        self._drain_saved: frozenset[str] = frozenset()
        self._shown: dict[str, Any] = {}

    # What Ray calls

    def _get_num_workers_for_resource_request(self) -> int:
        return 0  # the allotter orders nodes

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start with the share, or wait until it is at least the run's least."""
        self._asked, self._world_size = None, 0
        grant = self._ask_allotter(at_once=True)
        share = within_reach(grant.share, grant.free, 0, self._starts) if grant else 0
        if share < self._terms.low:
            held = grant is not None and grant.share > share
            why = grant.why if grant else ""
            self._show("waiting", 0, why or ("slots that something else holds" if held else "the cluster's shares"))
            time.sleep(WAIT_S)
            return NoopDecision()
        self._starts += 1
        self._show("starting", share)
        return self._resize_to(share)

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> ScalingDecision:
        """Carry out `resizing.next_move`."""
        workers = worker_group_state.workers
        self._failed, self._starts, self._world_size = False, 0, len(workers)
        grant = self._ask_allotter()
        if grant is None:
            return NoopDecision()
        grant = replace(grant, share=within_reach(grant.share, grant.free, len(workers), 0))
        if self._asked:
            self._asked.hear(worker_group_status)
        elif not self._drain_saved & grant.draining:
            self._show("running", grant.share)
        group = Group(len(workers), {w.metadata.node_id for w in workers}, time.monotonic() - worker_group_state.start_time)
        move = next_move(
            group,
            Offer(grant.share, time.monotonic() - self._share_since, grant.draining),
            self._asked.state() if self._asked else None,
            low=self._terms.low,
            grow_after=self._terms.grow_after,
            seconds_left=self._seconds_left(),
            drain_saved=self._drain_saved,
        )
        return self._carry_out(move, group, grant, workers)

    def before_controller_execute_failure_decision(self, failure_decision: FailureDecision) -> None:
        """Nodes are tried before they are counted on again."""
        self._failed = True

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Say in the run's directory what goes on."""
        names = [state._state_type.state_name.lower() for state in (previous_state, current_state)]
        if names[0] != names[1]:
            self._note("state", state=names[1], before=names[0])

    async def before_controller_shutdown(self) -> None:
        """The workers are free for other runs."""
        self._show("ended", 0)
        try:
            ray.get(allotter().leave.remote(self._terms.run_id), timeout=ANSWER_S)
        except RayError:
            logger.info("the allotter has ended before the run %s", self._terms.run_id)
        await super().before_controller_shutdown()  # type: ignore[no-untyped-call]

    # What it does

    def _carry_out(self, move: Move, group: Group, grant: Grant, workers: list[Any]) -> ScalingDecision:
        if move.act is not Act.STAY:
            self._note(move.act.value, reason=move.reason, world_size=group.world_size, share=grant.share)
        if move.act is Act.ASK:
            self._asked = _Request(move.reason, len(workers))
            for worker in workers:
                worker.execute_async(leaving.ask, self._asked.deadline)
            self._show("saving", grant.share, move.reason)
        elif move.act is Act.SAVE:
            self._drain_saved = frozenset(group.nodes & grant.draining)
            for worker in workers:
                worker.execute_async(leaving.ask_for_state)
            self._show("running", grant.share, "its node drains and there is no other slot")
        elif move.act is Act.CANCEL:
            self._asked = None
            for worker in workers:
                worker.execute_async(leaving.cancel)
            self._show("running", grant.share)
        elif move.act is Act.RESIZE:
            self._asked = None
            self._show("starting", grant.share, move.reason)
            return self._resize_to(grant.share)
        return NoopDecision()

    def _resize_to(self, workers: int) -> ScalingDecision:
        return ResizeDecision(num_workers=workers, resources_per_worker=self.scaling_config._resources_per_worker_not_none)

    def _ask_allotter(self, at_once: bool = False) -> Grant | None:
        """The newest grant, asked for anew every second; the one before where nobody answers."""
        now = time.monotonic()
        if not at_once and now - self._granted_at < GRANT_EVERY_S:
            return self._grant
        terms = self._terms
        try:
            answer = self._allotter.grant.remote(terms.demand(self._world_size), terms.place, self._failed)
            grant: Grant = ray.get(answer, timeout=ANSWER_S)
        except RayError:
            self.__dict__.pop("_allotter", None)  # it ended with the run that made it: the next question makes another
            return self._grant
        if self._grant is None or grant.share != self._grant.share:
            self._share_since = now
        self._grant, self._granted_at = grant, now
        return grant

    @cached_property
    def _allotter(self) -> Any:
        return allotter()

    def _seconds_left(self) -> float | None:
        progress = journal.state(self._terms.home / "progress.json")
        rate = progress.get("tokens_per_second")
        if not rate or progress.get("world_size") != self._world_size:
            return None
        return float((progress["steps"] - progress["step"]) * self._terms.batch_tokens / rate)

    def _note(self, event: str, **details: Any) -> None:
        journal.note(self._terms.home, event, **details)

    def _show(self, state: str, share: int, why: str = "") -> None:
        shown = {"state": state, "world_size": self._world_size, "share": share, "why": why}
        if shown == self._shown:
            return
        self._shown = shown
        journal.replace(self._terms.home / "workers.json", shown | {"time": datetime.now(UTC).isoformat()})
        if state == "waiting":
            self._note("waiting", why=why)


class _Request:
    """One request to save and leave, and which ranks have answered."""

    def __init__(self, reason: str, ranks: int) -> None:
        self.reason, self.deadline = reason, time.time() + GRACE_S
        self._ranks, self._left = ranks, set[int]()

    def hear(self, status: Any) -> None:
        """Take in the ranks' newest reports."""
        for rank, worker in status.worker_statuses.items():
            if worker.training_report is not None and LEFT in worker.training_report.metrics:
                self._left.add(rank)

    def state(self) -> Asked:
        """For the decision."""
        return Asked(self.reason, len(self._left) == self._ranks, time.time() > self.deadline)


class _Retries(FailurePolicy):
    """Lives in the run's controller: whether a failed group is started again; see `resizing.try_again`."""

    def __init__(self, run_config: Any, terms: Terms) -> None:
        super().__init__(run_config.failure_config)
        self._terms = terms
        self._in_a_row, self._saved = 0, -1

    def make_decision(self, training_failed_error: Exception) -> FailureDecision:
        """Start again, or give up with this error."""
        fault, sentence = fault_of(training_failed_error), _cause(training_failed_error)
        saved = saved_step(self._terms.home.parents[1], self._terms.run_id)
        self._in_a_row = self._in_a_row + 1 if saved == self._saved else 1
        self._saved = saved
        again = try_again(fault, self._in_a_row)
        journal.note(self._terms.home, "failed", fault=fault.value, again=again, cause=sentence[:300])
        return FailureDecision.RETRY if again else FailureDecision.RAISE


def fault_of(error: Exception) -> Fault:
    """Whose fault a failure of Ray Train is. When one rank dies the others fail in their collectives: death explains those."""
    failures = getattr(error, "worker_failures", None)
    causes = [_unwrapped(failure) for failure in (failures.values() if failures else [getattr(error, "controller_failure", error)])]
    if any(isinstance(cause, LosslensError) for cause in causes):
        return Fault.KNOWN
    if any(isinstance(cause, PassTooLarge) for cause in causes):
        return Fault.MEMORY
    if any(isinstance(cause, WorkerGroupStartupTimeoutError) for cause in causes):
        return Fault.LATE
    if any(isinstance(cause, RayActorError | RayTrainError) or _COLLECTIVE.search(str(cause)) for cause in causes):
        return Fault.LOST
    return Fault.RAISED


# What torch.distributed says when a peer went away, before Ray has noticed.
_COLLECTIVE = re.compile(r"gloo|NCCL|[Cc]onnection (?:closed|reset|refused)|Socket [Tt]imeout")


def _unwrapped(failure: Any) -> Any:
    if isinstance(failure, UserExceptionWithTraceback):
        return failure._base_exc
    return failure


# An exception's line in a traceback; Ray's own wrappers and advice are not the cause.
_ROOT = re.compile(r"^(?!ray\.)[\w.]*(?:Error|Exception|Mismatch|Failure|Interrupt)\b.*", re.MULTILINE)


def _cause(error: BaseException) -> str:
    """The root exception's line: Ray wraps a worker's exception several times, the root first."""
    failures = getattr(error, "worker_failures", None)
    text = str(next(iter(failures.values())) if failures else error)
    root = _ROOT.search(text)
    return root.group().strip() if root else text.strip().splitlines()[-1]
