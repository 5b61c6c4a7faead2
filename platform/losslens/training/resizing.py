"""When a group of workers is resized, saved, or started again: functions from what is known to what to do. No Ray in here.

Every planned change takes one way, whatever its reason (more workers, fewer, a node that drains): all ranks save a state and
stand still, and only then is the group taken down and started at its new size. That way it costs time and no step.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from enum import Enum

SETTLE_S = 1.5  # a new share must last this long before a group is restarted for it: nodes come in bunches, runs announce one by one
GRACE_S = 120.0  # for all ranks to save
RESTART_S = 10.0  # what a restart takes: growing near the end would cost more than it gains
MOST_LATE = 2  # starts in a row that came to no group, until only free places are counted on
MOST_LOST = 10  # failures of nodes or processes in a row without a saved step between them
MOST_HALVED = 20  # the same for passes that memory did not hold, each try with half as many sequences
MOST_RAISED = 3  # the same for exceptions in the training code


@dataclass(frozen=True, slots=True)
class Group:
    """A running group: its size, the nodes it is on, and for how many seconds it has been running."""

    world_size: int
    nodes: Set[str]
    age: float


@dataclass(frozen=True, slots=True)
class Offer:
    """What the cluster would give: workers, for how many seconds that has not changed, and the nodes that drain."""

    share: int
    steady: float
    draining: Set[str]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to save and leave: why, whether every rank has, and whether its time is over."""

    reason: str
    all_saved: bool
    overdue: bool


def within_reach(share: int, free: int, world_size: int, starts: int) -> int:
    """How many workers of its share a run can have now. A share counts the cluster's slots, whoever holds them.

    Args:
        share: what the run is to have.
        free: places that nobody holds.
        world_size: of the running group; 0 where there is none.
        starts: tried in a row, from which no group came. What holds slots and is no run of ours (another program, a node that hangs)
            would let a group of the whole share wait for ever.
    """
    if share > world_size > 0:
        return min(share, world_size + free)
    return min(share, free) if not world_size and starts >= MOST_LATE else share


class Act(Enum):
    """What to do with a running group."""

    STAY = "stay"
    ASK = "ask"  # every rank to save and leave
    SAVE = "save"  # a state, and go on
    CANCEL = "cancel"  # the request to leave
    RESIZE = "resize"  # to the offered share, now


@dataclass(frozen=True, slots=True)
class Move:
    """An act and its reason: `grow`, `yield` or `drain`."""

    act: Act
    reason: str = ""


STAY = Move(Act.STAY)


def next_move(
    group: Group,
    offer: Offer,
    asked: Asked | None,
    *,
    low: int,
    grow_after: float,
    seconds_left: float | None = None,
    drain_saved: Set[str] = frozenset(),
) -> Move:
    """What to do with a healthy group.

    Args:
        low: the fewest workers the run may have.
        grow_after: seconds that a group runs at least before it is restarted larger.
        seconds_left: of training at the present speed; None when unknown.
        drain_saved: draining nodes for which a state has been saved already, there being nowhere to go.
    """
    leaving = group.nodes & offer.draining
    if asked:
        return _after_asking(group, offer, asked, low, bool(leaving))
    if leaving:
        if offer.share >= low:
            return Move(Act.ASK, "drain")
        return Move(Act.SAVE, "drain") if leaving - drain_saved else STAY
    if offer.steady < SETTLE_S or offer.share < low:
        return STAY
    if offer.share < group.world_size:
        return Move(Act.ASK, "yield")
    if offer.share > group.world_size and group.age >= grow_after and _worth_growing(group.world_size, offer.share, seconds_left):
        return Move(Act.ASK, "grow")
    return STAY


def _after_asking(group: Group, offer: Offer, asked: Asked, low: int, leaving: bool) -> Move:
    if not asked.all_saved and not asked.overdue:
        return STAY
    if offer.share < low or (offer.share == group.world_size and not leaving):
        return Move(Act.CANCEL, asked.reason)  # what it was asked for is gone
    if asked.all_saved or leaving:
        return Move(Act.RESIZE, asked.reason)
    return Move(Act.CANCEL, asked.reason)  # they could not save in time, and nothing forces them out


def _worth_growing(world_size: int, share: int, seconds_left: float | None) -> bool:
    """Whether the larger group, restart included, ends first; training speed goes with the workers."""
    return seconds_left is None or seconds_left * (1 - world_size / share) > RESTART_S


class Fault(Enum):
    """Whose fault a failure is."""

    LATE = "late"  # the workers found no place in time: what was free is gone, or not there yet
    LOST = "lost"  # a node or a process went away, or could not be started
    MEMORY = "memory"  # a rank's memory was short: there are fewer sequences in the next try
    RAISED = "raised"  # an exception of unknown cause
    KNOWN = "known"  # a LosslensError: a full disk, a corrupt shard; it would come again


class PassTooLarge(Exception):
    """A rank's memory did not hold a pass that others made too; `fewer` sequences are to be tried next."""

    def __init__(self, fewer: int) -> None:
        super().__init__(f"out of memory: passes of {fewer} sequences are to be tried")
        self.fewer = fewer

    def __reduce__(self) -> tuple[type[PassTooLarge], tuple[int]]:
        """To cross processes."""
        return PassTooLarge, (self.fewer,)


def try_again(fault: Fault, in_a_row: int) -> bool:
    """Whether to start the group again after the `in_a_row`-th failure without a saved step since the first of them."""
    if fault is Fault.LATE:
        return True  # that is waiting, not failing
    return in_a_row <= {Fault.LOST: MOST_LOST, Fault.MEMORY: MOST_HALVED, Fault.RAISED: MOST_RAISED, Fault.KNOWN: 0}[fault]
