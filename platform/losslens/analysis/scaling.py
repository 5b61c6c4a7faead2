"""How loss follows size and data, and what follows from that: the size at which it passes a threshold, and the size beyond
which a larger model gains next to nothing (`marginal`).

    L(N, D) = A / N^alpha + B / D^beta + E                               without B where runs cannot tell
    N(eta, D) = (A / (eta - E - B / D^beta))^(1 / alpha)                 the paper's Eq. 5, with tokens

Intervals are 95 %, over resamples of runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from losslens.analysis.curves import Floats
from losslens.analysis.laws import Fit, Law
from losslens.analysis.marginal import marginal
from losslens.analysis.resampling import ends_of
from losslens.analysis.scaling_laws import SIZE, TOKENS_AND_SIZE, exponent

_F, _S, _I, _B = pa.float64(), pa.string(), pa.int64(), pa.bool_()
COLUMNS = pa.schema(
    [("study", _S), ("loss_dataset", _S), ("loss_unit", _S), ("law", _S), ("a", _F), ("alpha", _F), ("b", _F), ("beta", _F)]
    + [("floor", _F), ("fit_error", _F), ("held_out_error", _F), ("n_runs", _I), ("n_sizes", _I), ("tokens", _F), ("task", _S)]
    + [("eta", _F), ("params_at_eta", _F), ("params_at_eta_low", _F), ("params_at_eta_high", _F)]
    + [("margin", _F), ("params_at_margin", _F), ("params_at_margin_low", _F), ("params_at_margin_high", _F)]
    + [("margin_extrapolated", _B), ("compute", _F), ("params_at_margin_compute", _F), ("params_at_margin_compute_low", _F)]
    + [("params_at_margin_compute_high", _F), ("margin_compute_extrapolated", _B), ("method", _S)]
)
_RESAMPLES = 100
_SAME_TOKENS = 1.05  # ratio up to which runs read equally much, so that only L(N) can be told
Progress = Callable[[int, int, str], None]
Named = tuple[str | None, str, str]  # study, dataset, unit


@dataclass(frozen=True, slots=True, eq=False)
class Losses:
    """One loss at the ends of R runs: `params`, `tokens`, `loss`, each [R]."""

    study: str | None
    dataset: str
    unit: str
    params: Floats
    tokens: Floats
    loss: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Scaled:
    """A law of `scaling_laws` fitted to losses; `a` and `b` belong to parameters and tokens themselves."""

    fit: Fit
    centre: Floats

    @property
    def constants(self) -> dict[str, float | None]:
        """A, alpha, B, beta, E; B and beta are None in a law of size alone."""
        p = self.fit.parameters
        if self.fit.law is SIZE:
            return {
                "a": _moved(p[0], p[1], self.centre[0]),
                "alpha": float(exponent(p[1])),
                "b": None,
                "beta": None,
                "floor": float(p[2] ** 2),
            }
        size, data = _moved(p[0], p[2], self.centre[0]), _moved(p[1], p[3], self.centre[1])
        return {"a": size, "alpha": float(exponent(p[2])), "b": data, "beta": float(exponent(p[3])), "floor": float(p[4] ** 2)}

    def loss(self, params: Floats, tokens: Floats) -> Floats:
        """The law's loss; arrays [T]."""
        return self.fit.at(np.log(np.stack([params, tokens])) - self.centre[:, None])

    def params_at(self, eta: float, tokens: float) -> float:
        """The size at which the loss passes `eta` after `tokens`; infinite where no size reaches it."""
        c = self.constants
        data = 0.0 if c["b"] is None or c["beta"] is None else c["b"] / tokens ** c["beta"]
        left = eta - (c["floor"] or 0.0) - data
        return _power((c["a"] or 0.0) / left, 1 / (c["alpha"] or 1.0)) if left > 0 else float("inf")


def _moved(level: float, slope: float, centre: float) -> float:
    return float(np.exp(np.clip(level + float(exponent(np.asarray(slope))) * centre, -700, 700)))


def _power(base: float, exponent: float) -> float:
    return float(np.exp(np.clip(exponent * np.log(base), -700, 700))) if base > 0 else 0.0


def fitted(losses: Losses, weights: Floats | None = None, begin: Scaled | None = None) -> Scaled | None:
    """L(N, D); L(N) where all runs read equally much or are too few for more; None for fewer still or a single size.

    Huber's loss on logarithms from many starts. `weights` [R] counts runs; `begin` is where a resample starts from.
    """
    if len(np.unique(losses.params)) < 2:
        return None
    alike = losses.tokens.max() <= _SAME_TOKENS * losses.tokens.min()
    law: Law = SIZE if alike or len(losses.loss) <= TOKENS_AND_SIZE.parameters else TOKENS_AND_SIZE
    sizes = np.log(np.stack([losses.params, losses.tokens]))
    centre = sizes.mean(axis=1)
    found = law.fit(sizes - centre[:, None], losses.loss, weights, begin.fit.parameters if begin else None)
    return None if found is None else Scaled(found, centre)


def scaling(
    measured: Sequence[Losses],
    etas: Mapping[Named, Sequence[tuple[str | None, float]]],
    *,
    tokens: float | None = None,
    margin: float = 0.02,
    compute: float | None = None,
    seed: int = 0,
    progress: Progress = lambda done, total, what: None,
) -> pa.Table:
    """One row for each loss and threshold, or one without threshold where there is none; columns: `COLUMNS`.

    `etas` maps (study, dataset, unit) to (task, eta). `tokens` defaults to the most that a run of the study read, `compute` (FLOPs, at
    which `margin` is asked too) to the most that one took.
    """
    rows: list[dict[str, Any]] = []
    for number, losses in enumerate(measured):
        progress(number, len(measured), losses.dataset)
        best = fitted(losses)
        if best is None:
            continue
        told = {"study": losses.study, "loss_dataset": losses.dataset, "loss_unit": losses.unit}
        shared = told | best.constants | _quality(losses, best) | {"method": f"law/1, {_RESAMPLES} resamples of runs, seed {seed}"}
        resamples = _resamples(losses, best, seed)
        refits = [one.constants for one in resamples]
        beyond = marginal(best.constants, refits, losses.params, losses.tokens, margin=margin, compute=compute)
        asked: Sequence[tuple[str | None, float | None]] = etas.get((losses.study, losses.dataset, losses.unit)) or [(None, None)]
        for task, eta in asked:
            at = tokens or float(losses.tokens.max())
            row = shared | beyond | {"tokens": None if best.fit.law is SIZE else at, "task": task, "eta": eta}
            if eta is not None:
                row |= ends_of(best.params_at(eta, at), [one.params_at(eta, at) for one in resamples], "params_at_eta")
            rows.append(row)
    progress(len(measured), len(measured), "")
    return pa.Table.from_pylist(rows, schema=COLUMNS)


def _quality(losses: Losses, best: Scaled) -> dict[str, Any]:
    """Mean relative error of the fit, and of the largest size forecast from the others."""
    largest = losses.params == losses.params.max()
    rest = Losses(losses.study, losses.dataset, losses.unit, losses.params[~largest], losses.tokens[~largest], losses.loss[~largest])
    again = fitted(rest) if (~largest).any() else None
    held = None if again is None else _relative(again, losses.params[largest], losses.tokens[largest], losses.loss[largest])
    counted = {"n_runs": len(losses.loss), "n_sizes": len(np.unique(losses.params)), "law": best.fit.law.name}
    return counted | {"fit_error": _relative(best, losses.params, losses.tokens, losses.loss), "held_out_error": held}


def _relative(law: Scaled, params: Floats, tokens: Floats, loss: Floats) -> float:
    return float(np.mean(np.abs(law.loss(params, tokens) / loss - 1)))


def _resamples(losses: Losses, best: Scaled, seed: int) -> list[Scaled]:
    count = len(losses.loss)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    found = [fitted(losses, weights.astype(np.float64), best) for weights in drawn]
    return [one for one in found if one is not None]
