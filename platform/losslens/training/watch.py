"""What a loop tells of itself between updates, and asks."""

from __future__ import annotations


class Watch:
    """What happens between updates; this one does nothing. `training/worker.py` has the one that writes."""

    save_at: frozenset[int] = frozenset()

    def save(self, tokens_per_second: float) -> None:
        """Called at each step of `save_at` with the mean rate since the last call, saving time left out."""

    def stepped(self) -> None:
        """Called after every update."""

    def wants_to_leave(self) -> bool:
        """Whether this rank was asked to save and leave."""
        return False

    def wants_state(self) -> bool:
        """Whether this rank wants all ranks to save a state together."""
        return False

    def save_state(self) -> None:
        """Called on every rank after the same update, once any rank wanted a state."""

    def leave(self) -> None:
        """Called on every rank after the same update, once any rank wanted to leave; training goes on when it returns."""
