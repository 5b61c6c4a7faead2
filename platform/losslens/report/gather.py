"""Results to `Study` values: the report's only questions to the database, all of them asked here."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from losslens.report.crossings import with_crossings
from losslens.report.seeds import with_seeds
from losslens.report.study import Checkpoint, Curve, LossAxis, Panel, Row, Size, Study, headline_axis, headline_metric

if TYPE_CHECKING:
    from losslens.results import Results

RUNS = """
SELECT r.* REPLACE (coalesce(r.study, 'unnamed') AS study, coalesce(r.size, 'unknown') AS size),
       count(c.checkpoint_id) AS checkpoints, max(c.tokens) AS tokens, max(c.flops) AS flops
FROM runs r LEFT JOIN checkpoints c USING (run_id) GROUP BY ALL
ORDER BY study, params NULLS LAST, size, tokens_planned, seed, run_id
"""
CHECKPOINTS = "SELECT checkpoint_id, run_id, step, tokens, flops FROM checkpoints ORDER BY run_id, tokens, step"
LOSSES = "SELECT checkpoint_id, dataset, unit, value FROM losses WHERE value IS NOT NULL"
SCORES = """
SELECT DISTINCT checkpoint_id, task, format, shots, metric, value, stderr, n, chance, higher_is_better
FROM {view} WHERE value IS NOT NULL AND coalesce(task = ?, true)
"""
# Computing metrics from every stored answer takes a while: it is done where `losslens metrics` has judged some.
RESCORED = "SELECT EXISTS (FROM thresholds WHERE metric NOT IN (SELECT DISTINCT metric FROM scores)) AS judged"
HOMELESS = """
SELECT count(*) AS scores FROM scores LEFT JOIN checkpoints c USING (checkpoint_id) LEFT JOIN runs r USING (run_id)
WHERE r.run_id IS NULL
"""
UNPLACED = """
SELECT count(*) AS scores FROM scores s JOIN checkpoints c USING (checkpoint_id) JOIN runs r USING (run_id)
WHERE s.checkpoint_id NOT IN (SELECT checkpoint_id FROM losses WHERE checkpoint_id IS NOT NULL)
"""
ENGINES = """
SELECT r.study, s.task, s.format, s.shots, s.engine, count(DISTINCT s.checkpoint_id) AS checkpoints,
       max(s.task_version) AS task_version, min(s.n) AS n_min, max(s.n) AS n_max
FROM scores s JOIN checkpoints c USING (checkpoint_id) JOIN runs r USING (run_id)
GROUP BY ALL ORDER BY ALL
"""
AGREEMENT = """
SELECT r.study, a.engine AS engine, b.engine AS other, a.metric, count(*) AS pairs,
       count(DISTINCT a.checkpoint_id) AS checkpoints, avg(abs(a.value - b.value)) AS mean_difference,
       max(abs(a.value - b.value)) AS largest_difference
FROM scores a JOIN scores b ON a.checkpoint_id = b.checkpoint_id AND a.task = b.task AND a.metric = b.metric
     AND a.format IS NOT DISTINCT FROM b.format AND a.shots IS NOT DISTINCT FROM b.shots
     AND a.task_version IS NOT DISTINCT FROM b.task_version AND a.engine < b.engine
JOIN checkpoints c ON c.checkpoint_id = a.checkpoint_id JOIN runs r USING (run_id)
GROUP BY ALL ORDER BY ALL
"""
THRESHOLDS = "SELECT * FROM thresholds ORDER BY study, task, format, shots, metric, loss_dataset, loss_unit"
SAME_CURVE = "SELECT * FROM same_curve WHERE axis = 'loss' AND level IS NOT NULL ORDER BY property, level, reference, study"
DESCRIBED = {"thresholds": THRESHOLDS, "engines": ENGINES, "agreement": AGREEMENT}


def omissions(results: Results) -> list[str]:
    """What is stored and cannot be drawn, one sentence each."""
    counted = {
        "belong to a checkpoint or run that is not described": _rows(results, HOMELESS),
        "belong to a checkpoint without a measured loss": _rows(results, UNPLACED),
    }
    return [f"{rows[0]['scores']:,} stored scores {reason} and are not shown." for reason, rows in counted.items() if rows[0]["scores"]]


def gather(results: Results, *, task: str | None = None, crossings: bool = True) -> list[Study]:
    """Every study in the results, by name; with all tasks or one. `crossings` and what follows from them, as seeds do, can be left out."""
    runs = _rows(results, RUNS)
    losses, scores = _rows(results, LOSSES), _scores(results, task)
    checkpoints = _by_run(_rows(results, CHECKPOINTS))
    described = {name: _rows(results, sql) for name, sql in DESCRIBED.items()}
    compared = _rows(results, SAME_CURVE)
    studies = []
    for name in sorted({row["study"] for row in runs}):
        study = _study(name, [row for row in runs if row["study"] == name], checkpoints, losses, scores)
        mine = {key: tuple(row for row in rows if (row["study"] or "unnamed") == name) for key, rows in described.items()}
        study = replace(study, thresholds=mine["thresholds"], agreement=mine["agreement"])
        analysed = {(row["loss_dataset"], row["loss_unit"]) for row in study.thresholds}
        tokenizers = len({(run["tokenizer"], run["vocab_size"]) for run in study.runs})
        own, parents = ([axis for axis in study.axes if axis.of_parent == before] for before in (False, True))
        study = replace(
            study, axes=tuple(own), axis=headline_axis(own, analysed, tokenizers), parents=headline_axis(parents, set(), tokenizers)
        )
        study = _described(study, mine["engines"], (row for row in compared if name in _studies(row)))
        studies.append(with_seeds(results, with_crossings(results, study)) if crossings else study)
    return studies


def _studies(row: Row) -> list[str]:
    """Which studies a comparison is about: runs of several may be compared with each other."""
    name = row["study"] or "unnamed"
    return [name, *name.split("+")]


def _described(study: Study, engines: Iterable[Row], compared: Iterable[Row]) -> Study:
    """With what is said of each panel: by which engines it was scored, and how runs compare on the metric and the loss shown first."""
    scored, same = _by_form(engines), _by_form(compared)
    panels = []
    for panel in study.panels:
        form = (panel.task, panel.format, panel.shots)
        shown = (panel.curve.metric, *((study.axis.dataset, study.axis.unit) if study.axis else ()))
        mine = tuple(row for row in same.get(form, ()) if (row["metric"], row["loss_dataset"], row["loss_unit"]) == shown)
        panels.append(replace(panel, engines=tuple(scored.get(form, ())), same_curve=mine))
    return replace(study, panels=tuple(panels))


def _by_form(rows: Iterable[Row]) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["task"], row["format"], row["shots"]].append(row)
    return groups


def _scores(results: Results, task: str | None) -> list[dict[str, Any]]:
    rows = _rows(results, SCORES.format(view="curve"), (task,))
    if _rows(results, RESCORED)[0]["judged"]:
        rows += _rows(results, SCORES.format(view="curve_of_samples"), (task,))
    return rows


def _rows(results: Results, sql: str, params: Sequence[Any] = ()) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = results.query(sql, params).to_pylist()
    return rows


def _by_run(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["run_id"]].append(row)
    return groups


def _study(name: str, runs: list[dict[str, Any]], checkpoints: dict[str, list[Row]], losses: list[Any], scores: list[Any]) -> Study:
    rows = [(index, row) for index, run in enumerate(runs) for row in checkpoints.get(run["run_id"], ())]
    by_id = {row["checkpoint_id"]: place for place, (_, row) in enumerate(rows)}
    sizes: dict[str, int | None] = {}
    for run in runs:
        sizes.setdefault(run["size"], run["params"])
    return Study(
        name=name,
        sizes=tuple(Size(size, params, slot) for slot, (size, params) in enumerate(sizes.items())),
        runs=tuple(runs),
        checkpoints=tuple(Checkpoint(index, row["step"], row["tokens"], row["flops"]) for index, row in rows),
        axes=_axes(losses, by_id),
        axis=None,
        panels=_panels(scores, by_id),
        thresholds=(),
    )


def _axes(losses: Iterable[Row], by_id: dict[str, int]) -> tuple[LossAxis, ...]:
    values: dict[tuple[str, str], list[float | None]] = defaultdict(lambda: [None] * len(by_id))
    for row in losses:
        if row["checkpoint_id"] in by_id:
            values[row["dataset"] or "", row["unit"] or ""][by_id[row["checkpoint_id"]]] = _finite(row["value"])

    def order(key: tuple[str, str]) -> tuple[int, str, bool, str]:
        dataset, unit = key
        return {"heldout": 0, "train": 1}.get(dataset, 2), dataset, unit != "nats/token", unit

    return tuple(LossAxis(*key, values[key]) for key in sorted(values, key=order))


def _panels(scores: Iterable[Row], by_id: dict[str, int]) -> tuple[Panel, ...]:
    groups: dict[tuple[Any, ...], dict[str, list[tuple[int, Row]]]] = defaultdict(lambda: defaultdict(list))
    for row in scores:
        place = by_id.get(row["checkpoint_id"])
        if place is not None:
            groups[row["task"], row["format"], row["shots"]][row["metric"]].append((place, row))
    panels = []
    for task, format_, shots in sorted(groups, key=lambda key: tuple(str(part) for part in key)):
        found = groups[task, format_, shots]
        metrics = sorted(found)
        curves = tuple(_curve(metric, found[metric], len(by_id)) for metric in metrics)
        panels.append(Panel(task, format_, shots, curves, headline_metric(format_, metrics)))
    return tuple(panels)


def _curve(metric: str, rows: list[tuple[int, Row]], length: int) -> Curve:
    values: list[float | None] = [None] * length
    stderr: list[float | None] = [None] * length
    items: list[int | None] = [None] * length
    for place, row in rows:
        values[place], stderr[place], items[place] = _finite(row["value"]), _finite(row["stderr"]), row["n"]
    chance = [row["chance"] for _, row in rows if _finite(row["chance"]) is not None]
    better = next((row["higher_is_better"] for _, row in rows if row["higher_is_better"] is not None), True)
    extremes = (min(chance), max(chance)) if chance else None
    return Curve(metric, better, extremes, values, stderr, items)


def _finite(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
