"""Numbers and verdicts as words: the same phrases in the headline, the figures and the tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from losslens.report.study import Crossing, Curve, LossAxis, Panel, Row, Study, loss_name

VERDICTS = {
    "emergent": "stays at chance until the loss falls below a threshold (eta), then rises",
    "gradual": "improves from early on, or its stretch at chance was not measured",
    "inverse": "gets worse as the loss falls",
    "no_trend": "differs from chance, but does not move with the loss",
    "not_reached": "never clearly above chance at the losses measured here",
    "too_few": "has too few trained checkpoints to say",
}
ORDER = tuple(VERDICTS)
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def count(value: float | None) -> str:
    """Parameters and tokens: `1.18M`, `3T`; a dash for unknown."""
    if value is None:
        return "–"
    for factor, letter in _PREFIXES:
        if abs(value) >= factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.4g}"


def number(value: float | None, digits: int = 3) -> str:
    """A measured value with `digits` decimals; a dash for unknown."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def scientific(value: float | None) -> str:
    """FLOPs: `1.3e+17`, a dash for unknown."""
    return "–" if value is None else f"{value:.2e}"


def span(low: float | None, high: float | None, digits: int = 3) -> str:
    """An interval, or what is known of it."""
    return "" if low is None and high is None else f"[{number(low, digits)}, {number(high, digits)}]"


def several(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def title(panel: Panel, siblings: Iterable[Panel]) -> str:
    """The task's name; with its format and shots where the study holds the task in several forms."""
    same = [other for other in siblings if other.task == panel.task]
    parts = [panel.task]
    if len({other.format for other in same}) > 1:
        parts.append(panel.format)
    if len({other.shots for other in same}) > 1:
        parts.append("shots unknown" if panel.shots is None else f"{panel.shots}-shot")
    return " · ".join(parts)


def verdict(row: Row | None) -> str:
    """One sentence about one threshold row."""
    if row is None:
        return "No threshold has been computed for this metric on this loss."
    if row["verdict"] == "emergent":
        interval = span(row["eta_low"], row["eta_high"])
        return f"Emergent: appears at {loss_name(row['loss_dataset'])} {number(row['eta'])} {interval} {row['loss_unit']}.{_overlap(row)}"
    name = str(row["verdict"])
    return f"{name.replace('_', ' ').capitalize()}: {VERDICTS.get(name, 'a verdict this report does not know')}."


def _overlap(row: Row) -> str:
    above, below = row["first_above"], row["last_at_chance"]
    if above is None or below is None or above <= below:
        return ""
    return f" Checkpoints overlap: one is clearly above chance at {number(above)}, another still at chance at {number(below)}."


def answer(emergent: Sequence[tuple[str, float]], judged: Sequence[Panel], axis: LossAxis | None) -> str:
    """The headline. `emergent` holds (title, eta) from the highest loss to the lowest; `judged` have a verdict."""
    if axis is None:
        return "No loss has been measured yet."
    if not judged:
        return "No threshold has been computed yet."
    forms = "task" if len({panel.task for panel in judged}) == len(judged) else "task form"
    tasks = f"of {len(judged)} {forms}{'s' if len(judged) > 1 else ''}"
    if not emergent:
        return f"None {tasks} shows a loss threshold at the losses measured here."
    (first, high), (last, low) = emergent[0], emergent[-1]
    if len(emergent) == 1:
        return f"1 {tasks} appears at a loss threshold: {first} at {number(high)} ({axis.label})."
    found = f"from {first} at {number(high)} down to {last} at {number(low)}"
    return f"{len(emergent)} {tasks} appear at a loss threshold, {found} ({axis.label})."


def agreement_of_sizes(study: Study, panel: Panel, row: Row | None) -> str:
    """Whether the sizes cross at one loss: the spread of their half-gain losses beside what could explain it."""
    by_size = losses_by_size(study, panel.crossings)
    if panel.level is None or not by_size:
        return ""
    means = {name: sum(values) / len(values) for name, values in by_size.items()}
    half = f"{number(panel.level)}, half of the best gain over chance"
    if len(means) == 1:
        return f"Only {next(iter(means))} passes {half}."
    low, high = min(means, key=lambda name: means[name]), max(means, key=lambda name: means[name])
    spread = number(means[high] - means[low])
    parts = [f"The sizes pass {half}, at losses {number(means[low])} ({low}) to {number(means[high])} ({high}), a spread of {spread}"]
    gaps = sorted(crossing.gap for crossing in panel.crossings if crossing.gap is not None)
    if gaps:
        parts.append(f"neighbouring checkpoints lie {number(gaps[len(gaps) // 2])} apart there")
    if row is not None and row["verdict"] == "emergent" and None not in (row["eta_low"], row["eta_high"]):
        parts.append(f"the interval of eta is {number(row['eta_high'] - row['eta_low'])} wide")
    noise = [max(values) - min(values) for values in by_size.values() if len(values) > 1]
    if noise:
        parts.append(f"runs of one size differ by up to {number(max(noise))}")
    absent = [size.name for size in study.sizes if size.name not in means]
    if absent:
        parts.append(f"{several(absent)} {'does' if len(absent) == 1 else 'do'} not pass it")
    return "; ".join(parts) + "."


def comparisons(panel: Panel) -> list[tuple[str, str, str]]:
    """How runs compare at equal loss: for each property of runs its name, the verdict, and what it rests on; size first."""
    by_property: dict[str, list[Row]] = {}
    for row in sorted(panel.same_curve, key=lambda row: row["property"] != "size"):
        by_property.setdefault(row["property"], []).append(row)
    return [(name, _verdicts(rows), _contrast(rows)) for name, rows in by_property.items()]


def _verdicts(rows: Sequence[Row]) -> str:
    found = [row["verdict"] for row in rows]
    return found[0] if len(found) == 1 else several([f"{found.count(name)} {name}" for name in dict.fromkeys(sorted(found))])


def _contrast(rows: Sequence[Row]) -> str:
    """The one contrast of `rows`, or the one in which the scores differ most."""
    known = [row for row in rows if row["effect"] is not None]
    if not known:
        return f"({rows[0]['reason']})"
    row = max(known, key=lambda row: abs(row["largest"]))

    def points(name: str) -> str:
        return f"{_signed(row[name])} {span(row[f'{name}_low'], row[f'{name}_high'], 1)}"

    most = "differs most, " if len(rows) > 1 else ""
    why = f" ({row['reason']})" if row["reason"] else ""
    compared = f"{row['level']} against {row['reference']} {most}{points('effect')} points, where it is most {points('largest')}"
    return f"{compared}; margin {row['margin']:g} points, {row['n_runs']} runs{why}"


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{number(value, 1)}"


def losses_by_size(study: Study, crossings: Iterable[Crossing]) -> dict[str, list[float]]:
    """The crossing losses of each size's runs, in the order of sizes."""
    found: dict[str, list[float]] = {}
    for crossing in crossings:
        if crossing.loss is not None:
            found.setdefault(study.size_of(crossing.run).name, []).append(crossing.loss)
    return found


def conditions(panel: Panel, curve: Curve) -> str:
    """How the values of a curve were measured: items, shots, format, chance, engine."""
    parts = [_between(curve.n, "items", "number of items unknown")]
    parts.append("shots unknown" if panel.shots is None else f"{panel.shots}-shot")
    parts.append(f"format {panel.format}")
    parts.append(f"chance {number(curve.chance[1])}" if curve.chance else "chance unknown")
    engines = (f"{row['engine'] or 'engine unknown'} ({_checkpoints(row['checkpoints'])})" for row in panel.engines)
    versions = sorted({row["task_version"] for row in panel.engines if row["task_version"] is not None})
    parts.append("scored by " + several(list(engines)) if panel.engines else "engine unknown")
    return " · ".join(parts + ([f"task version {', '.join(map(str, versions))}"] if versions else []))


def _checkpoints(count: int) -> str:
    return "1 checkpoint" if count == 1 else f"{count:,} checkpoints"


def _between(extremes: tuple[int, int] | None, unit: str, unknown: str) -> str:
    if extremes is None:
        return unknown
    low, high = extremes
    return f"{low:,} {unit}" if low == high else f"{low:,} to {high:,} {unit}"
