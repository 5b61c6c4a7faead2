"""What engines answered, as scores: one value per metric with its standard error, count and chance.

A score is the mean over items; its standard error is the sample standard deviation (n - 1) over sqrt(n), as in
lm-evaluation-harness; its chance is the mean of the items' own chances. Nothing is ever NaN: no items, or an engine's
non-finite log-probability, is a refusal. In formulas, l_j is the log-probability of option j of k, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev

from losslens.errors import EnvironmentFailure
from losslens.tasks.answers import is_match
from losslens.tasks.requests import BuiltTask, GenerateResult, Item, LogLikelihood, LogLikelihoodResult, Match, Result

BITS_PER_BYTE_OF_CHANCE = 8.0  # a uniform distribution over bytes


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one task: a row of the `scores` table."""

    metric: str
    value: float
    stderr: float
    n: int
    chance: float
    higher_is_better: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """One option of one item: a row of the `samples` table. An open item has one, its gold answer.

    `bytes` counts the scored text without its joining space (acc_norm's divisor), `scored_bytes` with it (bits_per_byte's).
    `correct` belongs to the item: in choice formats the gold option alone is the likeliest, in open format the answer is right.
    """

    item_id: str
    option: int
    is_gold: bool
    logprob: float | None
    tokens: int | None
    bytes: int | None
    generated: str | None
    correct: bool
    scored_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """An item with what the engine said: one log-likelihood per option, or of the gold answer; a generation, if asked for."""

    item: Item
    options: tuple[LogLikelihoodResult, ...]
    generation: GenerateResult | None
    match: Match

    @property
    def logprobs(self) -> list[float]:
        """l_j of every option, or of the gold answer alone."""
        return [option.logprob for option in self.options]


@dataclass(frozen=True, slots=True)
class Metric:
    """`value` of one answered item and the `chance` of that item."""

    value: Callable[[Answered], float]
    chance: Callable[[Item], float]
    higher_is_better: bool = True


def score_items(built: BuiltTask, results: Sequence[Sequence[Result]]) -> tuple[list[Score], list[Sample]]:
    """Scores of every metric of the task, and every option of every item; `results[i]` answers `built.items[i].requests`.

    Raises:
        EnvironmentFailure: the engine gave a log-probability that is not finite.
    """
    assert len(results) == len(built.items) >= 2, "build() refuses tasks of fewer than two items"
    answered = [_answered(built, item, given) for item, given in zip(built.items, results, strict=True)]
    scores = [_score(name, answered) for name in built.metrics]
    return scores, [sample for one in answered for sample in _samples(one)]


def acc(answered: Answered) -> float:
    """1 where the gold option has the largest l_j; options that tie at the top share the credit."""
    return _credit(answered.logprobs, _gold(answered))


def acc_norm(answered: Answered) -> float:
    """As acc, by l_j per UTF-8 byte of option j without its joining space (lm-eval divides by characters: the same in ASCII)."""
    per_byte = [logprob / size for logprob, size in zip(answered.logprobs, answered.item.option_bytes, strict=True)]
    return _credit(per_byte, _gold(answered))


def correct_choice_prob(answered: Answered) -> float:
    """softmax(l)_gold: the probability of the gold option among the options, by summed l_j without any length normalisation."""
    return softmax(answered.logprobs)[_gold(answered)]


def brier(answered: Answered) -> float:
    """sum_j (y_j - softmax(l)_j)^2, from 0 (certain and right) to 2 (certain and wrong); uniform gives 1 - 1/k."""
    gold = _gold(answered)
    return math.fsum((float(j == gold) - p) ** 2 for j, p in enumerate(softmax(answered.logprobs)))


def exact_match(answered: Answered) -> float:
    """1 where the generation gives an accepted answer, or where greedy decoding would give the gold answer."""
    if answered.generation is not None:
        return float(is_match(answered.generation.text, answered.item.answers, answered.match))
    return float(answered.options[0].greedy)


def bits_per_byte(answered: Answered) -> float:
    """-l_gold / ln 2 per UTF-8 byte of the scored text, joining space included, so that uniform over bytes is exactly 8."""
    index = answered.item.gold or 0
    return -answered.logprobs[index] / math.log(2) / _scored_bytes(answered.item)[index]


METRICS: Mapping[str, Metric] = {
    "acc": Metric(acc, lambda item: item.chance),
    "acc_norm": Metric(acc_norm, lambda item: item.chance),
    "correct_choice_prob": Metric(correct_choice_prob, lambda item: item.chance),
    "brier": Metric(brier, lambda item: 1 - item.chance, higher_is_better=False),
    "exact_match": Metric(exact_match, lambda item: item.chance),
    "bits_per_byte": Metric(bits_per_byte, lambda item: BITS_PER_BYTE_OF_CHANCE, higher_is_better=False),
}


def softmax(logprobs: Sequence[float]) -> list[float]:
    """exp(l_j) / sum exp(l), computed from the largest so that nothing overflows and something is above zero."""
    top = max(logprobs)
    weights = [math.exp(logprob - top) for logprob in logprobs]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _answered(built: BuiltTask, item: Item, results: Sequence[Result]) -> Answered:
    assert len(results) == len(item.requests), "an engine answers every request"
    options = tuple(result for result in results if isinstance(result, LogLikelihoodResult))
    generation = next((result for result in results if isinstance(result, GenerateResult)), None)
    for option in options:
        if not math.isfinite(option.logprob):
            raise EnvironmentFailure(
                f"the engine gave a log-probability of {option.logprob} on item {item.item_id} of task `{built.task}`",
                "check the checkpoint's weights for values that are not finite, or score it with another engine",
            )
    return Answered(item, options, generation, built.match)


def _score(name: str, answered: Sequence[Answered]) -> Score:
    metric = METRICS[name]
    values = [metric.value(one) for one in answered]
    n = len(values)
    chance = math.fsum(metric.chance(one.item) for one in answered) / n
    return Score(name, math.fsum(values) / n, stdev(values) / math.sqrt(n), n, chance, metric.higher_is_better)


def _samples(answered: Answered) -> list[Sample]:
    item, text = answered.item, answered.generation.text if answered.generation else None
    correct = (acc(answered) if item.gold is not None else exact_match(answered)) == 1
    if not answered.options:
        return [Sample(item.item_id, 0, True, None, None, None, text, correct)]
    sizes = _scored_bytes(item)
    return [
        Sample(item.item_id, j, j == (item.gold or 0), option.logprob, option.tokens, item.option_bytes[j], text, correct, sizes[j])
        for j, option in enumerate(answered.options)
    ]


def _scored_bytes(item: Item) -> list[int]:
    return [len(request.continuation.encode()) for request in item.requests if isinstance(request, LogLikelihood)]


def _gold(answered: Answered) -> int:
    assert answered.item.gold is not None, "choice metrics are for items with a gold option"
    return answered.item.gold


def _credit(values: Sequence[float], gold: int) -> float:
    top = max(values)
    return float(values[gold] == top) / sum(value == top for value in values)
