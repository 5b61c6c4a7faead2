"""For which metrics a threshold stays: the verdicts on one task under all its metrics, side by side.

A jump that only accuracy shows is the metric's; one that the probability of the right option shows at the same loss is the model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa

from losslens.analysis.curves import NO_CHANCE

Stays = Literal["yes", "no", "none", "unknown"]

CURVE = ("study", "task", "format", "shots", "loss_dataset", "loss_unit")
_SAID = ("verdict", "eta", "eta_low", "eta_high")


def agreement(thresholds: pa.Table) -> list[dict[str, Any]]:
    """One row for each task, format and loss in rows of view `thresholds`: `stays`, `reason`, and for each metric M of any of them
    `M_verdict`, `M_eta`, `M_eta_low`, `M_eta_high`, None where the task has no such metric."""
    rows = thresholds.to_pylist()
    metrics = sorted({row["metric"] for row in rows})
    found: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in CURVE), {})[row["metric"]] = row
    table = []
    for key, by_metric in found.items():
        stays, reason = judged([by_metric[name] for name in metrics if name in by_metric])
        said = {f"{name}_{column}": by_metric.get(name, {}).get(column) for name in metrics for column in _SAID}
        table.append(dict(zip(CURVE, key, strict=True)) | {"stays": stays, "reason": reason} | said)
    return table


def judged(rows: Sequence[Mapping[str, Any]]) -> tuple[Stays, str]:
    """Whether the threshold stays under every metric, and why.

    Metrics without a chance level and those with the verdict `too_few` do not count. `yes`: at least two count, all are emergent, and
    one loss lies in all their intervals. `no`: some are emergent and others not, or no loss lies in all intervals. `none`: no metric
    has a threshold. `unknown`: fewer than two count.
    """
    counted = [row for row in rows if row["metric"] not in NO_CHANCE and row["verdict"] != "too_few"]
    emergent = [row for row in counted if row["verdict"] == "emergent"]
    if not emergent:
        return ("none", _listed(counted)) if len(counted) > 1 else ("unknown", "fewer than two metrics have a verdict")
    if len(emergent) < len(counted):
        return "no", _listed(counted)
    if len(counted) < 2:
        return "unknown", f"only {counted[0]['metric']} has a verdict"
    low, high = max(emergent, key=lambda row: row["eta_low"]), min(emergent, key=lambda row: row["eta_high"])
    if low["eta_low"] <= high["eta_high"]:
        return "yes", f"emergent under {_names(emergent)}; {low['eta_low']:.4g} to {high['eta_high']:.4g} lies in all intervals"
    return "no", f"{low['metric']} has it above {low['eta_low']:.4g}, {high['metric']} below {high['eta_high']:.4g}"


def _listed(rows: Sequence[Mapping[str, Any]]) -> str:
    verdicts = dict.fromkeys(row["verdict"] for row in rows)
    return "; ".join(f"{verdict} under {_names([row for row in rows if row['verdict'] == verdict])}" for verdict in verdicts)


def _names(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(row["metric"] for row in rows)
