"""A sweep: runs of one size that differ in the swept keys, of which poor ones are stopped early. Ray Tune over Ray Train.

Every trial is a normal run of the study with its keys set, in the same tables and checkpoint directories. ASHA compares
held-out losses at equal tokens. What was decided is kept beside the results, so that a sweep that is run again trains only
what is not decided yet, and a finished one is a no-op.
"""

from __future__ import annotations

if __name__ == "__main__":
    import here  # noqa: F401

import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from ray import tune

from jobs.cluster_view import ClusterView
from jobs.corpus import pack
from jobs.exclusive import exclusive
from jobs.progress import Board
from jobs.proposals import Trial, default_space, grace_tokens, parse_params, propose, size_of
from jobs.training import finished
from jobs.trial import heldout, run_trial
from losslens.cluster.allotter import allotter
from losslens.cluster.connect import connected
from losslens.corpus import shards
from losslens.errors import EnvironmentFailure
from losslens.families import planned_runs
from losslens.specs import StudySpec, fingerprint, load_study
from losslens.training import journal
from losslens.training.checkpoint import Checkpoint, completed, run_directory

SHOW_EVERY_S = 1.0

# Ray Tune as a library: nothing on the terminal, no files for every result, Ctrl-C as in all verbs.
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints a table whatever it is told
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails reports no loss
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


@dataclass(frozen=True, slots=True)
class Halving:
    """How ASHA stops: nothing before `grace` (a share of the budget below 1, else steps); then, each time a trial has come
    `reduction` times as far, it goes on if its loss is among the best 1 / `reduction` of those that came as far."""

    grace: float = 0.25
    reduction: int = 3


@dataclass(frozen=True, slots=True)
class Decision:
    """How a trial ended, and why when it diverged or failed."""

    state: Literal["finished", "stopped", "diverged", "failed"]
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Sweep:
    """The trials of one size. The number of samples is not in `name`: a sweep that gets more goes on from what it has."""

    name: str
    trials: tuple[Trial, ...]
    grace: int  # tokens
    reduction: int

    def decided(self, results: Path) -> dict[str, Decision]:
        """How its runs have ended; those that finished by other means included."""
        kept = {run_id: Decision(**decision) for run_id, decision in journal.state(self._file(results)).items()}
        return kept | {trial.run.run_id: Decision("finished") for trial in self.trials if finished(results, trial.run)}

    def decide(self, results: Path, run_id: str, decision: Decision) -> None:
        """Keep how a run ended."""
        decided = {run: asdict(kept) for run, kept in (self.decided(results) | {run_id: decision}).items()}
        shards.write_bytes(self._file(results), json.dumps(decided, indent=1).encode())

    def todo(self, results: Path) -> dict[str, Trial]:
        """What is left to train, by run: trials without an end, and those that failed."""
        decided = self.decided(results)
        left = [trial for trial in self.trials if decided.get(trial.run.run_id, _NOT_ENDED).state == "failed"]
        return {trial.run.run_id: trial for trial in left}

    def _file(self, results: Path) -> Path:
        return results / "sweeps" / f"{self.name}.json"


_NOT_ENDED = Decision("failed", "it has not ended")


def sweep(
    study: str,
    overrides: Sequence[str],
    results: Path,
    sizes: Sequence[str],
    params: Sequence[str] = (),
    *,
    samples: int = 8,
    seed: int = 0,
    halving: Halving = Halving(),
) -> list[dict[str, Any]]:
    """Sweep `params` (`KEY=SPACE`; default: the learning rate) for each size in turn; a row per trial, see `rows`.

    `seed` chooses the values; the runs have the study's own. A trial that fails is a row too.

    Raises:
        UserError: before anything starts, when a size, key, space or value cannot be.
        EnvironmentFailure: no Ray, no room for a trial, or none on the disk.
    """
    results = results.resolve()  # trials have working directories of their own
    spec = load_study(study, overrides)
    sweeps = [_sweep_of(study, overrides, spec, size, params, samples, seed, halving) for size in dict.fromkeys(sizes)]
    with exclusive(results):
        if left := [each for each in sweeps if each.todo(results)]:
            _run(spec, left, results)
    return [row for each in sweeps for row in rows(each.trials, each.decided(results), _newest(each.trials, results))]


def rows(trials: Sequence[Trial], decided: Mapping[str, Decision], newest: Mapping[str, Checkpoint]) -> list[dict[str, Any]]:
    """One row per trial of a size, by loss; diverged and failed ones last. `loss` is held out, in nats/token, after `step`.

    `best` marks the finished trial of the lowest loss: a stopped one did not come to where losses are compared.
    """
    found: list[dict[str, Any]] = []
    for trial in trials:
        last, decision = newest.get(trial.run.run_id), decided.get(trial.run.run_id, _NOT_ENDED)
        found.append({
            "size": trial.size, "best": False, **trial.values(), "state": decision.state,
            "step": last.step if last else 0, "tokens": last.tokens if last else 0, "loss": heldout(last) if last else None,
            "run_id": trial.run.run_id, "why": decision.why,
        })  # fmt: skip
    found.sort(key=lambda row: (row["state"] in ("diverged", "failed"), math.inf if row["loss"] is None else row["loss"]))
    for best in [row for row in found if row["state"] == "finished"][:1]:
        best["best"] = True
    return found


def require_all_ended(found: Sequence[Mapping[str, Any]]) -> None:
    """Does nothing when no trial among these rows failed.

    Raises:
        EnvironmentFailure: naming the first that did.
    """
    if failed := [row for row in found if row["state"] == "failed"]:
        sentence = f"{len(failed)} of {len(found)} trials failed; {failed[0]['run_id']}: {failed[0]['why']}"
        raise EnvironmentFailure(sentence, "run the same command again: it takes up what failed")


def ending(finished: bool, last: Mapping[str, Any]) -> Decision:
    """How a trial has ended, from its last report to Tune."""
    if finished:
        return Decision("finished")
    if "failed" in last:
        return Decision("failed", last["failed"])
    return Decision("diverged", last["diverged"]) if "diverged" in last else Decision("stopped")


def _sweep_of(
    study: str, overrides: Sequence[str], spec: StudySpec, size: str, params: Sequence[str], samples: int, seed: int, halving: Halving
) -> Sweep:
    chosen = size_of(spec, size)
    spaces = parse_params(params) or default_space(spec, chosen)
    trials = propose(study, overrides, chosen, spaces, samples=samples, seed=seed)
    identity = fingerprint(spec.corpus, spec.family, spec.training, spec.seed, size, repr(spaces), seed, repr(halving))
    grace = min(grace_tokens(halving.grace, trial.run) for trial in trials)
    return Sweep(f"{spec.name}-{size}-{identity[:8]}", trials, grace, halving.reduction)


def _run(spec: StudySpec, sweeps: Sequence[Sweep], results: Path) -> None:
    os.environ.update(_QUIET)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is in the rows
    largest = max((spec, *(trial.spec for each in sweeps for trial in each.trials)), key=_rows)  # the study, unless budgets are swept
    with Board() as board, connected(spec.cluster) as slots:
        corpus = pack(largest, results, board)[""]
        for each in sweeps:
            todo = each.todo(results)
            by_run = {trial.run.run_id: trial for trial in each.trials}
            trainable = tune.with_parameters(run_trial, trials=by_run, todo=frozenset(todo), results=results, corpus=corpus, slots=slots)
            _tune(each, trainable, Watch(each, todo, results, board), max(1, slots.train // spec.cluster.workers[0]))


def _rows(spec: StudySpec) -> int:
    return max(run.steps * run.global_batch for run in planned_runs(spec))


def _tune(each: Sweep, trainable: Any, watch: Watch, at_once: int) -> None:
    """Let Ray Tune run the trials; decided ones first, because ASHA compares the others with what they report."""
    ordered = sorted((trial.run.run_id for trial in each.trials), key=lambda run_id: run_id in watch.todo)
    halving = tune.schedulers.ASHAScheduler(
        time_attr="tokens",
        metric="loss",
        mode="min",
        max_t=max(trial.run.tokens for trial in each.trials),
        grace_period=each.grace,
        reduction_factor=each.reduction,
        stop_last_trials=False,
    )
    # A trial's actor drives its run: it stays with the driver, off nodes that come and go, and takes no CPU to speak of.
    here = [{"ray.io/node-id": ray.get_runtime_context().get_node_id()}]
    tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([{"CPU": 0.001}], bundle_label_selector=here)),
        param_space={"run_id": tune.grid_search(ordered)},
        tune_config=tune.TuneConfig(scheduler=halving, max_concurrent_trials=at_once, reuse_actors=False),
        run_config=tune.RunConfig(name=each.name, storage_path=str(watch.results / "ray"), verbose=0, callbacks=[watch]),
    ).fit()


class Watch(tune.Callback):
    """In the driver, called by Ray Tune: keeps decisions, shows progress and what `losslens status` reads."""

    def __init__(self, each: Sweep, todo: Mapping[str, Trial], results: Path, board: Board) -> None:
        self.todo, self.results = todo, results
        self._sweep, self._board = each, board
        self._allotter = allotter()  # here, so that it outlives the trials
        self._view = ClusterView(results, [trial.run for trial in todo.values()])
        self._stopped: list[str] = []
        self._shown_at = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves its callbacks to resume in its own way; a sweep resumes from its decisions."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Show where the runs are."""
        if time.monotonic() - self._shown_at < SHOW_EVERY_S:
            return
        self._shown_at = time.monotonic()
        self._view.refresh()
        for run_id in self._stopped:
            self._allotter.leave.remote(run_id)  # its controller has no time to, and may ask for workers once more while it ends
        for run_id, trial in self.todo.items():
            if progress := journal.state(run_directory(self.results, run_id) / "progress.json"):
                loss = "" if progress["loss"] is None else f"loss {progress['loss']:.3f}"
                self._board.show(trial.label, progress["step"], trial.run.steps, loss)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Keep how it ended."""
        run_id = trial.config["run_id"]
        if run_id in self.todo:
            self._decide(run_id, ending(finished(self.results, self.todo[run_id].run), trial.last_result))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Keep that it failed without a word."""
        if trial.config["run_id"] in self.todo:
            self._decide(trial.config["run_id"], Decision("failed", "the process that drove it died"))

    def _decide(self, run_id: str, decision: Decision) -> None:
        self._sweep.decide(self.results, run_id, decision)
        self._board.say(f"{self.todo[run_id].label}: {decision.state}")
        if decision.state == "stopped":
            self._stopped.append(run_id)


def _newest(trials: Sequence[Trial], results: Path) -> dict[str, Checkpoint]:
    """The newest checkpoint of each run that has one."""
    found = {trial.run.run_id: completed(results, trial.run.run_id) for trial in trials}
    return {run_id: checkpoints[-1] for run_id, checkpoints in found.items() if checkpoints}


if __name__ == "__main__":
    from jobs.cli import run_verb

    run_verb("sweep")
