"""What is sent: values by name at a place of a run, and which of them a destination has already. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

BY_TOKENS = "by_tokens/"
# What is logged of every step and nobody compares by tokens.
_BY_STEP_ONLY = frozenset({"train/lr", "train/grad_norm", "train/tokens_per_second"})
_UNSAFE = re.compile(r"[^\w.=@+-]")


def folder_name(text: str) -> str:
    """`text` as the name of a folder that no other text has: runs of published models are called ORG/NAME."""
    plain = _UNSAFE.sub("_", text)
    if plain == text and not plain.startswith(".") and 0 < len(plain) <= 120:
        return plain
    return f"{plain.lstrip('.')[:100]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True)
class Run:
    """A run and what `runs` says of it, except its whole spec."""

    run_id: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run as a folder's name."""
        return folder_name(self.run_id)


@dataclass(frozen=True, slots=True)
class Point:
    """Values at one place of a run, `time` in seconds since the epoch. Of imported runs step or tokens may be unknown."""

    step: int | None
    tokens: int | None
    time: float
    values: Mapping[str, float]

    @property
    def place(self) -> int | None:
        """Where it lies in its run: its step, or where nobody knows that its tokens."""
        return self.tokens if self.step is None else self.step

    def series(self) -> Iterator[tuple[int, dict[str, float]]]:
        """(x, values) for tools that have one x axis: by step, and by tokens under names of their own."""
        if self.step is not None:
            yield self.step, dict(self.values)
        if self.tokens is not None:
            yield self.tokens, {BY_TOKENS + name: value for name, value in self.values.items() if name not in _BY_STEP_ONLY}


@dataclass(frozen=True, slots=True)
class Sent:
    """What a destination has of a run: `train_log` up to step `last`, and losses and scores by name and place, which `measured`
    stored rows gave. `mark` is what the destination said when it took them."""

    mark: str | None = None
    last: int = -1
    measured: int = 0
    places: Mapping[str, frozenset[int]] = field(default_factory=dict)

    def lacks(self, points: Iterable[Point]) -> list[Point]:
        """Of losses and scores those that were not sent. A value that is measured again is not sent again."""
        found = []
        for point in points:
            values = {name: value for name, value in point.values.items() if point.place not in self.places.get(name, ())}
            if values and point.place is not None:
                found.append(replace(point, values=values))
        return found

    def with_steps(self, last: int, mark: str) -> Sent:
        """When the log was taken up to step `last`."""
        return replace(self, mark=mark, last=last)

    def with_measured(self, points: Iterable[Point], rows: int, mark: str | None) -> Sent:
        """When losses and scores were taken, of `rows` that there are."""
        places = {name: set(known) for name, known in self.places.items()}
        for point in points:
            if point.place is not None:
                for name in point.values:
                    places.setdefault(name, set()).add(point.place)
        return replace(self, mark=mark, measured=rows, places={name: frozenset(known) for name, known in places.items()})
