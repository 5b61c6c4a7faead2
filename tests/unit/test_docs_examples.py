"""What README, the tutorial and the how-tos tell people to type: commands parse, studies and tasks load, SQL binds, Python compiles."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
import yaml

from jobs.cli import app
from losslens.families import planned_runs
from losslens.results import Results
from losslens.specs import bundled, load_study
from losslens.tasks.declaration import convert, read_sheet
from tests.conftest import REPO
from tests.synthetic import TASKS, write_study

FILES = [REPO / "README.md", REPO / "docs" / "TUTORIAL.md", *sorted((REPO / "docs" / "howto").glob("*.md"))]
VERBS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OTHERS = {"cat", "cd", "cp", "curl", "echo", "gcloud", "git", "kubectl", "ls", "mkdir", "mv", "pip", "rm"}  # not ours, and not tried here
OPERATORS = set("|&;<>()")


@dataclass(frozen=True)
class Block:
    """A fenced block; `str` says where it is."""

    file: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.file.name}:{self.line}"


def blocks(file: Path) -> Iterator[Block]:
    text = file.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.M | re.S):
        yield Block(file, text[: found.start()].count("\n") + 1, found[1], found[2])


def of(language: str) -> list[Block]:
    return [block for file in FILES for block in blocks(file) if block.language == language]


def commands(script: str) -> Iterator[list[str]]:
    """The simple commands of a script, without redirections and settings of the environment."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in (*lexer, ";"):
            if set(word) <= OPERATORS:
                if words:
                    yield words
                words = []
            elif words or not re.match(r"[A-Z_]+=", word):
                words.append(word)


def check(command: list[str]) -> None:
    """Raises where a command is not what it should be."""
    first, *rest = command
    program = first.rpartition("/")[2]
    if program == "losslens":
        check_verb(rest)
    elif program in ("python", "python3") and rest[0].startswith("jobs/"):
        check_job(rest)
    elif program == "ray":
        if "--" in rest:
            assert rest[:2] == ["job", "submit"]
            check(rest[rest.index("--") + 1 :])
    elif program == "make":
        targets = set(re.findall(r"^([\w-]+):", (REPO / "Makefile").read_text(encoding="utf-8"), re.M))
        assert {word for word in rest if "=" not in word} <= targets
    elif program in ("python", "python3"):
        assert rest[0] in ("-c", "-m", "-") or rest[0].endswith(".py")
    else:
        assert program in OTHERS or first.startswith("/"), f"nobody knows {first!r}"


def check_verb(arguments: list[str]) -> None:
    verb, *rest = arguments
    with VERBS[verb].make_context(verb, rest) as context:
        study, overrides = context.params.get("study"), context.params.get("overrides")
    if study in bundled():
        load_study(str(study), overrides or ())
    if verb in ("run", "plan", "corpus", "pretrain", "sweep", "design"):
        assert study in bundled() or str(study).endswith(".yaml")


def check_job(arguments: list[str]) -> None:
    script, *rest = arguments
    text = (REPO / script).read_text(encoding="utf-8")
    verb = re.search(r'run_verb\("([\w-]+)"\)', text)
    assert verb, f"{script} is no job"
    check_verb([verb[1], *rest])


@pytest.mark.parametrize("block", of("sh"), ids=str)
def test_commands_parse(block: Block) -> None:
    for command in commands(block.text):
        check(command)


def test_a_wrong_option_a_wrong_key_and_an_unknown_target_are_found() -> None:
    for wrong in ("losslens run demo --dryrun", "losslens plan demo --set a.b=1", "make dem", "ray job submit -- python jobs/study.py --x"):
        [command] = commands(wrong)
        with pytest.raises(BaseException, match=r".") as raised:
            check(command)
        assert not isinstance(raised.value, KeyboardInterrupt)


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_yaml_loads(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(block.text, encoding="utf-8")
    keys = yaml.safe_load(block.text).keys()
    if "kind" in keys:
        convert(read_sheet(file))
    else:
        assert planned_runs(load_study(str(file)))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("stored")
    write_study(root, tasks=TASKS[:2], checkpoints=4)
    return Results(root)


def statements() -> list[tuple[str, str]]:
    typed = [(str(block), command) for block in of("sh") for command in commands(block.text)]
    asked = [(where, words[2]) for where, words in typed if words[0].endswith("losslens") and words[1] == "sql"]
    return asked + [(str(block), block.text) for block in of("sql")]


@pytest.mark.parametrize(("where", "sql"), statements())
def test_sql_binds(where: str, sql: str, stored: Results) -> None:
    assert stored.query(sql).column_names, where


def test_python_compiles_and_json_parses() -> None:
    for block in of("python"):
        compile(block.text, str(block), "exec")
    for block in of("json"):
        for line in block.text.splitlines():
            json.loads(line)


def test_readme_leads_on() -> None:
    text = FILES[0].read_text(encoding="utf-8")
    for file in FILES[1:]:
        assert f"]({file.relative_to(REPO).as_posix()})" in text, f"README does not link to {file.name}"
