"""What the report decides by itself: metric, loss axis, colours, ticks, words."""

from __future__ import annotations

import pytest

from losslens.report.crossings import level_of
from losslens.report.palette import DARK, LIGHT, colours
from losslens.report.strip import ticks
from losslens.report.study import Curve, LossAxis, Panel, headline_axis, headline_metric
from losslens.report.words import answer, count, several, title, verdict


def curve(values: list[float | None], chance: float = 0.25, stderr: float = 0.02, better: bool = True) -> Curve:
    return Curve("acc", better, (chance, chance), values, [stderr] * len(values), [100] * len(values))


def axis(dataset: str, unit: str = "nats/token") -> LossAxis:
    return LossAxis(dataset, unit, [3.0, 2.0])


@pytest.mark.parametrize(
    ("format_", "metrics", "chosen"),
    [
        ("open", ["bits_per_byte", "exact_match"], "exact_match"),
        ("letter", ["acc", "acc_norm", "brier"], "acc"),
        ("text", ["acc", "acc_norm"], "acc_norm"),
        ("text", ["acc", "brier"], "acc"),
        ("pair", ["acc", "brier"], "acc"),
        ("letter", ["brier", "correct_choice_prob"], "correct_choice_prob"),
        ("odd", ["own_metric"], "own_metric"),
    ],
)
def test_headline_metric(format_: str, metrics: list[str], chosen: str) -> None:
    assert metrics[headline_metric(format_, metrics)] == chosen


def test_headline_axis() -> None:
    axes = [axis("train"), axis("heldout", "bits/byte"), axis("heldout"), axis("heldout/zh")]
    chosen = headline_axis(axes, set(), tokenizers=1)
    assert chosen is axes[2]
    assert headline_axis(axes, set(), tokenizers=2) is axes[1]
    assert headline_axis(axes, {("train", "nats/token")}, tokenizers=1) is axes[0]
    assert headline_axis([], set(), tokenizers=1) is None
    assert axes[3].label == "held-out loss on zh, nats/token"


def test_the_level_of_half_a_gain_needs_a_gain() -> None:
    assert level_of(curve([0.25, None, 0.75])) == pytest.approx(0.5)
    assert level_of(curve([0.25, 0.28])) is None
    assert level_of(curve([0.75, 0.2], better=False)) is None
    assert level_of(curve([None])) is None


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("sizes", [1, 2, 4, 7, 14])
@pytest.mark.parametrize(("part", "ground"), [(LIGHT, "#ffffff"), (DARK, "#14171b")], ids=["light", "dark"])
def test_colours_are_ordered_and_stand_out(part: tuple[float, float], ground: str, sizes: int) -> None:
    found = colours(sizes, part)
    levels = [luminance(colour) for colour in found]
    assert len(set(found)) == sizes
    assert levels == sorted(levels) or levels == sorted(levels, reverse=True)
    for level in levels:
        low, high = sorted((level, luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 3


@pytest.mark.parametrize(("low", "high"), [(1.5, 2.1), (0.0, 1.0), (2.69, 2.72), (-3.0, 14.0)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 10
    assert low <= found[0] < found[-1] <= high


def test_words() -> None:
    assert [count(value) for value in (None, 0, 950, 114_000, 1_180_000, 3e12)] == ["–", "0", "950", "114k", "1.18M", "3T"]
    assert several(["a"]) == "a"
    assert several(["a", "b", "c"]) == "a, b and c"
    panels = [Panel("mmlu", form, 5, (curve([0.3]),), 0) for form in ("letter", "text")]
    assert [title(panel, panels) for panel in panels] == ["mmlu · letter", "mmlu · text"]
    assert title(panels[0], panels[:1]) == "mmlu"
    assert answer([], panels[:1], axis("train")) == "None of 1 task shows a loss threshold at the losses measured here."
    assert answer([("mmlu", 2.2)], panels, axis("train")).startswith("1 of 2 task forms appears at a loss threshold: mmlu at 2.200")
    found = {"verdict": "emergent", "loss_dataset": "heldout", "loss_unit": "nats/token", "eta": 1.7, "eta_low": 1.6, "eta_high": None}
    assert verdict(found | {"first_above": 1.65, "last_at_chance": 1.7}).endswith("held-out loss 1.700 [1.600, –] nats/token.")
    assert "overlap: one is clearly above chance at 1.800" in verdict(found | {"first_above": 1.8, "last_at_chance": 1.7})
    assert verdict({"verdict": "too_few"}) == "Too few: has too few trained checkpoints to say."
