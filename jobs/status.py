"""What a results directory is doing: its cluster, its runs, what they wait for, and how far scoring is behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.cluster_view import read_view
from losslens.errors import UserError
from losslens.results import Results
from losslens.training.journal import state

_RUNS = """
SELECT r.run_id, r.study, r.size, r.seed, r.tokens_planned, max(c.tokens) AS tokens, count(DISTINCT c.checkpoint_id) AS checkpoints,
       count(DISTINCT s.checkpoint_id) AS scored
FROM runs r LEFT JOIN checkpoints c USING (run_id) LEFT JOIN scores s USING (checkpoint_id)
GROUP BY ALL ORDER BY r.study, r.size, r.seed, r.tokens_planned
"""

CLUSTER = ("nodes", "nodes_draining", "train_slots", "train_slots_used", "eval_slots", "eval_slots_used")

# What a terminal has room for, by heading.
SHOWN = {
    "run": "run",
    "state": "state",
    "waits_for": "waits for",
    "tokens": "tokens",
    "tokens_planned": "of",
    "loss": "loss",
    "tokens_per_second": "tokens/s",
    "world_size": "workers",
    "share": "share",
    "attempt": "attempt",
    "checkpoints": "checkpoints",
    "to_score": "to score",
    "slow": "slow worker",
    "updated": "updated",
}


def status(results: Path) -> list[dict[str, Any]]:
    """One row per run, with the state of the whole cluster in each (columns `CLUSTER`; None when no job runs).

    State: `waiting`, `training`, `stopped` (begun, and no job runs), `trained`, `scored`. `world_size` is how many workers
    the run has, `share` how many slots are meant for it, `attempt` the number of times it was started.

    Raises:
        UserError: there are no results here.
    """
    view = read_view(results, datetime.now(UTC))
    if view is None and not (results / "parts").is_dir():
        raise UserError(f"{results} holds no results", "give the directory of a study with --results")
    begun = Results(results).query(_RUNS).to_pylist() if (results / "parts" / "runs").is_dir() else []
    known = {run["run_id"] for run in begun}
    announced = [run for run in (view or {}).get("runs", ()) if run["run_id"] not in known]
    return [
        describe(run, state(home / "progress.json"), state(home / "workers.json"), view)
        for run in [*begun, *announced]
        for home in [results / "checkpoints" / run["run_id"]]
    ]


def describe(
    run: Mapping[str, Any], progress: Mapping[str, Any], workers: Mapping[str, Any], view: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A run's row from its records, what its worker and its scaling policy last wrote, and the view of a job that runs."""
    tokens, planned = run.get("tokens") or 0, run["tokens_planned"]
    checkpoints = run.get("checkpoints", 0)
    behind = checkpoints - run.get("scored", 0)
    group = workers if view else {}
    state = _state(planned is None or tokens >= planned, behind, bool(progress), group, view)
    return {
        "study": run["study"], "run": run["run_id"], "state": state, "waits_for": _waits_for(state, behind, group, view),
        "tokens": tokens, "tokens_planned": planned, "loss": progress.get("loss"), "tokens_per_second": progress.get("tokens_per_second"),
        "world_size": group.get("world_size", progress.get("world_size")), "share": group.get("share"), "attempt": progress.get("attempt"),
        "checkpoints": checkpoints, "to_score": behind, "slow": _slow(progress) if state == "training" else None,
        "updated": progress.get("time"),
        **{name: view[name] if view else None for name in CLUSTER},
    }  # fmt: skip


def _state(trained: bool, behind: int, begun: bool, group: Mapping[str, Any], view: Mapping[str, Any] | None) -> str:
    if trained:
        return "trained" if behind else "scored"
    if group.get("state") == "waiting" or not begun:
        return "waiting"
    return "training" if view else "stopped"


def _slow(progress: Mapping[str, Any]) -> str | None:
    """The worker that holds the others up, where one does."""
    slow = progress.get("slow")
    return f"rank {slow['rank']} on {slow['host']}: {slow['seconds'] / slow['median']:.1f} x" if slow else None


def _waits_for(state: str, behind: int, group: Mapping[str, Any], view: Mapping[str, Any] | None) -> str | None:
    """Why nothing happens; None where something does, or where no job runs that could wait."""
    if view is None:
        return None
    if state == "waiting" and group.get("state") in (None, "waiting"):
        return group.get("why") or "a free train slot"
    if state == "trained" and behind and view["eval_slots_pending"] and not view["eval_slots_used"]:
        return "a free eval slot"
    return None


def headline(results: Path) -> str:
    """The cluster in a line."""
    view = read_view(results, datetime.now(UTC))
    if view is None:
        return "cluster: no job runs here"
    count = f"{view['nodes']} node{'' if view['nodes'] == 1 else 's'}"
    nodes = _and_more(count, {"draining": view["nodes_draining"], "on their way": view["nodes_pending"]})
    kinds = [
        _and_more(f"{view[f'{kind}_used']} of {view[kind]} {name} used", {"more asked for": view[f"{kind}_pending"]})
        for kind, name in (("train_slots", "train slots"), ("eval_slots", "eval slots"))
        if view[kind] or view[f"{kind}_pending"]
    ]
    return "cluster: " + ", ".join([nodes, *kinds])


def _and_more(text: str, counts: Mapping[str, int]) -> str:
    more: Sequence[str] = [f"{count} {what}" for what, count in counts.items() if count]
    return f"{text} ({', '.join(more)})" if more else text
