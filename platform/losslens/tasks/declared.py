"""Tasks that a user declares in a short YAML file: which fields a row has, how they read as a question, what counts.

A declared task is read once, whole, into the values that benchmarks become too; so it pickles, and travels to scorers on
other machines by itself. docs/TASKS.md ("Your own task") says what the file holds.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from losslens.errors import UserError
from losslens.specs.study import TASK_FILES
from losslens.tasks.answers import final_number, normalise
from losslens.tasks.builder import CHOICE_METRICS, OPEN_METRICS, ask_choice, ask_open
from losslens.tasks.declaration import ChoiceDeclaration, OpenDeclaration, Sheet, convert, nearest, read_sheet
from losslens.tasks.records import (
    LETTERS,
    Answer,
    Choice,
    ChoiceForm,
    Generation,
    Language,
    OpenForm,
    Render,
    in_format,
    lettered,
    partial,
    spelled,
)
from losslens.tasks.requests import BuiltTask, Format
from losslens.tasks.rows import read_records
from losslens.tasks.templates import LARGEST, Field, Record, Template, Unfit, as_text, kind_of, printable

_MEANING = 1  # counts up whenever equal files would ask or score something else
_DIGITS = 10**9  # a stored version is the file's version, then nine digits of the content's fingerprint


@dataclass(frozen=True, slots=True, eq=False)
class DeclaredTask:
    """A declared task with its rows. `questions` and `examples` hold `Choice`s or `Answer`s, as the form says;
    `metrics` are those that count (None: all)."""

    form: ChoiceForm | OpenForm
    questions: tuple[Any, ...]
    examples: tuple[Any, ...]
    metrics: tuple[str, ...] | None

    @property
    def name(self) -> str:
        """The task's name."""
        return self.form.name

    def only(self, format: str | None) -> DeclaredTask:
        """The task in one of its formats, of the same version; None: in each. Raises UserError when it has no such format."""
        return replace(self, form=in_format(self.form, format))

    def build(self, limit: int | None, seed: int) -> list[BuiltTask]:
        """The task in each of its formats; see `losslens.tasks.build`."""
        ask: Any = ask_choice if isinstance(self.form, ChoiceForm) else ask_open
        built: list[BuiltTask] = ask(self.form, self.questions, self.examples, limit=limit, seed=seed)
        return [replace(one, metrics=_counting(one.metrics, self.metrics)) for one in built]


def is_declared(task: str) -> bool:
    """Whether this is the path of a declaration, not a task's name."""
    return task.endswith(TASK_FILES)


def read(path: Path) -> DeclaredTask:
    """The task that a file declares, with all its rows.

    Its version tells the content too (see `outdated_by`): scores of other rows, prompts or metrics are never taken for its own.

    Raises:
        UserError: the file, or the data it names, is missing, malformed, contradicts itself or does not fit the templates.
    """
    sheet = read_sheet(path)
    declared = convert(sheet)
    try:
        _require_consistent(declared)
        read_row: Callable[[Record], Any] = choice_reader(declared) if isinstance(declared, ChoiceDeclaration) else answer_reader(declared)
    except Unfit as unfit:
        raise UserError(f"{sheet.place(unfit.key)}: `{unfit.key}`: {unfit.finding}", unfit.remedy) from unfit
    questions = _rows(sheet, "data", declared.data, read_row)
    examples = _rows(sheet, "examples", declared.examples, read_row) if declared.examples else ()
    _require_enough(sheet, declared.shots, questions, examples)
    form = _form(declared)
    version = declared.version * _DIGITS + _fingerprint(form, declared.metrics, questions, examples)
    return DeclaredTask(replace(form, version=version), questions, examples, declared.metrics)


def outdated_by(version: int, stored: Collection[int]) -> int | None:
    """The number that a declared task's file has to go above, where scores are `stored` that it would be mixed up with:
    those of other content under the same or a higher number. None where there are none, and for tasks that are not declared."""
    mine = version // _DIGITS
    return max((other // _DIGITS for other in stored if other != version and other // _DIGITS >= mine), default=None) if mine else None


def choice_reader(declared: ChoiceDeclaration) -> Callable[[Record], Choice]:
    """What turns a row into a question with options.

    Raises:
        Unfit: a template or a field's name that is none.
    """
    question, before, after, header = (_template(key, getattr(declared, key)) for key in ("question", "before", "after", "header"))
    options = _list_reader("options", declared.options)
    group = _field("group", declared.group) if declared.group else None
    gold = _field("gold", declared.gold) if isinstance(declared.gold, str) else None
    most = len(LETTERS) if "letter" in declared.formats else None

    def read_choice(record: Record) -> Choice:
        texts = options(record)
        _require_options(texts, most)
        with _about("gold"):
            place = _place(declared.gold if gold is None else gold.value(record), declared.gold_as, texts)
        asked, rest = question(record), after(record)
        if declared.after and not rest:
            raise Unfit("it is empty in this row", "leave the row out", "after")
        stem = f"{asked}\n{declared.cue}" if declared.question else ""
        with _about("group"):
            kept = group.text(record) if group else ""
        return Choice(asked, texts, place, stem if declared.before is None else before(record), rest, kept, header(record))

    return read_choice


def answer_reader(declared: OpenDeclaration) -> Callable[[Record], Answer]:
    """What turns a row into an open question; errors as `choice_reader`."""
    prompt, answer, example = (_template(key, getattr(declared, key)) for key in ("prompt", "answer", "example"))
    accepted = _list_reader("accepted", declared.accepted) if declared.accepted else None

    def read_answer(record: Record) -> Answer:
        asked, gold = prompt(record), answer(record)
        if not gold:
            raise Unfit("it is empty in this row", "leave the row out", "answer")
        right = accepted(record) if accepted else (gold,)
        if declared.generate:
            _require_matchable(right, declared.generate.match)
        joint = "" if asked[-1:].isspace() else declared.joint
        return Answer(asked, joint + (example(record) if declared.example else gold), gold, right, joint)

    return read_answer


def _form(declared: ChoiceDeclaration | OpenDeclaration) -> ChoiceForm | OpenForm:
    if isinstance(declared, OpenDeclaration):
        asked = declared.generate
        generation = Generation(asked.stop, asked.max_tokens, asked.match) if asked else None
        return OpenForm(name=declared.name, generation=generation, shots=declared.shots, chance=declared.chance)
    renders: dict[Format, Render] = {"letter": lettered, "text": spelled, "pair": partial if declared.after else spelled}
    return ChoiceForm(
        name=declared.name,
        language=Language(declared.joint, declared.cue),
        formats={format: renders[format] for format in declared.formats},
        shots=declared.shots,
    )


def _rows(sheet: Sheet, key: str, file: str, read_row: Callable[[Record], Any]) -> tuple[Any, ...]:
    path = sheet.path.parent / Path(file).expanduser()
    if not _is_file(path):
        raise sheet.refusal(key, f"names `{printable(file)}`, which is no file", "correct it: the path is relative to the task file")
    rows = []
    for place, record in read_records(path):
        try:
            rows.append(read_row(record))
        except Unfit as unfit:
            raise UserError(f"{place}: `{unfit.key}` ({sheet.place(unfit.key)}): {unfit.finding}", unfit.remedy) from unfit
    if not rows:
        raise UserError(f"{path} has no rows", "a task needs at least two")
    return tuple(rows)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or none
        return False


def _fingerprint(form: ChoiceForm | OpenForm, metrics: Sequence[str] | None, questions: Sequence[Any], examples: Sequence[Any]) -> int:
    """Nine digits of a hash of all that scores depend on. Comments, names of files and fields that are not used do not count."""
    settings = {field.name: getattr(form, field.name) for field in fields(form) if field.name not in ("name", "version")}
    if isinstance(form, ChoiceForm):
        settings["formats"] = list(form.formats)
    digest = hashlib.sha256(msgspec.json.encode([_MEANING, type(form).__name__, settings, metrics]))
    for row in (*questions, None, *examples):
        digest.update(msgspec.json.encode(row))
    return int.from_bytes(digest.digest()[:8], "big") % _DIGITS


def _counting(there: tuple[str, ...], wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    return there if wanted is None else tuple(metric for metric in there if metric in wanted)


def _template(key: str, text: str | None) -> Callable[[Record], str]:
    """What fills a template; one that is not given is empty."""
    with _about(key):
        template = Template.of(text or "")

    def fill(record: Record) -> str:
        with _about(key):
            return template.fill(record)

    return fill


def _field(key: str, path: str) -> Field:
    with _about(key):
        return Field.of(path)


def _list_reader(key: str, given: str | Sequence[str]) -> Callable[[Record], tuple[str, ...]]:
    """What gives a row's texts: the entries of a field that holds a list, or filled templates."""
    if not isinstance(given, str):
        templates = [_template(f"{key}[{i}]", text) for i, text in enumerate(given)]
        return lambda record: tuple(fill(record) for fill in templates)
    field = _field(key, given)

    def entries(record: Record) -> tuple[str, ...]:
        with _about(key):
            found = field.value(record)
            if not isinstance(found, list | tuple):
                raise Unfit(f"the field `{given}` holds {kind_of(found)}, not a list", "name one that does, or give a list of templates")
            return tuple(as_text(f"{given}[{i}]", entry) for i, entry in enumerate(found))

    return entries


def _place(gold: Any, gold_as: str, options: Sequence[str]) -> int:
    """Which option is the right one, from 0."""
    if gold_as == "text":
        text = as_text("gold", gold)
        if text not in options:
            raise Unfit(f"`{printable(text)}` is none of the options of this row", "mend the row, or set `gold_as`")
        return options.index(text)
    place = _counted(gold, gold_as)
    if place is None or not 0 <= place < len(options):
        last = len(options) - 1
        known = {"index": f"0 to {last}", "number": f"1 to {last + 1}", "letter": f"A to {LETTERS[min(last, 25)]}"}[gold_as]
        shown = f"`{printable(gold)}`" if isinstance(gold, str) else kind_of(gold)
        raise Unfit(f"it is {shown}, but the options of this row are {known}", "mend the row, or set `gold_as`")
    return place


def _counted(gold: Any, gold_as: str) -> int | None:
    if gold_as == "letter":
        return LETTERS.index(gold) if isinstance(gold, str) and len(gold) == 1 and gold in LETTERS else None
    if isinstance(gold, str):
        if not re.fullmatch(r"[0-9]{1,3}", gold):
            return None
        gold = int(gold)
    return gold - (gold_as == "number") if isinstance(gold, int) and abs(gold) <= LARGEST else None  # of two options, true is the second


def _require_options(options: Sequence[str], most: int | None) -> None:
    if len(options) < 2:
        raise Unfit(f"this row has {len(options)} of them", "give every row at least two", "options")
    if most is not None and len(options) > most:
        raise Unfit(f"this row has {len(options)} of them, more than there are letters", "set `formats: [text]`", "options")
    for text, count in Counter(options).items():
        if not text:
            raise Unfit("one is empty in this row", "leave the row out", "options")
        if count > 1:
            raise Unfit(f"this row has `{printable(text)}` {count} times", "options of a row have to differ: mend the row", "options")


def _require_matchable(accepted: Sequence[str], match: str) -> None:
    if match == "number" and all(final_number(text) is None for text in accepted):
        raise Unfit("no accepted answer of this row holds a number", "mend the row, or set `match: text`", "generate.match")
    if match == "text" and not any(map(normalise, accepted)):
        raise Unfit("no accepted answer of this row has a letter or a digit, so that nothing could match", "mend the row", "generate.match")


def _require_consistent(declared: ChoiceDeclaration | OpenDeclaration) -> None:
    """Raises `Unfit` for keys that contradict each other."""
    if bool(declared.shots) != bool(declared.examples):
        missing = "names no `examples`" if declared.shots else "counts for nothing without `shots`"
        raise Unfit(missing, "give both or neither", "shots" if declared.shots else "examples")
    if declared.examples == declared.data:
        raise Unfit("is `data` too, so that a question would be shown with its own answer", "name another file", "examples")
    if isinstance(declared, OpenDeclaration):
        if declared.accepted and not declared.generate:
            raise Unfit("counts for nothing without `generate`", "add `generate`, or remove it", "accepted")
        _require_metrics(declared.metrics, {"open": OPEN_METRICS})
        return
    for format, count in Counter(declared.formats).items():
        if count > 1:
            raise Unfit(f"{format} occurs twice", "name it once", "formats")
    if "letter" in declared.formats and not declared.question:
        raise Unfit("letter shows the question above its options, and there is no `question`", "add it, or leave letter out", "formats")
    _require_metrics(declared.metrics, {format: CHOICE_METRICS[format] for format in declared.formats})


def _require_metrics(wanted: Sequence[str] | None, there: Mapping[str, Sequence[str]]) -> None:
    if wanted is None:
        return
    known = list(dict.fromkeys(metric for metrics in there.values() for metric in metrics))
    for metric in wanted:
        if metric not in known:
            raise Unfit(f"`{printable(metric)}` is not measured here", nearest(metric, known), "metrics")
    for format, metrics in there.items():
        if not set(metrics) & set(wanted):
            raise Unfit(f"none of them is left for the format {format}", f"add one of {', '.join(metrics)}", "metrics")


def _require_enough(sheet: Sheet, shots: int, questions: Sequence[Any], examples: Sequence[Any]) -> None:
    if not shots:
        return
    there = Counter(getattr(example, "group", "") for example in examples)
    for group in sorted({getattr(question, "group", "") for question in questions}):
        if there[group] < shots:
            of_group = f" of the group `{printable(group)}`" if group else ""
            raise sheet.refusal("shots", f"is {shots}, but there are {there[group]} examples{of_group}", "add examples, or lower it")


@contextmanager
def _about(key: str) -> Iterator[None]:
    """What does not fit within the block is said of this key."""
    try:
        yield
    except Unfit as unfit:
        raise Unfit(unfit.finding, unfit.remedy, unfit.key or key) from unfit
