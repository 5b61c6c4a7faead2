"""From the results to a destination: what is new, and a file for each run that says what was sent.

That file is written once its points were taken. Killed in between, the next sender sends them again, and the destination knows them by
the mark it gave before: TensorBoard's file is cut back to it, W&B and MLflow drop what they have.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from losslens.corpus.shards import write_bytes
from losslens.errors import DataMismatch
from losslens.results import Results
from losslens.tracking.destinations import Destination
from losslens.tracking.points import Point, Run, Sent

FILE = "sent.json"
AT_ONCE = 20_000  # rows of the log: what has to fit into memory of a long run

# What there is of each run, from the parts as they lie: rows that occur twice only cost a look.
_THERE = """
SELECT t.run_id, coalesce(max(t.last), -1) AS last, sum(t.measured)::BIGINT AS measured FROM (
    SELECT l.run_id, max(l.step) AS last, 0 AS measured FROM parts.train_log AS l GROUP BY l.run_id
    UNION ALL
    SELECT c.run_id, -1, count(*) FROM checkpoints AS c
    JOIN (SELECT checkpoint_id FROM parts.losses UNION ALL SELECT checkpoint_id FROM parts.scores) AS m USING (checkpoint_id)
    GROUP BY c.run_id
) AS t
WHERE t.run_id IS NOT NULL AND ($1 IS NULL OR t.run_id IN (SELECT r.run_id FROM runs AS r WHERE r.study = $1))
GROUP BY t.run_id ORDER BY t.run_id
"""

# A step that several attempts logged is told by the last one.
_LOGGED = """
SELECT t.step, t.tokens, coalesce(epoch(t.time), 0) AS time,
       t.loss AS "train/loss", t.grad_norm AS "train/grad_norm", t.lr AS "train/lr", t.tokens_per_second AS "train/tokens_per_second"
FROM train_log AS t WHERE t.run_id = $1 AND t.step > $2
QUALIFY row_number() OVER (PARTITION BY t.step ORDER BY t.attempt DESC NULLS LAST, t.time DESC NULLS LAST) = 1
ORDER BY t.step LIMIT $3
"""

# Of several scores of a checkpoint the one that view `curve` shows.
_MEASURED = """
WITH own AS (SELECT c.* FROM checkpoints AS c WHERE c.run_id = $1),
scored AS (
    SELECT s.* FROM scores AS s WHERE s.checkpoint_id IN (SELECT o.checkpoint_id FROM own AS o)
    QUALIFY row_number() OVER (
        PARTITION BY s.checkpoint_id, s.task, s.format, s.shots, s.metric
        ORDER BY s.task_version DESC NULLS LAST, s.scored_at NULLS LAST, s.engine
    ) = 1
)
SELECT o.step, o.tokens, coalesce(epoch(o.created_at), 0) AS time, concat('loss/', l.dataset, '/', l.unit) AS name, l.value
FROM losses AS l JOIN own AS o USING (checkpoint_id)
UNION ALL
SELECT o.step, o.tokens, coalesce(epoch(s.scored_at), epoch(o.created_at), 0),
       concat('score/', s.task, '/', s.format, CASE WHEN s.shots > 0 THEN concat('-', s.shots, 'shot') END, '/', s.metric), s.value
FROM scored AS s JOIN own AS o USING (checkpoint_id)
ORDER BY ALL
"""


def send_new(stored: Results, destination: Destination, study: str | None = None) -> Counter[str]:
    """Send what the destination has not got yet, of every run (of one study); how many points of each run.

    One process at a time: hold `destination.home`.

    Raises:
        LosslensError: as `Results.query`, and what the destination raises.
    """
    counts: Counter[str] = Counter()
    for there in stored.query(_THERE, (study,)).to_pylist():
        record = destination.home / Run(there["run_id"]).name / FILE
        sent = _read(record)
        if sent.last >= there["last"] and sent.measured == there["measured"]:
            continue
        run = Run(there["run_id"], _settings(stored, there["run_id"]))
        for number, after in _sending(stored, destination, run, sent, there["measured"]):
            _write(record, after)
            counts[run.run_id] += number
    return counts


def _sending(stored: Results, destination: Destination, run: Run, sent: Sent, measured: int) -> Iterator[tuple[int, Sent]]:
    """Each time the destination has taken points: how many, and what it has by then."""
    while rows := stored.query(_LOGGED, (run.run_id, sent.last, AT_ONCE)).to_pylist():
        mark = destination.send(run, [_logged(row) for row in rows], sent.mark)
        sent = sent.with_steps(rows[-1]["step"], mark)
        yield len(rows), sent
    if sent.measured != measured:
        points = sent.lacks(_grouped(stored.query(_MEASURED, (run.run_id,)).to_pylist()))
        given = destination.send(run, points, sent.mark) if points else sent.mark
        yield len(points), sent.with_measured(points, measured, given)


def _logged(row: dict[str, Any]) -> Point:
    values = {name: value for name, value in row.items() if name.startswith("train/") and value is not None}
    return Point(row["step"], row["tokens"], row["time"], values)


def _grouped(rows: list[dict[str, Any]]) -> list[Point]:
    """Rows of one place and time as one point; of two values of one name at a place the first."""
    found: dict[tuple[int | None, int | None, float], dict[str, float]] = {}
    met: set[tuple[str, int | None]] = set()
    for row in rows:
        place = row["tokens"] if row["step"] is None else row["step"]
        if (row["name"], place) not in met:
            met.add((row["name"], place))
            found.setdefault((row["step"], row["tokens"], row["time"]), {})[row["name"]] = row["value"]
    return [Point(step, tokens, time, values) for (step, tokens, time), values in found.items()]


def _settings(stored: Results, run_id: str) -> dict[str, Any]:
    described = stored.query("SELECT r.* EXCLUDE (spec) FROM runs AS r WHERE r.run_id = $1", (run_id,)).to_pylist()
    return {name: value for row in described for name, value in row.items() if value is not None}


def _read(record: Path) -> Sent:
    if not record.is_file():
        return Sent()
    try:
        told = json.loads(record.read_bytes())
        places = {name: frozenset(known) for name, known in told["places"].items()}
        return Sent(told["mark"], int(told["last"]), int(told["measured"]), places)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataMismatch(f"{record} cannot be read: {error!r}", f"delete {record.parent}: its run is sent anew") from error


def _write(record: Path, sent: Sent) -> None:
    places = {name: sorted(known) for name, known in sorted(sent.places.items())}
    told = {"mark": sent.mark, "last": sent.last, "measured": sent.measured, "places": places}
    write_bytes(record, json.dumps(told).encode())
