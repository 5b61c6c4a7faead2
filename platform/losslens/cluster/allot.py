"""Which run gets how many workers of a shared cluster: one pure function.

Ray's elastic runs each ask for all they can use, first come, first served. A family wants every size to move, and the size
that will end last to move fastest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demand:
    """What one run asks for: between `low` and `high` workers, with `work` (FLOPs, or any common unit) still to do.

    `held` is the workers it has now: where not everybody's `low` fits, those who hold workers keep them.
    """

    run: str
    low: int
    high: int
    work: float
    held: int = 0


def allot(slots: int, demands: Sequence[Demand]) -> dict[str, int]:
    """Workers for each run, 0 or between its low and high; in all at most `slots`.

    Every run gets its `low` first, in the order given with holders before newcomers. What is left goes one by one to the
    run that has the most work left for each of its workers, which is the one that would end last.
    """
    shares = dict.fromkeys((demand.run for demand in demands), 0)
    left = slots
    for demand in sorted(demands, key=lambda demand: demand.held == 0):  # stable: otherwise first come
        if demand.low <= left:
            shares[demand.run] = demand.low
            left -= demand.low
    while left > 0:
        hungry = [demand for demand in demands if 0 < shares[demand.run] < demand.high]
        if not hungry:
            break
        slowest = max(hungry, key=lambda demand: demand.work / shares[demand.run])
        shares[slowest.run] += 1
        left -= 1
    return shares


def reason(run: str, slots: int, demands: Sequence[Demand], shares: dict[str, int]) -> str:
    """Why a run got nothing, in words; empty when it got something."""
    if shares.get(run):
        return ""
    low = next(demand.low for demand in demands if demand.run == run)
    others = sum(shares.values())
    if slots < low:
        return f"needs {low} train slots, the cluster has {slots}"
    return f"needs {low} train slots, other runs hold {others} of {slots}"
