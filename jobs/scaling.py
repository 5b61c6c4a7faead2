"""Scaling laws of a results directory: the losses at the ends of its runs, and the thresholds that are stored beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from jobs.filters import Filters
from jobs.progress import Board
from losslens.analysis.curves import numbers
from losslens.analysis.ladder import ends, model_sizes
from losslens.analysis.scaling import Losses, scaling
from losslens.errors import UserError
from losslens.results import Results

_LOSSES = """
SELECT r.study, l.dataset AS loss_dataset, l.unit AS loss_unit, c.run_id, c.tokens, l.value AS loss,
    r.params, r.params_non_embedding
FROM losses AS l JOIN checkpoints AS c USING (checkpoint_id) JOIN runs AS r USING (run_id)
WHERE c.tokens > 0 AND r.params IS NOT NULL AND l.value IS NOT NULL
"""


def laws(results: Path | str, filters: Filters, *, eta: float | None = None, tokens: float | None = None, margin: float = 0.02) -> pa.Table:
    """The law of each loss that passes the filters; sizes at `eta`, or at the stored thresholds of tasks where it is None.

    Raises UserError when nothing passes, or no loss has enough runs for a law.
    """
    if margin <= 0 or (tokens is not None and tokens <= 0):
        raise UserError("Margin and tokens are numbers above 0.", "Give them as in --margin 0.02 --tokens 4e12.")
    stored = Results(results)
    wanted = {name: values for name, values in filters.columns().items() if name in ("study", "loss_dataset")}
    columns = {"study": "r.study", "loss_dataset": "l.dataset"}
    where = "".join(f" AND {columns[name]} IN ({', '.join('?' for _ in values)})" for name, values in wanted.items())
    measured = split(stored.query(_LOSSES + where, [value for values in wanted.values() for value in values]))
    if not measured:
        raise UserError(
            "No loss of a run with known size and tokens passes the filters.", "Drop a filter, or import `params` and `tokens`."
        )
    etas: dict[tuple[str | None, str, str], list[tuple[str | None, float]]] = {}
    if eta is not None:
        etas = {(one.study, one.dataset, one.unit): [(None, eta)] for one in measured}
    else:
        for row in stored.query("SELECT * FROM thresholds WHERE eta IS NOT NULL ORDER BY eta, task").to_pylist():
            if all(row[name] in values for name, values in filters.columns().items()):
                etas.setdefault((row["study"], row["loss_dataset"], row["loss_unit"]), []).append((row["task"], row["eta"]))
    with Board() as board:
        found = scaling(
            measured, etas, tokens=tokens, margin=margin, progress=lambda done, total, what: board.show("scaling", done, total, what)
        )
    if not found.num_rows:
        raise UserError("No loss has the runs for a law.", "L(N, D) needs six runs of two sizes, L(N) four.")
    return found


def split(rows: pa.Table) -> list[Losses]:
    """Each loss at the ends of its runs, by name."""
    names = list(zip(*(rows[name].to_pylist() for name in ("study", "loss_dataset", "loss_unit")), strict=True))
    columns = (np.asarray(rows["run_id"].to_pylist()), model_sizes(rows), numbers(rows, "tokens"), numbers(rows, "loss"))
    places: dict[tuple[str | None, str, str], list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    return [Losses(*key, *ends(*(column[mine] for column in columns))) for key, mine in sorted(places.items(), key=str)]
