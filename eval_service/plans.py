"""Plans that are kept for the next checkpoint, and requests in blocks: memory is bounded whatever a task's size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from losslens.tasks.requests import LogLikelihood, Request

BLOCK = 8_000_000  # characters planned together: at worst, a token each, 100 MB of plan
KEPT = 8 * BLOCK  # of plans that stay

P = TypeVar("P")


class Plans(Generic[P]):
    """The newest plans by what they were made for, up to `kept` characters of text."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._plans: OrderedDict[tuple[object, ...], tuple[P, int]] = OrderedDict()

    def of(self, requests: tuple[Request, ...], *rest: object, make: Callable[[], P]) -> P:
        """The plan for these requests and whatever else it depends on (`rest`, hashable), made where it is not there."""
        key = (requests, *rest)
        if key in self._plans:
            self._plans.move_to_end(key)
            return self._plans[key][0]
        plan = make()
        self._plans[key] = plan, sum(sizes(requests))
        while sum(size for _, size in self._plans.values()) > self._kept and len(self._plans) > 1:
            self._plans.popitem(last=False)
        return plan


def blocks(requests: Sequence[Request], most: int = BLOCK) -> Iterator[tuple[Request, ...]]:
    """The requests in order, as many at a time as hold `most` characters (one at least)."""
    first, held = 0, 0
    for i, size in enumerate(sizes(requests)):
        if held and held + size > most:
            yield tuple(requests[first:i])
            first, held = i, 0
        held += size
    if first < len(requests):
        yield tuple(requests[first:])


def sizes(requests: Sequence[Request]) -> Iterator[int]:
    """Characters of each request; a context that is the one before counts once, as it is computed once."""
    before = None
    for request in requests:
        scored = len(request.continuation) if isinstance(request, LogLikelihood) else 0
        yield 1 + scored + (0 if request.context is before or request.context == before else len(request.context))
        before = request.context
