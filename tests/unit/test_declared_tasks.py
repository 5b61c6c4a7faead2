"""Tasks declared in YAML: what they become, what is refused and in which words, what a changed file does to old scores."""

from __future__ import annotations

import gzip
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from eval_service.questions import Questions, versions
from eval_service.scorer import Scorer, already_scored, require_unchanged
from jobs.evaluate import evaluate
from losslens import tasks
from losslens.errors import UserError
from losslens.results import Results
from losslens.specs import load_study, to_yaml
from losslens.tasks import declaration
from losslens.tasks.declared import outdated_by
from losslens.tasks.requests import BuiltTask, Generate, LogLikelihood
from tests.tiny_models import tiny_model
from tests.unit.test_specs import MINIMAL

CHOICE: dict[str, Any] = {
    "name": "capitals",
    "kind": "choice",
    "data": "rows.jsonl",
    "question": "What is the capital of {country}?",
    "options": "choices",
    "gold": "answer",
}
OPEN: dict[str, Any] = {
    "name": "sums",
    "kind": "open",
    "data": "rows.jsonl",
    "prompt": "{a} + {b} =",
    "answer": "{sum}",
    "generate": {"match": "number", "max_tokens": 5},
}
ROWS: list[dict[str, Any]] = [
    {"country": "Peru", "choices": ["Lima", "Quito"], "answer": 0},
    {"country": "中国", "choices": ["南京", "北京", "上海"], "answer": 1},
    {"country": "Chad", "choices": ["Lagos", "N'Djamena"], "answer": 1},
]
SUMS: list[dict[str, Any]] = [{"a": n, "b": 2.5, "sum": str(n + 2.5)} for n in range(4)]
DOCUMENT = Path(__file__).parents[2] / "docs" / "TASKS.md"


def put(folder: Path, declared: dict[str, Any], rows: list[dict[str, Any]], examples: list[dict[str, Any]] | None = None) -> Path:
    """A declaration beside its data."""
    file = folder / "task.yaml"
    file.write_text(yaml.safe_dump(declared, allow_unicode=True, sort_keys=False), encoding="utf-8")
    for name, content in (("rows.jsonl", rows), ("shown.jsonl", examples or [])):
        (folder / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")
    return file


def built(file: Path, limit: int | None = None) -> list[BuiltTask]:
    (task,) = tasks.resolve([str(file)])
    return tasks.build(task, data=None, limit=limit, seed=0, seq_len=None)


def refusal(file: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        built(file)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    return caught.value


def test_options_under_letters_and_spelled_out(tmp_path: Path) -> None:
    letter, text = built(put(tmp_path, CHOICE, ROWS))
    assert (letter.task, letter.format, text.format) == ("capitals", "letter", "text")
    assert letter.items[1].requests[2] == LogLikelihood("What is the capital of 中国?\nA. 南京\nB. 北京\nC. 上海\nAnswer:", " C")
    assert text.items[1].requests[2] == LogLikelihood("What is the capital of 中国?\nAnswer:", " 上海")
    assert [(item.gold, item.chance) for item in text.items] == [(0, 0.5), (1, 1 / 3), (1, 0.5)]
    assert text.items[1].option_bytes == (6, 6, 6)
    assert text.metrics == ("acc", "acc_norm", "correct_choice_prob", "brier", "bits_per_byte")


def test_a_blank_in_the_middle_and_two_whole_sentences(tmp_path: Path) -> None:
    blank = {key: value for key, value in CHOICE.items() if key != "question"}
    blank |= {"formats": ["pair", "text"], "before": "In {country} lies ", "after": ", it is said."}
    pair, text = built(put(tmp_path, blank, ROWS))
    assert pair.items[0].requests == (
        LogLikelihood("In Peru lies Lima", ", it is said."),
        LogLikelihood("In Peru lies Quito", ", it is said."),
    )
    assert text.items[0].requests[0] == LogLikelihood("In Peru lies ", "Lima, it is said.")
    sentences = {"name": "pairs", "kind": "choice", "data": "rows.jsonl", "options": ["{good}", "{bad}"], "gold": 0, "formats": ["pair"]}
    (pair,) = built(put(tmp_path, sentences, [{"good": f"Good {n}.", "bad": f"Bad {n}."} for n in range(3)]))
    assert pair.items[2].requests == (LogLikelihood("", "Good 2."), LogLikelihood("", "Bad 2."))


def test_generation_and_the_gold_answer(tmp_path: Path) -> None:
    (task,) = built(put(tmp_path, OPEN, SUMS))
    assert task.items[1].requests == (Generate("1 + 2.5 =", ("\n",), 5), LogLikelihood("1 + 2.5 =", " 3.5"))
    assert (task.match, task.items[1].answers, task.metrics) == ("number", ("3.5",), ("exact_match", "bits_per_byte"))
    greedy = {key: value for key, value in OPEN.items() if key != "generate"} | {"chance": 0.1, "metrics": ["exact_match"]}
    (task,) = built(put(tmp_path, greedy, SUMS))
    assert task.items[1].requests == (LogLikelihood("1 + 2.5 =", " 3.5"),)
    assert (task.items[1].chance, task.metrics) == (0.1, ("exact_match",))
    several = OPEN | {"accepted": "also", "generate": {"stop": [".", "\n"]}}
    (task,) = built(put(tmp_path, several, [row | {"also": ["three", row["sum"]]} for row in SUMS]))
    assert task.items[0].answers == ("three", "2.5")


def test_examples_come_from_their_own_file_and_group(tmp_path: Path) -> None:
    declared = CHOICE | {"shots": 2, "examples": "shown.jsonl", "group": "place.region", "header": "About {place.region}."}
    rows = [row | {"place": {"region": region}} for row, region in zip(ROWS, ["x", "y", "x"], strict=True)]
    shown = [{"country": f"{r}{n}", "choices": ["p", "q"], "answer": 1, "place": {"region": r}} for r in "xy" for n in range(3)]
    letter, text = built(put(tmp_path, declared, rows, shown))
    assert letter.shots == 2
    context = text.items[1].requests[0].context
    assert re.fullmatch(r"About y\.\n\n(What is the capital of y\d\?\nAnswer: q\n\n){2}What is the capital of 中国\?\nAnswer:", context)
    assert text.items[1].item_id == "y/1"
    error = refusal(put(tmp_path, declared, rows, shown[:4]))
    assert "task.yaml, line 7: `shots` is 2, but there are 1 examples of the group `y`" in str(error)


@pytest.mark.parametrize(
    ("gold_as", "written"),
    [("index", [1, "0", False]), ("number", [2, "1", 1]), ("letter", ["B", "A", "A"]), ("text", ["q", "7", 7])],
)
def test_ways_to_write_which_option_is_right(tmp_path: Path, gold_as: str, written: list[Any]) -> None:
    rows = [{"country": "x", "choices": ["7", "q"], "answer": gold} for gold in written]
    letter, _ = built(put(tmp_path, CHOICE | {"gold_as": gold_as}, rows))
    assert [item.gold for item in letter.items] == [1, 0, 0]


def test_every_kind_of_data_file_gives_the_same_task(tmp_path: Path) -> None:
    plain = built(put(tmp_path, CHOICE, ROWS))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress((tmp_path / "rows.jsonl").read_bytes()))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    for name in ("rows.jsonl.gz", "rows.parquet", str(tmp_path / "rows.jsonl")):
        again = built(put(tmp_path, {"data": name} | CHOICE | {"data": name}, ROWS))
        assert again == plain
        assert [one.items for one in again] == [one.items for one in plain]


def test_a_limit_takes_some(tmp_path: Path) -> None:
    (few,) = built(put(tmp_path, OPEN, [row | {"id": n} for n in range(20) for row in SUMS[:1]]), limit=5)
    assert len(few.items) == 5


def without(declared: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in declared.items() if key not in keys}


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    (CHOICE | {"quesion": "x"}, "line 7: unknown key `quesion`", "did you mean `question`?"),
    (OPEN | {"generate": {"stops": ["x"]}}, "line 7: unknown key `generate.stops`", "did you mean `stop`?"),
    (OPEN | {"generate": {"max_tokens": 0}}, "line 7: `generate.max_tokens`: expected `int` >= 1", "correct"),
    (without(CHOICE, "options"), "has no key `options`", "add it"),
    (without(CHOICE, "kind"), "has no key `kind`", "choice or open"),
    (CHOICE | {"kind": "chioce"}, "line 2: `kind` is `chioce`", "did you mean `choice`?"),
    (CHOICE | {"kind": ["choice"]}, "line 2: `kind` is a list", "`choice`"),
    (CHOICE | {"name": "two words"}, "line 1: `name`: expected `str` matching regex", "correct"),
    (CHOICE | {"version": 0}, "line 7: `version`: expected `int` >= 1", "correct"),
    (CHOICE | {"question": {"country": None}}, "line 4: `question`: expected `str | null`, got `object`", "in quotes"),
    (CHOICE | {"question": "{contry}?"}, "rows.jsonl, line 1: `question` (", "did you mean `country`?"),
    (CHOICE | {"question": "{country?"}, "line 4: `question`: the brace at character 1 has no partner", "written twice"),
    (CHOICE | {"question": "{}"}, "`question`: `` is not the name of a field", "write a name"),
    (CHOICE | {"question": "{country.__class__}"}, "`__class__` looks into text", "correct its name"),
    (CHOICE | {"question": "{country!r:>9}"}, "there is no field `country!r:>9`", "did you mean"),
    (CHOICE | {"question": "{choices[9]}"}, "there are 2 entries", "count from 0"),
    (CHOICE | {"question": "{choices}"}, "the field `choices` holds a list, not text", "correct the row"),
    (CHOICE | {"options": "{choices}"}, "line 5: `options`: `{choices}` is not the name of a field", "write a name"),
    (CHOICE | {"options": "country"}, "the field `country` holds text, not a list", "name one that does"),
    (CHOICE | {"options": ["{country}"]}, "`options` (", "at least two"),
    (CHOICE | {"options": ["{country}", "{country}"]}, "this row has `Peru` 2 times", "have to differ"),
    (CHOICE | {"options": ["x", ""]}, "`options[1]`: expected `str` of length >= 1", "correct"),
    (CHOICE | {"options": [str(n) for n in range(27)]}, "27 of them, more than there are letters", "formats: [text]"),
    (CHOICE | {"gold": 2}, "rows.jsonl, line 1: `gold` (", "mend the row"),
    (CHOICE | {"gold": "country"}, "it is `Peru`, but the options of this row are 0 to 1", "gold_as"),
    (CHOICE | {"gold_as": "number"}, "it is the number 0, but the options of this row are 1 to 2", "gold_as"),
    (CHOICE | {"gold_as": "letter"}, "the options of this row are A to B", "gold_as"),
    (CHOICE | {"gold_as": "text"}, "`0` is none of the options of this row", "gold_as"),
    (CHOICE | {"gold_as": "texts"}, "line 7: `gold_as`: invalid enum value 'texts'", "correct"),
    (without(CHOICE, "question"), "`formats`: letter shows the question above its options", "leave letter out"),
    (CHOICE | {"formats": []}, "line 7: `formats`: expected `array` of length >= 1", "correct"),
    (CHOICE | {"formats": ["text", "text"]}, "text occurs twice", "once"),
    (CHOICE | {"metrics": ["accc"]}, "line 7: `metrics`: `accc` is not measured here", "did you mean `acc`?"),
    (CHOICE | {"metrics": ["acc_norm"]}, "none of them is left for the format letter", "add one of acc"),
    (CHOICE | {"shots": 1}, "line 7: `shots`: names no `examples`", "both or neither"),
    (CHOICE | {"examples": "shown.jsonl"}, "line 7: `examples`: counts for nothing", "both or neither"),
    (CHOICE | {"shots": 1, "examples": "rows.jsonl"}, "`examples`: is `data` too", "another file"),
    (CHOICE | {"shots": 1, "examples": "shown.jsonl"}, "shown.jsonl has no rows", "two"),
    (CHOICE | {"data": "none.jsonl"}, "line 3: `data` names", "relative to the task file"),
    (CHOICE | {"data": "x" * 5000}, "which is no file", "relative"),
    (CHOICE | {"data": "a\0b.jsonl"}, "which is no file", "relative"),
    (CHOICE | {"data": "task.yaml"}, "is of no kind that task data has", ".jsonl"),
    (CHOICE | {"after": "{blank}"}, "there is no field `blank`", "choose from country, choices, answer"),
    (OPEN | {"answer": "{a}", "prompt": "\ud800"}, "`prompt`: it holds half a character", "itself"),
]  # fmt: skip


@pytest.mark.parametrize(("declared", "complaint", "remedy"), REFUSED)
def test_what_is_refused_and_how(tmp_path: Path, declared: dict[str, Any], complaint: str, remedy: str) -> None:
    error = refusal(put(tmp_path, declared, ROWS))
    assert complaint in str(error), str(error)
    assert remedy in error.remedy, error.remedy
    assert "task.yaml" in str(error) or ".jsonl" in str(error)


OPEN_REFUSED = [
    (OPEN | {"accepted": ["{sum}"], "generate": None}, "`accepted`: counts for nothing without `generate`"),
    (OPEN | {"prompt": "{a}", "answer": "{none}"}, "`answer` ("),
    (OPEN | {"answer": "{empty}"}, "it is empty in this row"),
    (OPEN | {"answer": "many"}, "no accepted answer of this row holds a number"),
    (OPEN | {"answer": "!", "generate": {}}, "nothing could match"),
    (OPEN | {"chance": 1}, "line 9: `chance`: expected `float` < 1.0"),
    (OPEN | {"question": "x"}, "unknown key `question`"),
]


@pytest.mark.parametrize(("declared", "complaint"), OPEN_REFUSED)
def test_what_is_refused_of_open_tasks(tmp_path: Path, declared: dict[str, Any], complaint: str) -> None:
    assert complaint in str(refusal(put(tmp_path, declared, [row | {"empty": ""} for row in SUMS])))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"name: [", "is not valid YAML"),
        (b"name: a\nname: b\n", "line 2 is not valid YAML: the key 'name' occurs twice"),
        (b"? [a]\n: b\n", "is not valid YAML"),
        (b"- a\n", "does not hold a mapping"),
        (b"", "does not hold a mapping"),
        (b"\xff\xfe", "cannot be read"),
        (b"a: \x00", "is not valid YAML"),
        (b"day: 2020-99-99", "is not valid YAML"),
        (b"[" * 5000, "is not valid YAML"),
        (b"#" * 2_000_000, "is too large"),
    ],
)
def test_a_file_that_is_no_declaration(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "task.yaml"
    file.write_bytes(content)
    assert complaint in str(refusal(file))


def test_missing_files_lines_and_rows(tmp_path: Path) -> None:
    assert "there is no task file" in str(refusal(tmp_path / "none.yaml"))
    file = put(tmp_path, CHOICE, ROWS)
    (tmp_path / "rows.jsonl").write_bytes(b'{"country": "x"}\n[1]\n')
    assert "rows.jsonl, line 1: `options` (" in str(refusal(file))
    (tmp_path / "rows.jsonl").write_bytes(b"\n[1]\n")
    assert "rows.jsonl, line 2: Expected `object`" in str(refusal(file))
    (tmp_path / "rows.jsonl").write_bytes(b"")
    assert "rows.jsonl has no rows" in str(refusal(file))
    assert "task `capitals` has 1 item" in str(refusal(put(tmp_path, CHOICE, ROWS[:1])))
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 not at all")
    assert "cannot be read as Parquet" in str(refusal(put(tmp_path, CHOICE | {"data": "rows.parquet"}, ROWS)))


def test_names_are_taken_once(tmp_path: Path) -> None:
    assert "declares a task called `mmlu`" in str(refusal(put(tmp_path, CHOICE | {"name": "mmlu"}, ROWS)))
    one = put(tmp_path, CHOICE, ROWS)
    two = one.rename(tmp_path / "other.yml")
    put(tmp_path, CHOICE, ROWS)
    with pytest.raises(UserError, match="another of that name"):
        tasks.resolve([str(one), str(two)])
    assert len(tasks.resolve([str(one), str(one), "skill_copy"])) == 2
    with pytest.raises(UserError, match="there is no task `task"):  # only `resolve` opens files
        tasks.build("task.yaml", data=None, limit=None, seed=0, seq_len=None)


def version_of(file: Path) -> int:
    return built(file)[0].version


def test_the_version_tells_the_content_and_nothing_else(tmp_path: Path) -> None:
    first = version_of(put(tmp_path, CHOICE, ROWS))
    assert first // 10**9 == 1
    same = put(tmp_path, {"formats": ["letter", "text"], "cue": "Answer:"} | CHOICE, [row | {"unused": 1} for row in ROWS])
    same.write_text("# a comment\n" + same.read_text(encoding="utf-8"), encoding="utf-8")
    assert version_of(same) == first
    changes: list[dict[str, Any]] = [
        {"question": "Capital of {country}?"},
        {"cue": "A:"},
        {"formats": ["letter"]},
        {"metrics": ["acc"]},
        {"joint": ""},
    ]
    changed = {version_of(put(tmp_path, CHOICE | change, ROWS)) for change in changes} | {version_of(put(tmp_path, CHOICE, ROWS[:2]))}
    assert len(changed | {first}) == len(changes) + 2
    assert version_of(put(tmp_path, CHOICE | {"version": 2}, ROWS)) == first + 10**9


def test_which_stored_versions_forbid_scoring() -> None:
    mine = 3 * 10**9 + 5
    assert outdated_by(mine, []) is None
    assert outdated_by(mine, [mine, 2 * 10**9 + 7, 1]) is None
    assert outdated_by(mine, [3 * 10**9 + 6]) == 3
    assert outdated_by(mine, [4 * 10**9 + 6, 3 * 10**9 + 6]) == 4
    assert outdated_by(7, [9, 8 * 10**9]) is None  # not a declared task


def test_a_changed_file_is_refused_until_its_version_is_raised(tmp_path: Path) -> None:
    file, model, results = put(tmp_path, CHOICE, ROWS), tiny_model(tmp_path / "model"), tmp_path / "results"

    def score() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = evaluate(str(model), [str(file)], "torch", None, False, results, None).to_pylist()
        return found

    rows = score()
    assert {(row["task"], row["format"]) for row in rows} == {("capitals", "letter"), ("capitals", "text")}
    parts = sorted((results / "parts").rglob("*.parquet"))
    assert score() == rows
    assert sorted((results / "parts").rglob("*.parquet")) == parts  # scored once
    put(tmp_path, CHOICE | {"cue": "So:"}, ROWS)
    with pytest.raises(UserError, match="the task `capitals` is not what was scored as its version 1") as refused:
        score()
    assert "`version: 2`" in refused.value.remedy
    put(tmp_path, CHOICE | {"cue": "So:", "version": 2}, ROWS)
    score()
    stored = Results(results).query("SELECT DISTINCT task_version // 1000000000 AS number FROM scores ORDER BY ALL").to_pylist()
    assert [row["number"] for row in stored] == [1, 2]


def test_a_declared_task_travels_to_other_processes(tmp_path: Path) -> None:
    """A pool's actors get the questions as a value: they need neither the file nor its data."""
    questions = Questions(tasks.resolve([str(put(tmp_path, OPEN, SUMS)), "skill_copy"]), limit=3)
    carried = pickle.dumps(questions)
    for file in tmp_path.iterdir():
        file.unlink()
    there: Questions = pickle.loads(carried)
    assert there.build().keys() == {("sums", "open"), ("skill_copy", "open")}
    assert versions(there.build()) == versions(questions.build())
    (tmp_path / "weights").mkdir()
    scorer = Scorer(tmp_path / "results", there, "fake")
    assert scorer.versions() == versions(questions.build())
    assert already_scored(tmp_path / "results") == set()
    require_unchanged(tmp_path / "results", scorer.versions())


def test_a_study_names_files_relative_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, CHOICE, ROWS)
    study = tmp_path / "study.yaml"
    study.write_text(MINIMAL.replace("[skill_copy]", "[skill_copy, task.yaml]"), encoding="utf-8")
    spec = load_study(str(study))
    assert spec.evaluation.tasks == ("skill_copy", str(tmp_path / "task.yaml"))
    assert len(tasks.resolve(spec.evaluation.tasks)) == 2
    saved = tmp_path / "results" / "studies" / "tiny.yaml"  # a resolved study is whole wherever it lies
    saved.parent.mkdir(parents=True)
    saved.write_text(to_yaml(spec), encoding="utf-8")
    monkeypatch.chdir(saved.parent)
    assert load_study(str(saved)) == spec
    assert load_study(str(study), ["evaluation.tasks=[other.yaml]"]).evaluation.tasks == (str(saved.parent / "other.yaml"),)


def test_the_documented_example(tmp_path: Path) -> None:
    section = DOCUMENT.read_text(encoding="utf-8").partition("## Your own task\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```(\w+)\n(.*?)```", section, re.S)
    assert [kind for kind, _ in blocks[:3]] == ["yaml", "json", "sh"]
    names = re.search(r"`(\w+\.yaml)`.*`(\w+\.jsonl)`", section, re.S)
    assert names
    (tmp_path / names[1]).write_text(blocks[0][1], encoding="utf-8")
    (tmp_path / names[2]).write_text(blocks[1][1], encoding="utf-8")
    letter, text = built(tmp_path / names[1])
    assert len(letter.items) == len(blocks[1][1].splitlines()) >= 2
    shown = re.search(r"```text\n(.*?)```", section, re.S)
    assert shown
    first = letter.items[0].requests[0]
    assert isinstance(first, LogLikelihood)
    assert shown[1].strip() == first.context + first.continuation
    assert text.items[0].requests
    assert f"--tasks {names[1]}" in blocks[2][1]


def test_every_key_is_documented() -> None:
    section = DOCUMENT.read_text(encoding="utf-8").partition("## Your own task\n")[2].partition("\n## ")[0]
    for part in (declaration.ChoiceDeclaration, declaration.OpenDeclaration, declaration.Generate):
        for key in part.__struct_fields__:
            assert f"`{key}`" in section, key


def test_a_list_of_names_is_unchanged() -> None:
    assert tasks.resolve(["skill_copy", "nonsense"]) == ("skill_copy", "nonsense")
