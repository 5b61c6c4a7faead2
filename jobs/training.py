"""The training side of a study: which run starts when, on the slots there are."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.cluster_view import ClusterView
from jobs.failures import ToldToEnd
from jobs.interrupt import SAVING_S
from jobs.progress import Board
from jobs.tracked import tracked
from losslens.cluster.slots import Slots
from losslens.errors import TrainingDiverged
from losslens.families import PlannedRun
from losslens.specs import StudySpec, variants
from losslens.training import journal, leaving
from losslens.training.branching import ready, require
from losslens.training.checkpoint import RECORD, run_directory
from losslens.training.origins import require_origin
from losslens.training.outcome import Outcome

POLL_S = 0.2


def finished(results: Path, run: PlannedRun) -> bool:
    """Whether the run's last checkpoint is complete."""
    return (run_directory(results, run.run_id) / f"step-{run.steps:08d}" / RECORD).is_file()


def next_runs(waiting: Sequence[PlannedRun], active: int, train_slots: int, min_workers: int) -> list[PlannedRun]:
    """The runs to start now: the longest first, as many as have room for their least number of workers."""
    room = max(0, train_slots // min_workers - active)
    return sorted(waiting, key=lambda run: -run.flops)[:room]


def told(event: dict[str, Any]) -> str:
    """An event of a run's journal in words; empty for those that only measurements need."""
    match event["event"]:
        case "waiting":
            return f"waits: {event['why']}"
        case "failed":
            what = "a worker or its node went away" if event["fault"] == "lost" else event["cause"]
            return f"failed: {what}" + ("; it starts again" if event["again"] else "")
        case "resize":
            return f"saved to {event['reason']}: {event['world_size']} -> {event['share']} workers"
        case "save":
            return "its node drains and there is no other slot: its state is saved, and it goes on"
        case "skipped":
            count, first = len(event["steps"]), event["steps"][0]
            return f"skipped {count} {'update' if count == 1 else 'updates'} whose loss or gradient is not finite, from step {first:,} on"
        case "spike":
            return f"gradient norm {event['norm']:.3g} at step {event['step']:,}, {event['norm'] / event['median']:.0f} times the median"
        case "slow":
            return f"rank {event['rank']} on {event['host']} takes {event['seconds'] / event['median']:.1f} times as long as the median"
        case "passes":
            return f"out of memory: goes on with {event['sequences']} sequences in one pass"
        case "damaged":
            return f"leaves out the state of step {event['step']:,}, which does not match its hashes"
        case "resumed" if event["step"]:
            return f"resumes from step {event['step']:,} with {event['world_size']} workers"
    return ""


class Training:
    """Runs in flight. Each has a thread of the driver that waits in `elastic.fit`; call `advance` now and then.

    `corpora`: the packed corpus of each variant; `studies`: the study that each is trained by, where that is not the variant itself.
    """

    def __init__(
        self,
        spec: StudySpec,
        runs: Sequence[PlannedRun],
        results: Path,
        corpora: Mapping[str, Path],
        slots: Slots,
        board: Board,
        studies: Mapping[str, StudySpec] | None = None,
    ) -> None:
        self._spec, self._results, self._corpora, self._slots, self._board = spec, results, corpora, slots, board
        self._studies = studies or variants(spec)
        self._runs = tuple(runs)
        self._waiting = [run for run in runs if not finished(results, run)]
        self._threads: dict[str, threading.Thread] = {}
        self._outcomes: dict[str, Outcome] = {}
        self._errors: dict[str, Exception] = {}
        self._told: dict[str, int] = {}
        self._view = ClusterView(results, runs)
        for run in runs:
            if run not in self._waiting:
                board.show(f"train {run.label}", run.steps, run.steps, "done before")

    def advance(self) -> bool:
        """Start what has room, show progress; False when nothing is left to do."""
        active = [run_id for run_id, thread in self._threads.items() if thread.is_alive()]
        for run in next_runs(self._startable(), len(active), self._slots.train, self._spec.cluster.workers[0]):
            self._waiting.remove(run)
            self._told[run.run_id] = len(journal.events(self._home(run)))
            thread = threading.Thread(target=self._fit, args=(run,), name=run.run_id, daemon=True)
            self._threads[run.run_id] = thread
            thread.start()
            active.append(run.run_id)
        for run in self._runs:
            if run.run_id in self._threads:
                self._tell(run)
                self._show(run)
        self._view.refresh()
        return bool(active or self._waiting)

    def wait(self) -> None:
        """Until every run has ended, well or not."""
        with tracked(self._results, self._board), self.saved_when_told_to_end():
            while self.advance():
                time.sleep(POLL_S)

    @contextlib.contextmanager
    def saved_when_told_to_end(self) -> Iterator[None]:
        """When SIGTERM ends the block, every run in training saves a state first, for which there are `SAVING_S` seconds."""
        try:
            yield
        except ToldToEnd:
            homes = [self._home(run) for run in self._runs if run.run_id in self._threads and self._threads[run.run_id].is_alive()]
            for home in homes:
                leaving.ask_for_state_from_afar(home)
            until = time.monotonic() + SAVING_S
            while any(leaving.asked_from_afar(home) for home in homes) and time.monotonic() < until:
                time.sleep(POLL_S)
            raise

    def errors(self) -> list[Exception]:
        """Why runs of this call failed or diverged; empty when all reached their budgets."""
        diverged = [
            TrainingDiverged(f"the run {outcome.run_id} diverged: {outcome.diverged}", _DIVERGED)
            for outcome in self._outcomes.values()
            if outcome.diverged
        ]
        return [*self._errors.values(), *diverged]

    def outcomes(self) -> list[Outcome]:
        """How the runs of this call ended.

        Raises:
            Exception: the first of `errors`.
        """
        for error in self.errors():
            raise error
        return list(self._outcomes.values())

    def _startable(self) -> list[PlannedRun]:
        """Runs that wait for a slot and nothing else; a branch waits for its parent's state while the parent may still write it."""
        coming = {run.run_id for run in self._waiting} | {run_id for run_id, thread in self._threads.items() if thread.is_alive()}
        return [run for run in self._waiting if not run.branch or run.branch.parent not in coming or ready(self._results, run)]

    def _fit(self, run: PlannedRun) -> None:
        from losslens.training.elastic import fit

        try:
            require(self._results, run)
            require_origin(self._results, run)
            self._outcomes[run.run_id] = fit(self._studies[run.variant], run, self._results, self._corpora[run.variant], self._slots)
        except Exception as error:  # a thread has nobody to raise to: whoever asks for `errors` gets it
            self._errors[run.run_id] = error

    def _home(self, run: PlannedRun) -> Path:
        return run_directory(self._results, run.run_id)

    def _tell(self, run: PlannedRun) -> None:
        """What happened to the run since the last look, one line each."""
        events = journal.events(self._home(run))
        for event in events[self._told[run.run_id] :]:
            if line := told(event):
                self._board.say(f"train {run.label} {line}")
        self._told[run.run_id] = len(events)

    def _show(self, run: PlannedRun) -> None:
        state = journal.state(self._home(run) / "progress.json")
        if not state:
            return  # not begun
        loss = "" if state["loss"] is None else f"loss {state['loss']:.3f}, "
        loss += "" if state["tokens_per_second"] is None else f"{state['tokens_per_second']:,.0f} tokens/s, "
        note = f"{loss}world size {state['world_size']}"
        self._board.show(f"train {run.label}", state["step"], run.steps, note)


_DIVERGED = "its checkpoints are kept and scored: lower training.optimizer.lr, lengthen the warm-up, or change the seed"
