"""A task asked in one of its formats: how that is written, what is refused, and that nothing else is built, computed or stored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from eval_service.backlog import Assignment, pending
from eval_service.checkpoints import Checkpoint
from eval_service.fake import FakeEngine
from eval_service.http.catalogue import Catalogue
from eval_service.questions import Asked, Questions, versions
from eval_service.scorer import Scorer, already_scored
from losslens import tasks
from losslens.errors import UserError
from losslens.results import Results
from losslens.specs import load_study
from losslens.specs.study import task_and_format
from losslens.tasks.requests import BuiltTask, Request, Result
from tests.unit.test_declared_tasks import CHOICE, OPEN, ROWS, SUMS, put
from tests.unit.test_specs import MINIMAL

LETTER, TEXT = Asked("hellaswag", "letter"), Asked("hellaswag", "text")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Task files of HellaSwag, four items."""
    rows = [
        {"activity_label": "Cooking", "context": f"She has {n} eggs. she", "choices": ["ate.", "cuts.", "is.", "sat."]} for n in range(4)
    ]
    file = tmp_path / "data" / "hellaswag" / "test.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps({**row, "label": n}) + "\n" for n, row in enumerate(rows)), encoding="utf-8")
    return tmp_path / "data"


def built(task: str, data: Path | None = None) -> list[BuiltTask]:
    (found,) = tasks.resolve([task])
    return tasks.build(found, data=data, limit=None, seed=0, seq_len=None)


@pytest.mark.parametrize(
    ("entry", "task", "format"),
    [
        ("hellaswag", "hellaswag", None),
        ("hellaswag:text", "hellaswag", "text"),
        ("mine.yaml", "mine.yaml", None),
        ("a:b/mine.yml:letter", "a:b/mine.yml", "letter"),
        ("a:b/mine.yml", "a:b/mine.yml", None),
        ("hellaswag:", "hellaswag", ""),
    ],
)
def test_how_it_is_written(entry: str, task: str, format: str | None) -> None:
    assert task_and_format(entry) == (task, format)


def test_one_format_is_built_alone_and_is_what_all_have_of_it(data: Path) -> None:
    letter, text = built("hellaswag", data)
    assert built("hellaswag:text", data) == [text]
    assert built("hellaswag:letter", data) == [letter]
    assert [task.format for task in built("skill_copy:open")] == ["open"]


def test_a_declared_task_keeps_its_version_in_one_format(tmp_path: Path) -> None:
    file = str(put(tmp_path, CHOICE, ROWS))
    letter, text = built(file)
    assert built(f"{file}:text") == [text]
    both = Questions(tasks.resolve([f"{file}:text", f"{file}:letter"])).build()
    assert [both[Asked("capitals", format)] for format in ("letter", "text")] == [letter, text]


@pytest.mark.parametrize(
    ("task", "sentence", "remedy"),
    [
        ("hellaswag:txt", "the task `hellaswag` has no format `txt`", "write hellaswag:letter or hellaswag:text"),
        ("hellaswag:", "the task `hellaswag` has no format ``", "write hellaswag:letter or hellaswag:text"),
        ("skill_copy:text", "the task `skill_copy` has no format `text`", "write skill_copy:open"),
        ("hellaswga:text", "there is no task `hellaswga`", "did you mean `hellaswag`?"),
        ("hellaswag:text:text", "there is no task `hellaswag:text`", "did you mean `hellaswag`?"),
    ],
)
def test_what_is_refused(task: str, sentence: str, remedy: str, data: Path) -> None:
    with pytest.raises(UserError) as refused:
        built(task, data)
    assert (refused.value.message, refused.value.remedy) == (sentence, remedy)


def test_a_declared_task_is_refused_a_format_when_it_is_read(tmp_path: Path) -> None:
    for declared, rows, sentence in (
        (CHOICE | {"formats": ["text"]}, ROWS, "the task `capitals` has no format `letter`"),
        (OPEN, SUMS, "the task `sums` has no format `letter`"),
    ):
        with pytest.raises(UserError, match=sentence):
            tasks.resolve([f"{put(tmp_path, declared, rows)}:letter"])


def test_a_study_names_formats(tmp_path: Path) -> None:
    put(tmp_path, CHOICE, ROWS)
    study = tmp_path / "study.yaml"
    study.write_text(MINIMAL.replace("[skill_copy]", "[skill_copy:open, task.yaml:text]"), encoding="utf-8")
    assert load_study(str(study)).evaluation.tasks == ("skill_copy:open", f"{tmp_path / 'task.yaml'}:text")
    asked = Questions(tasks.resolve(load_study(str(study)).evaluation.tasks)).build()
    assert list(asked) == [("skill_copy", "open"), ("capitals", "text")]
    assert load_study(str(study), ["evaluation.tasks=[hellaswag:text]"]).evaluation.tasks == ("hellaswag:text",)


def test_only_the_chosen_format_is_computed_and_later_only_the_other(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[Request] = []

    def run(self: FakeEngine, requests: Sequence[Request]) -> list[Result]:
        computed.extend(requests)
        return original(self, requests)

    original = FakeEngine.run
    monkeypatch.setattr(FakeEngine, "run", run)
    letter, text = (one for one in built("hellaswag", data))
    checkpoint = Checkpoint("run/step-1", str(tmp_path))
    results = tmp_path / "results"
    for entries, expected in (
        (["hellaswag:text"], [TEXT]),
        (["hellaswag:text", "hellaswag"], [LETTER]),
        (["hellaswag"], []),
    ):
        questions = Questions(tasks.resolve(entries), str(data))
        work = pending([checkpoint], already_scored(results), versions(questions.build()))
        assert [assignment.tasks for assignment in work] == ([tuple(expected)] if expected else [])
        for assignment in work:
            assert Scorer(results, questions, "fake").score(assignment).error is None
    assert computed == [request for one in (text, letter) for item in one.items for request in item.requests]
    rows = Results(results).query("SELECT format, metric, count(*) AS n FROM parts.scores GROUP BY ALL").to_pylist()
    assert {row["n"] for row in rows} == {1}
    assert {row["format"] for row in rows} == {"letter", "text"}
    assert Results(results).query("SELECT count(*) AS n FROM parts.samples").to_pylist() == [{"n": 2 * 4 * 4}]


def test_what_a_scorer_is_given_that_asks_otherwise(data: Path, tmp_path: Path) -> None:
    """As the service does: the assignment brings its questions, and some of them have been answered."""
    questions = Questions(("hellaswag",), str(data))
    record = Scorer(tmp_path / "results", Questions(()), "fake").score(
        Assignment(Checkpoint("run/step-1", str(tmp_path)), (LETTER,), questions)
    )
    assert record.error is None
    assert {asked for _, asked, _ in already_scored(tmp_path / "results")} == {LETTER}


def test_the_service_knows_formats(data: Path) -> None:
    catalogue = Catalogue(Questions((), str(data)))
    assert catalogue.versions(["hellaswag", "hellaswag:text"]) == {"hellaswag": {LETTER: 1, TEXT: 1}, "hellaswag:text": {TEXT: 1}}
    for task, sentence in (("hellaswag:pair", "has no format `pair`"), ("mine.yaml:text", "there is no task 'mine.yaml'")):
        with pytest.raises(UserError, match=sentence):
            catalogue.versions([task])
