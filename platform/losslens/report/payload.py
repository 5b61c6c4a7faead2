"""The numbers behind the figures as compact JSON: every checkpoint once, every metric as one column over checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from losslens.analysis.curves import Floats
from losslens.analysis.seeds import Spread, at_each_loss
from losslens.report.study import Curve, Group, LossAxis, Panel, Study
from losslens.report.words import conditions, count, title, verdict

_DIGITS = 5  # significant: far below any standard error


def payload(studies: Iterable[Study]) -> str:
    """JSON that may stand inside a `<script>` element: no `<`, `>`, `&`, no line separators, NaN nowhere."""
    return as_json([plain(study) for study in studies])


def as_json(value: Any) -> str:
    """Compact, without `<`, `>`, `&`; what is not finite is an error."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def plain(study: Study) -> dict[str, Any]:
    """What the figures of one study are drawn from."""
    return {
        "sizes": [{"name": size.name} for size in study.sizes],
        "groups": [_group(group) for group in study.groups],
        "runs": [{"id": run["run_id"], "size": study.size_of(index).slot, "seed": run["seed"]} for index, run in enumerate(study.runs)],
        "run": [checkpoint.run for checkpoint in study.checkpoints],
        "step": [checkpoint.step for checkpoint in study.checkpoints],
        "tokens": [checkpoint.tokens for checkpoint in study.checkpoints],
        "flops": _rounded(checkpoint.flops for checkpoint in study.checkpoints),
        "axes": [{"label": axis.label, "unit": axis.unit, "values": _rounded(axis.values)} for axis in study.axes],
        "axis": next((index for index, axis in enumerate(study.axes) if axis is study.axis), 0),
        "tuning": None if study.parents is None else _tuning(study.parents, study.amounts),
        "panels": [_panel(study, panel) for panel in study.panels],
    }


def _group(group: Group) -> dict[str, Any]:
    return {"by": group.by, "names": group.names, "of": group.of, "notes": [count(params) for params in group.params]}


def _tuning(parents: LossAxis, amounts: list[int]) -> dict[str, Any]:
    return {"label": parents.label, "values": _rounded(parents.values), "amounts": amounts}


def _panel(study: Study, panel: Panel) -> dict[str, Any]:
    return {
        "title": title(panel, study.panels),
        "task": panel.task,
        "format": panel.format,
        "default": panel.default,
        "level": panel.level,
        "crossings": [[crossing.run, crossing.loss, crossing.tokens, crossing.flops] for crossing in panel.crossings],
        "curves": [_curve(study, panel, curve) for curve in panel.curves],
        "seeds": None if panel.seeds is None else _seeds(study, panel.seeds),
    }


def _seeds(study: Study, spread: Spread) -> dict[str, Any]:
    """Runs as [place, scores, standard errors, whether clearly above]; groups at a loss as [loss, share, low, high, k, n, dip p]."""
    places = {run["run_id"]: index for index, run in enumerate(study.runs)}
    runs = [
        [places[run], _rounded(_known(spread.value[k])), _rounded(_known(spread.noise[k])), spread.above[k].astype(int).tolist()]
        for k, run in enumerate(spread.runs)
    ]
    groups = [
        {
            "slot": study.size_of(places[alike.runs[0]]).slot,
            "name": " ".join(filter(None, (alike.size, alike.variant))) or "unknown",
            "at": [
                [*_rounded((at.loss, at.half.k / at.half.n, at.half.low, at.half.high)), at.half.k, at.half.n, *_rounded((at.dip_p,))]
                for at in at_each_loss(spread, members)
            ],
        }
        for alike, members in spread.groups
    ]
    return {"losses": _rounded(spread.losses.tolist()), "level": _short(spread.level), "runs": runs, "groups": groups}


def _known(values: Floats) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def _curve(study: Study, panel: Panel, curve: Curve) -> dict[str, Any]:
    return {
        "metric": curve.metric,
        "better": "higher" if curve.higher_is_better else "lower",
        "chance": curve.chance,
        "how": conditions(panel, curve),
        "n": curve.n[0] if curve.n and curve.n[0] == curve.n[1] else list(curve.items),
        "values": _rounded(curve.values),
        "stderr": _rounded(curve.stderr),
        "thresholds": _thresholds(study, panel, curve),
    }


def _thresholds(study: Study, panel: Panel, curve: Curve) -> dict[str, Any]:
    """By index of the loss axis: what the band shows and what the sentence above the figure says."""
    found = {}
    for index, axis in enumerate(study.axes):
        row = study.threshold(panel, curve, axis)
        if row is not None:
            eta = [row["eta"], row["eta_low"], row["eta_high"]] if row["verdict"] == "emergent" else None
            found[str(index)] = {"verdict": row["verdict"], "eta": eta, "text": verdict(row)}
    return found


def _rounded(values: Iterable[float | None]) -> list[float | int | None]:
    return [None if value is None else _short(value) for value in values]


def _short(value: float) -> float | int:
    rounded = float(f"{value:.{_DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
