"""Scaling laws of a results directory: the losses at the ends of its runs, and the thresholds that are stored beside them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

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


def laws(
    results: Path | str,
    filters: Filters,
    *,
    eta: float | None = None,
    tokens: float | None = None,
    margin: float = 0.02,
    compute: float | None = None,
) -> pa.Table:
    """The law of each loss that passes the filters; sizes at `eta`, or at the stored thresholds of tasks where it is None.

    Raises UserError when nothing passes, or no loss has enough runs for a law.
    """
    if not all(given is None or 0 < given < math.inf for given in (margin, tokens, compute)):
        raise UserError("Margin, tokens and compute are numbers above 0.", "Give them as in --margin 0.02 --tokens 4e12 --compute 1e23.")
    stored = Results(results)
    measured = measured_losses(stored, filters)
    etas: dict[tuple[str | None, str, str], list[tuple[str | None, float]]] = {}
    if eta is not None:
        etas = {(one.study, one.dataset, one.unit): [(None, eta)] for one in measured}
    else:
        for row in stored.query("SELECT * FROM thresholds WHERE eta IS NOT NULL ORDER BY eta, task").to_pylist():
            if all(row[name] in values for name, values in filters.columns().items()):
                etas.setdefault((row["study"], row["loss_dataset"], row["loss_unit"]), []).append((row["task"], row["eta"]))
    with Board() as board:

        def progress(done: int, total: int, what: str) -> None:
            board.show("scaling", done, total, what)

        found = scaling(measured, etas, tokens=tokens, margin=margin, compute=compute, progress=progress)
    if not found.num_rows:
        raise UserError("No loss has the runs for a law.", "L(N, D) needs six runs of two sizes, L(N) four.")
    return found


def gains(found: pa.Table) -> list[dict[str, Any]]:
    """For eyes: what doubling the size gains, two rows a loss, at fixed data and at fixed compute."""
    rows = []
    for row in {(row["study"], row["loss_dataset"], row["loss_unit"]): row for row in found.to_pylist()}.values():
        told = {name: row[name] for name in ("study", "loss_dataset", "loss_unit", "margin")}
        for fixed, name, outside in (("data", "params_at_margin", "margin"), ("compute", "params_at_margin_compute", "margin_compute")):
            if row[f"{outside}_extrapolated"] is None:
                continue
            at = "the same tokens" if fixed == "data" else f"{row['compute']:.3g} FLOPs"
            sizes = {"params": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]}
            told_from = "extrapolated: outside the runs" if row[f"{outside}_extrapolated"] else "measured"
            rows.append(told | {"fixed": fixed, "at": at, "range": told_from} | sizes)
    return rows


def measured_losses(stored: Results, filters: Filters, *, every_checkpoint: bool = False) -> list[Losses]:
    """Each loss that passes the filters at the ends of its runs, or at every checkpoint.

    Raises UserError when there is none.
    """
    wanted = {name: values for name, values in filters.columns().items() if name in ("study", "loss_dataset")}
    columns = {"study": "r.study", "loss_dataset": "l.dataset"}
    where = "".join(f" AND {columns[name]} IN ({', '.join('?' for _ in values)})" for name, values in wanted.items())
    rows = stored.query(_LOSSES + where, [value for values in wanted.values() for value in values])
    measured = split(rows, every_checkpoint=every_checkpoint)
    if not measured:
        raise UserError(
            "No loss of a run with known size and tokens passes the filters.", "Drop a filter, or import `params` and `tokens`."
        )
    return measured


def split(rows: pa.Table, *, every_checkpoint: bool = False) -> list[Losses]:
    """Each loss at the ends of its runs or at every checkpoint, by name."""
    names = list(zip(*(rows[name].to_pylist() for name in ("study", "loss_dataset", "loss_unit")), strict=True))
    columns = (np.asarray(rows["run_id"].to_pylist()), model_sizes(rows), numbers(rows, "tokens"), numbers(rows, "loss"))
    places: dict[tuple[str | None, str, str], list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    chosen = ((key, [column[mine] for column in columns]) for key, mine in sorted(places.items(), key=str))
    return [Losses(*key, *(own[1:] if every_checkpoint else ends(*own))) for key, own in chosen]
