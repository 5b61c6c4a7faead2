"""A forecast of the untuned eta from tuned models that are too weak to show the ability untuned.

Eta falls as the amount of tuning data goes to 0, and its limit is the threshold of models that were not tuned. The law is

    eta(D) = eta_0 + k D^p        k >= 0, p of `POWERS`

after the emergence law of Snell et al. 2024 (arXiv 2411.16035), who let the elbow follow a power of the amount of data and extrapolate
it to few-shot prompts. No amount says which p is right: each enters by its likelihood. D tokens, A amounts, B resamples, W powers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from losslens.analysis.curves import Floats
from losslens.analysis.tuning import KEY_COLUMNS, Amount, Tuned

POWERS = np.asarray([0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0])
MIN_AMOUNTS = 3  # as many as the law has parameters
_TAIL = 0.025
_THERE = ("emergent", "gradual")  # verdicts on parents that have some of the ability untuned

FORECASTS = pa.schema(
    [*KEY_COLUMNS, ("above", pa.float64()), ("verdict", pa.string())]
    + [(name, pa.float64()) for name in ("predicted", "predicted_low", "predicted_high", "actual", "actual_low", "actual_high", "error")]
    + [(name, pa.float64()) for name in ("constant", "linear", "power")]
    + [("reason", pa.string()), ("n_amounts", pa.int64()), ("n_parents", pa.int64()), ("n_runs", pa.int64())]
)


def forecasts(found: list[Tuned], above: float | None = None) -> pa.Table:
    """A row for each tuning and score: eta_0 from parents whose loss is above `above`, by default above the upper end of the untuned
    eta's interval, so that none of them has the ability untuned.

    `actual` is the untuned eta of all parents. Rivals: `constant`, eta at the smallest amount; `linear`, the straight line through the two
    smallest. Verdict: `forecast`, or `too_few`, with the `reason`.
    """
    return pa.Table.from_pylist([_forecast(one, above) for one in found], schema=FORECASTS)


def _forecast(one: Tuned, above: float | None) -> dict[str, Any]:
    untuned = next((amount for amount in one.amounts if amount.tokens == 0), None)
    actual = untuned.finding if untuned and untuned.finding.eta is not None else None
    cut = above if above is not None else actual.eta_high if actual else None
    weak = [amount.above(cut) if cut is not None else amount for amount in one.amounts]
    row: dict[str, Any] = one.key._asdict() | {"above": cut, "n_parents": max(int(a.curve.trained.sum()) for a in weak)}
    row["n_runs"] = max(len(np.unique(amount.curve.run)) for amount in weak)
    if actual:
        row |= {"actual": actual.eta, "actual_low": actual.eta_low, "actual_high": actual.eta_high}
    seen = [amount for amount in weak if amount.tokens and amount.finding.eta is not None]
    row["n_amounts"] = len(seen)
    there = next((amount.finding.verdict for amount in weak if amount.tokens == 0 and amount.finding.verdict in _THERE), None)
    if there:
        return row | {"verdict": "too_few", "reason": f"untuned it is {there} there: only weaker parents could tell"}
    if len(seen) < MIN_AMOUNTS:
        return row | {"verdict": "too_few", "reason": f"{len(seen)} amounts have an eta, and the law needs {MIN_AMOUNTS}"}
    return row | {"verdict": "forecast"} | _law(one, seen, actual.eta if actual else None)


def _law(one: Tuned, seen: list[Amount], actual: float | None) -> dict[str, Any]:
    tokens = np.asarray([amount.tokens for amount in seen], dtype=np.float64)
    eta = np.asarray([amount.finding.eta for amount in seen], dtype=np.float64)
    deviations = np.stack([one.resampled(amount) for amount in seen])
    sd = np.nanstd(deviations, axis=1)
    likelihood = relative_likelihood(tokens, eta, sd)
    whole = deviations[:, np.isfinite(deviations).all(axis=0)]
    drawn = np.stack([limits(tokens, eta + deviation, sd, power)[0] for power in POWERS for deviation in whole.T])
    weights = np.repeat(likelihood, whole.shape[1]) / whole.shape[1]
    low, middle, high = _quantiles(drawn, weights)
    return {
        "predicted": middle,
        "predicted_low": low,
        "predicted_high": high,
        "error": None if actual is None else middle - actual,
        "constant": float(eta[0]),
        "linear": float(eta[0] - tokens[0] * (eta[1] - eta[0]) / (tokens[1] - tokens[0])),
        "power": float(POWERS[likelihood.argmax()]),
    }


def limits(tokens: Floats, eta: Floats, sd: Floats, power: float) -> tuple[float, float]:
    """(eta_0, weighted squared residuals) of the best line in D^p that does not fall."""
    x, weight = (tokens / tokens.max()) ** power, sd**-2.0
    centre, level = np.average(x, weights=weight), np.average(eta, weights=weight)
    slope = max(float((weight * (x - centre) * (eta - level)).sum() / (weight * (x - centre) ** 2).sum()), 0.0)
    origin = float(level - slope * centre)
    return origin, float((weight * (eta - origin - slope * x) ** 2).sum())


def relative_likelihood(tokens: Floats, eta: Floats, sd: Floats) -> Floats:
    """Of each power, given etas that are known to `sd`; sums to 1."""
    squares = np.asarray([limits(tokens, eta, sd, power)[1] for power in POWERS])
    relative = np.exp(-(squares - squares.min()) / 2)
    likelihood: Floats = relative / relative.sum()
    return likelihood


def _quantiles(values: Floats, weights: Floats) -> tuple[float, float, float]:
    order = values.argsort()
    low, middle, high = np.interp([_TAIL, 0.5, 1 - _TAIL], np.cumsum(weights[order]) - weights[order] / 2, values[order])
    return float(low), float(middle), float(high)
