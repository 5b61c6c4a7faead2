"""The page of a study that runs: the report's figures, fed anew as rows arrive, beside what only a run has: its training loss,
its world size over time, and how far scoring is behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from losslens.report.gather import gather
from losslens.report.page import page
from losslens.report.palette import stylesheet
from losslens.report.payload import plain

if TYPE_CHECKING:
    from losslens.results import Results

_POINTS = 200  # of a training curve: what a figure has pixels for
_TRAINING = """
SELECT run_id, max(tokens) AS tokens, avg(loss) AS loss
FROM (SELECT *, ntile(?) OVER (PARTITION BY run_id ORDER BY tokens) AS part FROM train_log WHERE isfinite(loss))
GROUP BY run_id, part ORDER BY run_id, tokens
"""
# A checkpoint is scored when its last score arrived; what another engine adds later to compare is not waited for.
_SCORED = """
WITH arrived AS (SELECT checkpoint_id, min(scored_at) AS time FROM scores GROUP BY checkpoint_id, task, format, shots, metric)
SELECT c.run_id, epoch(c.created_at) AS saved, epoch(max(a.time)) AS scored
FROM checkpoints c LEFT JOIN arrived a USING (checkpoint_id) WHERE c.created_at IS NOT NULL
GROUP BY c.checkpoint_id, c.run_id, c.created_at ORDER BY saved, scored
"""


def live_page() -> str:
    """The page; it asks the server that it came from for `state` and `studies`."""
    return page("live.html", scripts=("live.js",), colours=0)


def live_studies(results: Results) -> list[dict[str, Any]]:
    """What the figures show: each study as in the report, its runs' training losses (run, tokens, loss) and its checkpoints
    (run, when saved, when scored or None; seconds since the epoch)."""
    training = results.query(_TRAINING, (_POINTS,)).to_pylist()
    scored = results.query(_SCORED).to_pylist()
    found = []
    for study in gather(results, crossings=False):
        index = {run["run_id"]: k for k, run in enumerate(study.runs)}
        found.append(
            plain(study)
            | {
                "name": study.name,
                "style": stylesheet(len(study.sizes)),
                "training": [[index[row["run_id"]], row["tokens"], row["loss"]] for row in training if row["run_id"] in index],
                "saved": [[index[row["run_id"]], row["saved"], row["scored"]] for row in scored if row["run_id"] in index],
            }
        )
    return found


def world_sizes(events: Iterable[Mapping[str, Any]]) -> list[tuple[float, int]]:
    """How many workers a run had from when on, from its journal: what its workers said as they came, 0 while it had none."""
    found: list[tuple[float, int]] = []
    for event in events:
        if event.get("event") == "entered":
            size = int(event["world_size"])
        elif event.get("event") in ("failed", "waiting") or (event.get("event") == "state" and event.get("state") != "running"):
            size = 0
        else:
            continue
        if not found or found[-1][1] != size:
            found.append((float(event["time"]), size))
    return found
