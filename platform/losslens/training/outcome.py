"""How a run ended. A module of its own, so that a driver reads it without what training imports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """`diverged` is the reason a run stopped early, None when it reached its budget."""

    run_id: str
    step: int
    attempt: int
    world_size: int
    seconds: float
    diverged: str | None = None
