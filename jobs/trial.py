"""One trial of a sweep, in an actor of Ray Tune's: it drives a run and reports the held-out loss of every checkpoint.

ASHA stops a trial by ending its actor; the run's controller and workers end with it, and what they saved stays.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Mapping, Set
from concurrent.futures import Future
from pathlib import Path

from ray import tune

from jobs.failures import explain
from jobs.proposals import Trial
from losslens.cluster.connect import TRAIN_SETTINGS
from losslens.cluster.slots import Slots
from losslens.families import PlannedRun
from losslens.results import Results
from losslens.training.checkpoint import Checkpoint, completed
from losslens.training.outcome import Outcome
from losslens.training.saving import publish

POLL_S = 0.5  # between two looks for a new checkpoint


def run_trial(config: dict[str, str], trials: Mapping[str, Trial], todo: Set[str], results: Path, corpus: Path, slots: Slots) -> None:
    """Report the checkpoints that the run `config["run_id"]` has, train it on when it is one of `todo`, and report the others.

    The last checkpoint is reported after the run's end, so that nothing is stopped that is as good as done. How a run ended
    that did not finish is the last report: Tune tells the driver of an exception before it can be read.
    """
    os.environ.update(TRAIN_SETTINGS | os.environ)  # for the controller, which this process starts
    trial = trials[config["run_id"]]
    run = trial.run
    reported = _report(run, results, after=-1)
    if run.run_id not in todo:
        return
    training = _training(trial, results, corpus, slots)
    while not training.done():
        time.sleep(POLL_S)
        reported = _report(run, results, after=reported, before=run.steps)
    _report(run, results, after=reported)
    if error := training.exception():
        tune.report({"failed": why(error)})  # without a loss: ASHA learns nothing from it
    elif (outcome := training.result()).diverged:
        worst = judged(math.nan, run.shape.vocab_size)
        tune.report({"step": outcome.step, "tokens": outcome.step * run.batch_tokens, "loss": worst, "diverged": outcome.diverged})


def why(error: BaseException) -> str:
    """One sentence: our own where the failure is known, else the exception's."""
    known = explain(error)
    return known.sentence if known else f"{type(error).__name__}: {error}"


def heldout(checkpoint: Checkpoint) -> float:
    """Its loss on the held-out mixture, nats/token."""
    return next(loss.value for loss in checkpoint.losses if (loss.dataset, loss.unit) == ("heldout", "nats/token"))


def judged(loss: float, vocab_size: int) -> float:
    """What ASHA compares: the loss, but no more than guessing evenly would have, which stands for nan too.

    ASHA's quantiles interpolate: one run far off would move the bar so low that every other run passes.
    """
    guessing = math.log(vocab_size)
    return guessing if math.isnan(loss) else min(loss, guessing)


def _report(run: PlannedRun, results: Path, after: int, before: float = math.inf) -> int:
    """Report the run's checkpoints between two steps, oldest first; the step of the last one reported so far."""
    for checkpoint in completed(results, run.run_id):
        if after < checkpoint.step < before:
            publish(Results(results), checkpoint)  # ASHA may end its writer before that gets to it
            loss = judged(heldout(checkpoint), run.shape.vocab_size)
            tune.report({"step": checkpoint.step, "tokens": checkpoint.tokens, "loss": loss})
            after = checkpoint.step
    return after


def _training(trial: Trial, results: Path, corpus: Path, slots: Slots) -> Future[Outcome]:
    """The trial's run, in training. In a daemon thread, because the actor of a stopped trial ends without waiting for it."""
    from losslens.training.elastic import fit

    future: Future[Outcome] = Future()

    def work() -> None:
        try:
            future.set_result(fit(trial.spec, trial.run, results, corpus, slots))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=work, name=trial.run.run_id, daemon=True).start()
    return future
