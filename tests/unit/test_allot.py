"""Who gets how many workers: a pure function's laws, and an allotter that changes its mind only when something happened."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from losslens.cluster.allot import Demand, allot, reason
from losslens.cluster.allotter import FORGET_S, Shares
from losslens.cluster.nodes import Node, capacity

DEMANDS = st.lists(
    st.tuples(st.integers(1, 4), st.integers(0, 6), st.floats(0, 1e20), st.integers(0, 4)).map(lambda d: (d[0], d[0] + d[1], d[2], d[3])),
    max_size=6,
).map(lambda rows: [Demand(f"run{i}", *row) for i, row in enumerate(rows)])


@given(st.integers(0, 24), DEMANDS)
def test_shares_keep_every_law(slots: int, demands: list[Demand]) -> None:
    shares = allot(slots, demands)
    assert shares.keys() == {demand.run for demand in demands}
    assert sum(shares.values()) <= slots
    for demand in demands:
        assert shares[demand.run] == 0 or demand.low <= shares[demand.run] <= demand.high
    unused = slots - sum(shares.values())
    if unused:  # nothing is left lying that somebody could use
        assert all(shares[d.run] == d.high or (shares[d.run] == 0 and d.low > unused) for d in demands)


@given(st.integers(0, 24), DEMANDS)
def test_everybodys_least_comes_before_anybodys_more(slots: int, demands: list[Demand]) -> None:
    if sum(demand.low for demand in demands) <= slots:
        assert all(allot(slots, demands).values())


def test_the_rest_goes_to_the_run_that_would_end_last() -> None:
    large, small = Demand("large", 1, 8, work=9.0), Demand("small", 1, 8, work=3.0)
    assert allot(4, [small, large]) == {"small": 1, "large": 3}
    assert allot(8, [small, large]) == {"small": 2, "large": 6}
    assert allot(12, [small, large]) == {"small": 4, "large": 8}
    assert allot(3, [large]) == {"large": 3}


def test_those_who_hold_workers_keep_their_least() -> None:
    newcomer, holder = Demand("new", 1, 4, 1.0), Demand("old", 1, 4, 1.0, held=1)
    assert allot(1, [newcomer, holder]) == {"new": 0, "old": 1}
    assert allot(1, [newcomer]) == {"new": 1}


def test_why_a_run_waits() -> None:
    one, two = Demand("one", 1, 1, 1.0, held=1), Demand("two", 2, 2, 1.0)
    shares = allot(2, [one, two])
    assert reason("one", 2, [one, two], shares) == ""
    assert reason("two", 2, [one, two], shares) == "needs 2 train slots, other runs hold 1 of 2"
    assert reason("two", 1, [two], allot(1, [two])) == "needs 2 train slots, the cluster has 1"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_shares_change_only_when_runs_or_slots_come_or_go() -> None:
    clock = Clock()
    shares = Shares(clock)
    assert shares.share(Demand("a", 1, 4, work=10.0), 4) == (4, "")
    assert shares.share(Demand("b", 1, 4, work=9.9), 4) == (2, "")
    assert shares.share(Demand("a", 1, 4, work=1.0, held=2), 4) == (2, ""), "work that gets done moves nobody"
    assert shares.share(Demand("a", 1, 4, work=1.0, held=2), 5) == (1, "")
    shares.leave("b")
    assert shares.share(Demand("a", 1, 4, work=1.0, held=1), 5) == (4, "")


def test_a_run_that_falls_silent_is_forgotten() -> None:
    clock = Clock()
    shares = Shares(clock)
    shares.share(Demand("dead", 1, 4, 1.0), 4)
    assert shares.share(Demand("alive", 1, 4, 1.0), 4)[0] == 2
    clock.now += FORGET_S + 1
    assert shares.share(Demand("alive", 1, 4, 1.0, held=2), 4)[0] == 4


def node(draining: bool = False, **resources: float) -> Node:
    return Node("id", "127.0.0.1", 1, resources, {name: amount / 2 for name, amount in resources.items()}, draining)


def test_capacity_counts_whole_workers_on_nodes_that_stay() -> None:
    need = {"train_slot": 1.0, "CPU": 0.01, "GPU": 2.0}
    assert capacity([node(train_slot=4, CPU=8, GPU=5), node(train_slot=4, CPU=8), node(True, train_slot=4, CPU=8, GPU=8)], need) == 2
    assert capacity([node(CPU=1.5)], {"CPU": 0.5}) == 3
    assert capacity([node(CPU=0.3)], {"CPU": 0.1, "GPU": 0.0}) == 3
    assert capacity([], need) == 0
    assert capacity([node(CPU=1.5)], {"CPU": 0.5}, free=True) == 1
