"""The vocabulary of task records: what a benchmark says about itself, before any data is read.

A record names its row type, how a row reads as a question, its formats, its shots. Two kinds: `ChoiceTask` (options
compared by log-likelihood) and `OpenTask` (a free answer). The records themselves are in english, chinese, exams, arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from losslens.errors import UserError
from losslens.tasks.requests import Format, Match
from losslens.tasks.rows import R
from losslens.tasks.templates import printable

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Language:
    """How prompts of a language are glued together."""

    joint: str  # between a prompt and its answer
    cue: str  # the line that asks for the answer


ENGLISH = Language(joint=" ", cue="Answer:")
CHINESE = Language(joint="", cue="答案：")


@dataclass(frozen=True, slots=True)
class Choice:
    """A row as a question with options. `before` + option + `after` is the text with the option in its place; a blank in
    the middle of a text has an `after`, a question that ends in a cue has none."""

    question: str  # what stands above the lettered options
    options: tuple[str, ...]
    gold: int
    before: str = ""
    after: str = ""
    group: str = ""  # examples come from the same group (the subject of an exam)
    header: str = ""  # stands above the examples


@dataclass(frozen=True, slots=True)
class Scored:
    """A text ready to be scored: the log-probability of `joint` + `text` after `context`. Lengths count `text` alone."""

    context: str
    text: str
    joint: str = ""

    @property
    def continuation(self) -> str:
        """What an engine is asked for."""
        return self.joint + self.text


Render = Callable[[Choice, Language], tuple[Scored, ...]]


def lettered(choice: Choice, language: Language) -> tuple[Scored, ...]:
    """All options are shown; the letter of each is scored."""
    lines = [choice.question, *(f"{letter}. {option}" for letter, option in zip(LETTERS, choice.options, strict=False)), language.cue]
    context = "\n".join(lines)
    return tuple(Scored(context, letter, language.joint) for letter in LETTERS[: len(choice.options)])


def spelled(choice: Choice, language: Language) -> tuple[Scored, ...]:
    """No option is shown; the text of each is scored, with whatever follows it."""
    joint = language.joint if choice.before and not choice.before[-1].isspace() else ""
    return tuple(Scored(choice.before, option + choice.after, joint) for option in choice.options)


def partial(choice: Choice, language: Language) -> tuple[Scored, ...]:
    """Partial evaluation (Trinh and Le, arXiv 1806.02847): each option is put in, and the same text after it is scored."""
    return tuple(Scored(choice.before + option, choice.after) for option in choice.options)


LETTER_AND_TEXT: Mapping[Format, Render] = {"letter": lettered, "text": spelled}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceForm:
    """How questions with options are asked."""

    name: str
    language: Language
    formats: Mapping[Format, Render]
    shots: int = 0
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceTask(ChoiceForm, Generic[R]):
    """A benchmark of questions with options."""

    row: type[R]
    read: Callable[[R], Choice]


@dataclass(frozen=True, slots=True)
class Answer:
    """A row as an open question. An example is `prompt` + `target` (empty where the row has no worked answer); scored is
    `gold`, joined by `joint`, after `prompt` + `lead`; a generation has to give one of `accepted`."""

    prompt: str
    target: str
    gold: str
    accepted: tuple[str, ...]
    joint: str
    lead: str = ""


@dataclass(frozen=True, slots=True)
class Generation:
    """How an answer is generated: greedily, until a stop string or `max_tokens`."""

    stop: tuple[str, ...]
    max_tokens: int
    match: Match = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenForm:
    """How open questions are asked. Without a `generation`, exact match is whether greedy decoding gives the gold answer.
    `chance` is that of giving the right answer by guessing."""

    name: str
    generation: Generation | None
    shots: int = 0
    version: int = 1
    chance: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenTask(OpenForm, Generic[R]):
    """A benchmark of open questions."""

    row: type[R]
    example_row: type[R]
    read: Callable[[R], Answer]


Form = TypeVar("Form", bound=ChoiceForm | OpenForm)


def in_format(form: Form, format: str | None) -> Form:
    """The form with one of its formats alone; None: all it has.

    Raises:
        UserError: it has no such format.
    """
    if format is None:
        return form
    if isinstance(form, OpenForm):
        require_format(form.name, format, ("open",))
        return form
    require_format(form.name, format, tuple(form.formats))
    return replace(form, formats={known: render for known, render in form.formats.items() if known == format})


def require_format(task: str, format: str, there: Sequence[str]) -> None:
    """Refuse a format that a task does not have, and name those `there`."""
    if format not in there:
        choice = " or ".join(f"{task}:{known}" for known in there)
        raise UserError(f"the task `{task}` has no format `{printable(format)}`", f"write {choice}")
