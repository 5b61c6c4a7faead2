"""Records and rows to items: which rows are asked, which examples stand before them, what each format requests.

Every selection is by hash, so it depends on nothing but the task's name, the row's place in its file and (for `limit`)
the seed: the items of limit 200 are among those of limit 400, and examples never change between studies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from losslens.errors import UserError
from losslens.tasks.records import Answer, Choice, ChoiceForm, ChoiceTask, OpenForm, OpenTask, Render, Scored
from losslens.tasks.requests import BuiltTask, Format, Generate, Item, LogLikelihood, Request
from losslens.tasks.rows import read_rows

CHOICE_METRICS: Mapping[Format, tuple[str, ...]] = {
    "letter": ("acc", "correct_choice_prob", "brier"),
    "text": ("acc", "acc_norm", "correct_choice_prob", "brier", "bits_per_byte"),
    "pair": ("acc", "correct_choice_prob", "brier", "bits_per_byte"),
}
OPEN_METRICS = ("exact_match", "bits_per_byte")
_BETWEEN = "\n\n"  # separates examples from each other and from the question

T = TypeVar("T")


def build_choice(task: ChoiceTask[Any], data: Path, *, limit: int | None, seed: int) -> list[BuiltTask]:
    """One `BuiltTask` per format of the task."""
    questions = [task.read(row) for row in read_rows(data, task.name, "test", task.row)]
    examples = [task.read(row) for row in read_rows(data, task.name, "dev", task.row)] if task.shots else []
    return ask_choice(task, questions, examples, limit=limit, seed=seed)


def build_open(task: OpenTask[Any], data: Path, *, limit: int | None, seed: int) -> list[BuiltTask]:
    """The one `BuiltTask` of an open task, as a list like its sibling."""
    questions = [task.read(row) for row in read_rows(data, task.name, "test", task.row)]
    examples = [task.read(row) for row in read_rows(data, task.name, "dev", task.example_row)] if task.shots else []
    return ask_open(task, questions, examples, limit=limit, seed=seed)


def ask_choice(
    task: ChoiceForm, questions: Sequence[Choice], examples: Sequence[Choice], *, limit: int | None, seed: int
) -> list[BuiltTask]:
    """The questions, in each format of the task; `examples` are those to draw from."""
    asked = _asked(task.name, questions, limit, seed)
    drawn: dict[str, list[Choice]] = {}
    if task.shots:
        for group in sorted({choice.group for _, choice in asked}):
            drawn[group] = _drawn(task.name, group, task.shots, [choice for choice in examples if choice.group == group])
    built = []
    for format, render in task.formats.items():
        items = tuple(_choice_items(task, render, asked, drawn))
        built.append(BuiltTask(task.name, format, task.shots, task.version, CHOICE_METRICS[format], items))
    return built


def ask_open(task: OpenForm, questions: Sequence[Answer], examples: Sequence[Answer], *, limit: int | None, seed: int) -> list[BuiltTask]:
    """The questions in open format; `examples` are those to draw from."""
    drawn = _drawn(task.name, "", task.shots, examples) if task.shots else []
    preamble = "".join(answer.prompt + answer.target + _BETWEEN for answer in drawn)
    items = tuple(_open_item(task, item_id, preamble, answer) for item_id, answer in _asked(task.name, questions, limit, seed))
    match = task.generation.match if task.generation else "text"
    return [BuiltTask(task.name, "open", task.shots, task.version, OPEN_METRICS, items, match)]


def _choice_items(
    task: ChoiceForm, render: Render, asked: Sequence[tuple[str, Choice]], examples: Mapping[str, list[Choice]]
) -> Iterable[Item]:
    preambles = {group: _preamble(task, render, drawn) for group, drawn in examples.items()}
    for item_id, choice in asked:
        header = choice.header + _BETWEEN if choice.header else ""
        options = _after(header + preambles.get(choice.group, ""), render(choice, task.language))
        yield choice_item(f"{choice.group}/{item_id}" if choice.group else item_id, choice.gold, options)


def _preamble(task: ChoiceForm, render: Render, examples: Sequence[Choice]) -> str:
    gold = [render(choice, task.language)[choice.gold] for choice in examples]
    return "".join(scored.context + scored.continuation + _BETWEEN for scored in gold)


def _after(preamble: str, options: Sequence[Scored]) -> list[Scored]:
    """The options with the preamble before their contexts; equal contexts stay one string, so that they pickle once."""
    contexts = {option.context: preamble + option.context for option in options}
    return [replace(option, context=contexts[option.context]) for option in options]


def choice_item(item_id: str, gold: int, options: Sequence[Scored]) -> Item:
    """An item whose options are scored one by one; chance is one over their number."""
    return Item(
        item_id,
        tuple(LogLikelihood(option.context, option.continuation) for option in options),
        gold=gold,
        option_bytes=tuple(len(option.text.encode()) for option in options),
        option_chars=tuple(len(option.text) for option in options),
        chance=1 / len(options),
    )


def gold_item(item_id: str, gold: Scored, chance: float) -> Item:
    """An open item scored by the log-likelihood of its one right answer."""
    return Item(
        item_id,
        (LogLikelihood(gold.context, gold.continuation),),
        answers=(gold.text,),
        option_bytes=(len(gold.text.encode()),),
        option_chars=(len(gold.text),),
        chance=chance,
    )


def _open_item(task: OpenForm, item_id: str, preamble: str, answer: Answer) -> Item:
    prompt = preamble + answer.prompt
    scored = gold_item(item_id, Scored(prompt + answer.lead, answer.gold, answer.joint), task.chance)
    if task.generation is None:
        return scored
    requests: tuple[Request, ...] = (Generate(prompt, task.generation.stop, task.generation.max_tokens), *scored.requests)
    return replace(scored, requests=requests, answers=answer.accepted)


def _asked(task: str, questions: Sequence[T], limit: int | None, seed: int) -> list[tuple[str, T]]:
    """(row number from 0, question) of the rows that are asked."""
    return pick([(str(index), question) for index, question in enumerate(questions)], limit, f"{task}/{seed}")


def _drawn(task: str, group: str, shots: int, examples: Sequence[T]) -> list[T]:
    """`shots` examples in file order. A group of exactly that many is taken whole."""
    if len(examples) < shots:
        of_group = f" of `{group}`" if group else ""
        raise UserError(
            f"task `{task}` shows {shots} examples, but its dev file has {len(examples)}{of_group}",
            "complete the dev file: every group of the test file needs as many examples as the task has shots",
        )
    keyed = [(str(index), example) for index, example in enumerate(examples)]
    return [example for _, example in pick(keyed, shots, f"{task}/examples/{group}")]


def pick(keyed: Sequence[tuple[str, T]], count: int | None, salt: str) -> list[tuple[str, T]]:
    """`count` of the entries, those whose key hashes lowest under the salt, in their original order (None: all)."""
    if count is None or count >= len(keyed):
        return list(keyed)
    ranks = [hashlib.blake2b(f"{salt}/{key}".encode(), digest_size=8).digest() for key, _ in keyed]
    chosen = sorted(range(len(keyed)), key=ranks.__getitem__)[:count]
    return [keyed[index] for index in sorted(chosen)]
