"""The feed's window logic without Ray: whatever windows do (arrive, arrive late, fail, never come), every step comes once."""

from __future__ import annotations

import logging
import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from losslens.corpus import feed

STEPS = 120
LATE_S = 0.004


@pytest.fixture(autouse=True)
def numbered_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step's rows are its number."""
    monkeypatch.setattr(feed._Share, "rows", lambda self, first, stop: numbers(first, stop))
    monkeypatch.setattr(feed, "_window_steps", lambda share: 9)
    monkeypatch.setattr(feed, "_DIRECT_STEPS", 4)


def numbers(first: int, stop: int) -> NDArray[np.int64]:
    return np.arange(first, stop, dtype=np.int64).reshape(-1, 1, 1)


def steps_of(pause: float = LATE_S / 4) -> list[int]:
    found = []
    for rows in feed.windows(Path("nowhere"), 0, cursor=0, steps=STEPS, global_batch=1, rank=0, world=1):
        found.append(int(rows[0, 0]))
        time.sleep(pause)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_every_step_comes_once_in_order(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    used: list[tuple[int, int]] = []

    def fetch(share: object, first: int, stop: int) -> list[NDArray[np.int64]]:
        time.sleep(chance.choice([0, LATE_S, 5 * LATE_S, 20 * LATE_S]))
        if chance.random() < 0.2:
            raise OSError("a node went away")
        used.append((first, stop))
        middle = chance.randint(first, stop)
        return [numbers(first, middle), numbers(middle, stop)]

    monkeypatch.setattr(feed, "_fetch", fetch)
    assert steps_of() == list(range(STEPS))
    assert used


def test_a_window_that_never_comes_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr(feed, "_fetch", lambda *_: never.wait(60))
    began = time.monotonic()
    assert steps_of(pause=0) == list(range(STEPS))
    assert time.monotonic() - began < 30
    never.set()


def test_a_failure_of_ray_is_named_and_its_rows_are_read_directly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no node takes this task")

    monkeypatch.setattr(feed, "_fetch", fail)
    with caplog.at_level(logging.WARNING):
        assert steps_of() == list(range(STEPS))
    assert "no node takes this task" in caplog.text
