"""Metrics against cases worked out by hand, and the laws they obey."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, variance

import pytest
from hypothesis import given
from hypothesis import strategies as st

from losslens.errors import EnvironmentFailure
from losslens.tasks.builder import CHOICE_METRICS, OPEN_METRICS, choice_item, gold_item
from losslens.tasks.metrics import METRICS, Sample, Score, score_items
from losslens.tasks.records import Scored
from losslens.tasks.requests import (
    BuiltTask,
    Format,
    Generate,
    GenerateResult,
    Item,
    LogLikelihoodResult,
    Match,
    Result,
)


def choices(texts: Sequence[str], gold: int = 0, item_id: str = "0") -> Item:
    return choice_item(item_id, gold, [Scored("Q:", text, " ") for text in texts])


def answers(*logprobs: float) -> list[Result]:
    return [LogLikelihoodResult(logprob, tokens=1, greedy=False) for logprob in logprobs]


def built(items: Sequence[Item], format: Format = "text", match: Match = "text") -> BuiltTask:
    metrics = OPEN_METRICS if format == "open" else CHOICE_METRICS[format]
    return BuiltTask("made_up", format, 0, 1, metrics, tuple(items), match)


def scores(task: BuiltTask, results: Sequence[Sequence[Result]]) -> dict[str, Score]:
    return {score.metric: score for score in score_items(task, results)[0]}


# l_j are multiples of 1/64, so that dividing by byte counts neither makes nor breaks ties
logprobs = st.lists(st.integers(-6400, 0).map(lambda n: n / 64), min_size=2, max_size=7)


def one(logprob: Sequence[float], gold: int, texts: Sequence[str] | None = None) -> dict[str, float]:
    """Each metric's value for one item, scored twice since a task has at least two."""
    item = choices(texts or [chr(97 + j) * 3 for j in range(len(logprob))], gold)
    return {name: score.value for name, score in scores(built([item, item]), [answers(*logprob)] * 2).items()}


def test_by_hand() -> None:
    items = [choices(["aa", "bbbb"], gold=0, item_id="x"), choices(["aa", "bbb", "c", "d"], gold=1, item_id="y")]
    results = [answers(math.log(0.2), math.log(0.6)), answers(math.log(0.4), math.log(0.2), math.log(0.1), math.log(0.1))]
    got, samples = score_items(built(items), results)
    value = {score.metric: score for score in got}
    assert value["acc"].value == 0.0
    assert value["acc_norm"].value == 0.0  # x: -0.805 per byte against -0.128
    assert value["correct_choice_prob"].value == pytest.approx((0.25 + 0.25) / 2)
    assert value["brier"].value == pytest.approx(((0.75**2 * 2) + (0.5**2 + 0.75**2 + 0.125**2 * 2)) / 2)
    assert value["bits_per_byte"].value == pytest.approx((-math.log2(0.2) / 3 - math.log2(0.2) / 4) / 2)
    assert [score.chance for score in got] == pytest.approx([0.375, 0.375, 0.375, 0.625, 8.0])
    assert [score.higher_is_better for score in got] == [True, True, True, False, False]
    assert {score.n for score in got} == {2}
    assert samples[:2] == [
        Sample("x", 0, True, math.log(0.2), 1, 2, None, False, 3),
        Sample("x", 1, False, math.log(0.6), 1, 4, None, False, 5),
    ]
    assert [(sample.item_id, sample.option, sample.is_gold) for sample in samples[2:]] == [("y", j, j == 1) for j in range(4)]


def test_acc_norm_divides_by_utf8_bytes() -> None:
    texts = ["四点", "four o'clock"]  # 2 characters and 6 bytes against 12 of each
    assert one([-5, -8], 0, texts)["acc_norm"] == 0.0  # per byte -0.83 against -0.67
    assert one([-5, -8], 0, texts)["acc"] == 1.0


@given(logprobs, st.data())
def test_laws_of_choice_metrics(logprob: list[float], data: st.DataObject) -> None:
    k = len(logprob)
    gold = data.draw(st.integers(0, k - 1))
    value = one(logprob, gold)
    assert 0 <= value["brier"] <= 2
    assert 0 <= value["correct_choice_prob"] <= 1
    assert value["acc_norm"] == value["acc"]  # all options have three bytes
    assert value["bits_per_byte"] == pytest.approx(-logprob[gold] / math.log(2) / 4)

    order = data.draw(st.permutations(range(k)))
    permuted = one([logprob[j] for j in order], order.index(gold))
    assert permuted == pytest.approx(value)

    shifted = one([x - 8 for x in logprob], gold)
    assert {name: shifted[name] for name in ("acc", "correct_choice_prob", "brier")} == pytest.approx(
        {name: value[name] for name in ("acc", "correct_choice_prob", "brier")}
    )


@given(logprobs, st.sampled_from([2, 4, 8]), st.data())
def test_acc_norm_ignores_a_common_scale_of_lengths(logprob: list[float], factor: int, data: st.DataObject) -> None:
    gold = data.draw(st.integers(0, len(logprob) - 1))
    sizes = [data.draw(st.integers(1, 9)) for _ in logprob]
    short, long = ([chr(97 + j) * (size * times) for j, size in enumerate(sizes)] for times in (1, factor))
    assert one(logprob, gold, short)["acc_norm"] == one(logprob, gold, long)["acc_norm"]


@given(st.integers(2, 7), st.integers(-6400, 0), st.data())
def test_uniform_is_chance(k: int, level: int, data: st.DataObject) -> None:
    item = choices([f"{j}" for j in range(k)], data.draw(st.integers(0, k - 1)))
    got = scores(built([item, item]), [answers(*[level / 64] * k)] * 2)
    for name in ("acc", "acc_norm", "correct_choice_prob", "brier"):
        assert got[name].value == pytest.approx(got[name].chance)
        assert got[name].stderr == 0


def test_uniform_over_bytes_is_chance_of_bits_per_byte() -> None:
    item = gold_item("0", Scored("Q:", "四点", " "), chance=0)
    got = scores(built([item, item], "open"), [answers(-7 * math.log(256))] * 2)
    assert got["bits_per_byte"].value == pytest.approx(got["bits_per_byte"].chance) == 8


@given(st.lists(logprobs.filter(lambda x: len(x) >= 3).map(lambda x: x[:3]), min_size=2, max_size=20))
def test_stderr_is_sample_deviation_over_root_n(rows: list[list[float]]) -> None:
    items = [choices(["a", "b", "c"], 1, str(i)) for i in range(len(rows))]
    got = scores(built(items), [answers(*row) for row in rows])
    each = [scores(built([item, item]), [answers(*row)] * 2) for item, row in zip(items, rows, strict=True)]
    for name, score in got.items():
        values = [one_item[name].value for one_item in each]
        assert score.value == pytest.approx(mean(values))
        assert score.stderr == pytest.approx(math.sqrt(variance(values) / len(values)), abs=1e-12)
        assert math.isfinite(score.stderr)


def test_huge_differences_neither_overflow_nor_vanish() -> None:
    value = one([-1e6, 0.0], 0)
    assert (value["correct_choice_prob"], value["brier"]) == (0, 2)


def test_open_items_by_likelihood_alone() -> None:
    items = [gold_item(str(i), Scored("2+2=", "4"), chance=0.1) for i in range(2)]
    results: list[list[Result]] = [[LogLikelihoodResult(-0.5, 1, greedy=True)], [LogLikelihoodResult(-3.0, 1, greedy=False)]]
    got, samples = score_items(built(items, "open"), results)
    exact = got[0]
    assert exact == Score("exact_match", 0.5, math.sqrt(0.5) / math.sqrt(2), 2, 0.1, True)
    assert [(sample.is_gold, sample.logprob, sample.bytes, sample.correct) for sample in samples] == [
        (True, -0.5, 1, True),
        (True, -3.0, 1, False),
    ]


def test_a_generation_decides_exact_match_whatever_greedy_says() -> None:
    scored = gold_item("0", Scored("Q:", "18", " "), chance=0)
    item = Item("0", (Generate("Q:", ("\n",), 8), *scored.requests), None, ("18",), scored.option_bytes, scored.option_chars)
    miss = LogLikelihoodResult(-9.0, 1, greedy=False)
    results: list[list[Result]] = [[GenerateResult("9 * 2 = 18\n#### 18"), miss], [GenerateResult("17"), miss]]
    got, samples = score_items(built([item, item], "open", "number"), results)
    assert [score.value for score in got] == pytest.approx([0.5, 9 / math.log(2) / 3])
    assert [(sample.generated, sample.logprob, sample.correct) for sample in samples] == [
        ("9 * 2 = 18\n#### 18", -9.0, True),
        ("17", -9.0, False),
    ]


def test_a_generation_alone_has_no_logprob() -> None:
    item = Item("0", (Generate("Q:", ("\n",), 8),), answers=("Paris",))
    task = BuiltTask("made_up", "open", 0, 1, ("exact_match",), (item, item))
    got, samples = score_items(task, [[GenerateResult(" paris.")], [GenerateResult("Rome")]])
    assert got[0].value == 0.5
    assert samples[0] == Sample("0", 0, True, None, None, None, " paris.", True)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_logprob_that_is_not_finite_is_refused(bad: float) -> None:
    item = choices(["a", "b"])
    with pytest.raises(EnvironmentFailure, match="item 0 of task `made_up`"):
        score_items(built([item, item]), [answers(-1, -2), answers(-1, bad)])


def test_too_few_items_have_no_score() -> None:
    for items in ([], [choices(["a", "b"])]):
        with pytest.raises(AssertionError):
            score_items(built(items), [answers(-1, -2) for _ in items])


def test_every_metric_of_every_format_is_known() -> None:
    assert set(METRICS) == {name for metrics in (*CHOICE_METRICS.values(), OPEN_METRICS) for name in metrics}
