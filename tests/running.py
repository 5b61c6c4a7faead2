"""A results directory as a job that runs leaves it: the synthetic study, and the files its controller and workers write."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from jobs.cluster_view import FILE
from losslens.results import Results
from tests.synthetic import NOW, SIZES, TASKS, write_study

CLUSTER = {
    "nodes": 3, "nodes_draining": 0, "nodes_pending": 1, "train_slots": 4, "train_slots_used": 3, "train_slots_pending": 1,
    "eval_slots": 1, "eval_slots_used": 1, "eval_slots_pending": 0,
}  # fmt: skip


def write_running(root: Path) -> None:
    """One size trains with two workers after it lost one, one waits, the others are scored; the study lacks the last checkpoints."""
    write_study(root, tasks=TASKS[:3])
    view = CLUSTER | {"runs": [], "time": datetime.now(UTC).isoformat()}
    (root / FILE).write_text(json.dumps(view), encoding="utf-8")
    began = NOW.timestamp()
    for place, size in enumerate(SIZES):
        home = root / "checkpoints" / f"synthetic-{size}-s0"
        home.mkdir(parents=True)
        progress = {"step": 500, "loss": 2.1, "tokens_per_second": 4321.0, "world_size": 2, "attempt": 2, "time": NOW.isoformat()}
        (home / "progress.json").write_text(json.dumps(progress), encoding="utf-8")
        state = ("running", "waiting", "ended", "ended")[place]
        workers = {"state": state, "world_size": 2, "share": 3, "why": "2 workers at least, 1 slot" if state == "waiting" else ""}
        (home / "workers.json").write_text(json.dumps(workers), encoding="utf-8")
        events = [
            {"time": began, "event": "entered", "world_size": 3},
            {"time": began + 60, "event": "state", "state": "restarting"},
            {"time": began + 90, "event": "entered", "world_size": 2},
        ]
        lines = [json.dumps(event) for event in events]
        (home / "journal.jsonl").write_text("\n".join([*lines, '{"time": 1, "ev']), encoding="utf-8")


def plan_more(root: Path) -> None:
    """What the runs were planned for is ten times what they read so far, so they are not at their end."""
    results = Results(root)
    later = "SELECT * REPLACE (tokens_planned * 10 AS tokens_planned, created_at + INTERVAL 1 DAY AS created_at) FROM runs"
    results.write("runs", results.query(later))


def save_another(root: Path, size: str) -> None:
    """One more checkpoint of `size`, with its losses and no score yet."""
    results = Results(root)
    run = f"synthetic-{size}-s0"
    newest = "FROM checkpoints WHERE run_id = ? ORDER BY step DESC LIMIT 1"
    later = "tokens * 2 AS tokens, step * 2 AS step, flops * 2 AS flops, created_at + INTERVAL 5 MINUTE AS created_at"
    columns = f"'{run}/new' AS checkpoint_id, {later}"
    results.write("checkpoints", results.query(f"SELECT * REPLACE ({columns}) {newest}", (run,)))
    results.write("losses", [{"checkpoint_id": f"{run}/new", "dataset": "heldout", "unit": "nats/token", "value": 1.4}])
