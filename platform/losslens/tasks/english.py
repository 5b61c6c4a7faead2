"""English benchmarks, with lm-evaluation-harness's wording where it has one (docs/TASKS.md lists the differences)."""

from __future__ import annotations

import re

from losslens.tasks.records import ENGLISH, LETTER_AND_TEXT, Answer, Choice, ChoiceTask, Generation, OpenTask, lettered, partial, spelled
from losslens.tasks.rows import Answers, Options, Row, Text, require_gold, require_once


class HellaSwagRow(Row, frozen=True):
    """`context` is ctx_a and ctx_b of the original joined by a space, with most WikiHow marks already replaced."""

    activity_label: Text
    context: Text
    choices: Options
    label: int

    def __post_init__(self) -> None:
        require_gold("label", self.label, self.choices)


def clean_hellaswag(text: str) -> str:
    """lm-eval's `preprocess`: WikiHow's [title], [header], [step] marks go."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _read_hellaswag(row: HellaSwagRow) -> Choice:
    # lm-eval capitalises `ctx_b`; the data has only ctx_a and ctx_b joined, so ctx_b is the lower-case fragment at the end.
    context = re.sub(r"(?<=[.!?] )[a-z][^.!?]*$", lambda match: match[0].capitalize(), row.context)
    stem = clean_hellaswag(f"{row.activity_label}: {context}")
    options = tuple(clean_hellaswag(choice) for choice in row.choices)
    return Choice(f"{stem}\nQuestion: Which is the best continuation?", options, row.label, before=stem)


class RaceRow(Row, frozen=True):
    """An article and one question about it; `_` in a question is a blank."""

    article: Text
    question: Text
    choices: Options
    label: int

    def __post_init__(self) -> None:
        require_gold("label", self.label, self.choices)


def _read_race(row: RaceRow) -> Choice:
    stem = f"Article: {row.article}\n\nQuestion: {row.question}"
    return Choice(stem, row.choices, row.label, before=f"{stem}\nAnswer:")


class WinoGrandeRow(Row, frozen=True):
    """A sentence with a blank `_` and the two names it may stand for."""

    sentence: Text
    choices: Options
    label: int

    def __post_init__(self) -> None:
        require_gold("label", self.label, self.choices)
        require_once("sentence", self.sentence, "_")


def _read_winogrande(row: WinoGrandeRow) -> Choice:
    before, after = row.sentence.split("_")
    stem = f"{row.sentence}\nQuestion: What does the blank _ stand for?"
    return Choice(stem, row.choices, row.label, before=before, after=f" {after.strip()}")  # one space, as in lm-eval


class QueryRow(Row, frozen=True):
    """PIQA and ARC as MosaicML's evaluation gauntlet writes them: `query` begins with "Question: "."""

    query: Text
    choices: Options
    gold: int

    def __post_init__(self) -> None:
        require_gold("gold", self.gold, self.choices)


def _read_query(row: QueryRow) -> Choice:
    stem = row.query.rstrip()
    return Choice(stem, row.choices, row.gold, before=f"{stem}\nAnswer:")


class BlimpRow(Row, frozen=True):
    """A minimal pair; `UID` names one of the 67 phenomena."""

    UID: Text
    sentence_good: Text
    sentence_bad: Text


def _read_blimp(row: BlimpRow) -> Choice:
    return Choice("", (row.sentence_good, row.sentence_bad), 0, group=row.UID)


class TriviaQaRow(Row, frozen=True):
    """A question and the aliases of its answer."""

    question: Text
    answers: Answers


def _read_triviaqa(row: TriviaQaRow) -> Answer:
    # Some alias lists begin with an emoji: the answer that is shown and scored is the first that has a letter or digit.
    answer = next((answer for answer in row.answers if any(map(str.isalnum, answer))), row.answers[0])
    return Answer(f"Question: {row.question}\nAnswer:", f" {answer}", answer, row.answers, joint=" ")


class LambadaRow(Row, frozen=True):
    """A passage up to its last word, and that word."""

    context: Text
    continuation: Text


def _read_lambada(row: LambadaRow) -> Answer:
    return Answer(row.context, f" {row.continuation}", row.continuation, (row.continuation,), joint=" ")


HELLASWAG = ChoiceTask(name="hellaswag", row=HellaSwagRow, read=_read_hellaswag, language=ENGLISH, formats=LETTER_AND_TEXT)
RACE = ChoiceTask(name="race", row=RaceRow, read=_read_race, language=ENGLISH, formats=LETTER_AND_TEXT, shots=2)
WINOGRANDE = ChoiceTask(
    name="winogrande",
    row=WinoGrandeRow,
    read=_read_winogrande,
    language=ENGLISH,
    formats={"letter": lettered, "pair": partial},
    version=2,
)
PIQA = ChoiceTask(name="piqa", row=QueryRow, read=_read_query, language=ENGLISH, formats=LETTER_AND_TEXT)
ARC_EASY = ChoiceTask(name="arc_easy", row=QueryRow, read=_read_query, language=ENGLISH, formats=LETTER_AND_TEXT)
ARC_CHALLENGE = ChoiceTask(name="arc_challenge", row=QueryRow, read=_read_query, language=ENGLISH, formats=LETTER_AND_TEXT)
BLIMP = ChoiceTask(name="blimp", row=BlimpRow, read=_read_blimp, language=ENGLISH, formats={"pair": spelled})
TRIVIAQA = OpenTask(
    name="triviaqa",
    row=TriviaQaRow,
    example_row=TriviaQaRow,
    read=_read_triviaqa,
    generation=Generation(stop=("\n",), max_tokens=32),
    shots=5,
)
LAMBADA = OpenTask(name="lambada", row=LambadaRow, example_row=LambadaRow, read=_read_lambada, generation=None)

TASKS = (HELLASWAG, RACE, WINOGRANDE, PIQA, ARC_EASY, ARC_CHALLENGE, BLIMP, TRIVIAQA, LAMBADA)
