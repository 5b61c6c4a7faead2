"""The forecast of Gadre et al. 2024 (arXiv 2403.08540) from their published models, with their laws.

    L(C, M) = E + (a M^eta + b M^-eta) C^-eta    with C = 6 N D and M = D / N: E + a' N^-2eta + b' D^-2eta, four parameters
    error(L) = epsilon - k exp(-gamma L)

fitted by least squares to 0.011B, 0.079B, 0.154B and 0.411B parameters at 20 tokens a parameter and 0.011B at 320; the second
law also to 1.4B at 20. Loss is that on C4's validation set, error the mean over the tasks on which some 0.154B model is at
least 10 points above chance: 17 of the 46 published. Which models and tasks they took is inferred; the figures agree.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from losslens.analysis.curves import Floats
from losslens.analysis.laws import Law, column, grid
from losslens.results import Results

SMALL, LARGE, TARGET = 153_677_376, 1_439_795_200, 6_889_410_560


def _tied(p: Floats, x: Floats) -> Floats:
    slope = np.exp(column(p, 3))
    return np.asarray(column(p, 0) + np.exp(column(p, 1) - slope * x[0]) + np.exp(column(p, 2) - slope * x[1]))


LOSS = Law(
    "Gadre", "E + a' / N^2eta + b' / D^2eta", 4, _tied, lambda x, y: grid([1, 1.5, 2], [-1, 0, 1], [-1, 0, 1], np.log([0.1, 0.3, 0.6]))
)
ERROR = Law(
    "Gadre's error",
    "epsilon - k exp(-gamma L)",
    3,
    lambda p, x: np.asarray(column(p, 0) - np.exp(column(p, 1) - np.exp(column(p, 2)) * x[0])),
    lambda x, y: grid([0.75, 0.85, 0.95], np.linspace(-1, 2, 7), np.log([0.3, 0.5, 0.8, 1.2])),
)


def models(results: Results, corpus: str) -> list[dict[str, Any]]:
    """One row a model: size, tokens, loss on C4 and mean accuracy over the 17 tasks."""
    able = results.query(
        "SELECT task FROM curve WHERE study = 'gadre' AND loss_dataset = 'c4_val' AND params = ?"
        " GROUP BY task HAVING max(value - chance) >= 0.1",
        [SMALL],
    )
    tasks = able["task"].to_pylist()
    assert len(tasks) == 17
    names = ", ".join("?" for _ in tasks)
    found: list[dict[str, Any]] = results.query(
        "SELECT c.params, c.tokens, avg(c.loss) AS loss, avg(c.value) AS accuracy FROM curve AS c JOIN runs AS r USING (run_id)"
        f" WHERE c.study = 'gadre' AND c.loss_dataset = 'c4_val' AND r.corpus = ? AND c.task IN ({names}) GROUP BY ALL ORDER BY 1, 2",
        [corpus, *tasks],
    ).to_pylist()
    return found


def relative_errors(results: Results, corpus: str, *, with_1b: bool) -> float:
    """By how many per cent the forecast of the 6.9B model's mean error misses."""
    rows = models(results, corpus)
    smallest = min(row["params"] for row in rows)
    ratio = {id(row): round(row["tokens"] / row["params"]) for row in rows}
    first = [row for row in rows if row["params"] < LARGE and (ratio[id(row)] == 20 or (row["params"], ratio[id(row)]) == (smallest, 320))]
    second = first + [row for row in rows if with_1b and row["params"] == LARGE and ratio[id(row)] == 20]
    (target,) = (row for row in rows if row["params"] == TARGET)
    assert len(first) == 5
    scale = np.log(np.array([[1e8], [1e10]]))
    loss = LOSS.fit(_x(first) - scale, _column(first, "loss"))
    error = ERROR.fit(_column(second, "loss")[None, :], 1 - _column(second, "accuracy"))
    assert loss is not None and error is not None
    predicted = error.at(loss.at(_x([target]) - scale)[None, :])[0]
    return float(100 * abs(predicted / (1 - target["accuracy"]) - 1))


def _column(rows: list[dict[str, Any]], name: str) -> Floats:
    return np.array([float(row[name]) for row in rows])


def _x(rows: list[dict[str, Any]]) -> Floats:
    return np.log(np.stack([_column(rows, "params"), _column(rows, "tokens")]))
