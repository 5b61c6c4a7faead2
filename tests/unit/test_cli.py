"""The command line in a process of its own: exit codes, streams, and how little it imports to start."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.cli import app
from tests.conftest import REPO, Process
from tests.unit.test_golden import VERBS

Losslens = Callable[..., Process]
HEAVY = ("torch", "ray", "duckdb", "pyarrow", "transformers", "numpy", "scipy", "vllm")
CONTRACT = {"size", "tokens", "params", "params_non_embedding", "flops", "steps", "global_batch", "peak_lr", "checkpoints"}


def test_every_verb_is_covered_by_these_tests() -> None:
    assert tuple(command.name for command in app.registered_commands) == VERBS


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "paper"], ["plan", "paper", "--format", "json"], ["run", "paper", "--dry-run"]])
def test_starting_imports_nothing_heavy(arguments: list[str], environment: dict[str, str]) -> None:
    script = (
        "import sys\nfrom jobs.cli import main\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "try:\n    main()\nexcept SystemExit as stopped:\n    assert not stopped.code, stopped.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPO, env=environment, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_plan_prints_the_31_runs_of_the_paper(losslens: Losslens) -> None:
    printed = losslens("plan", "paper", "--format", "json")
    rows = json.loads(printed.stdout)
    assert (printed.returncode, len(rows)) == (0, 31)
    assert set(rows[0]) >= CONTRACT
    in_csv = list(csv.DictReader(io.StringIO(losslens("plan", "paper", "--format", "csv").stdout)))
    assert [row["run_id"] for row in in_csv] == [row["run_id"] for row in rows]
    table = losslens("plan", "paper")
    assert "0.0028" in table.stdout
    assert "A100" in table.stderr


def test_dry_run_prints_the_resolved_study_and_its_plan(losslens: Losslens, tmp_path: Path) -> None:
    printed = losslens("run", "paper", "--set", "seed=7", "--dry-run", "--results", tmp_path / "r")
    assert printed.returncode == 0
    assert "\nseed: 7\n" in printed.stdout
    assert "A100 h" in printed.stdout
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["plan", "papr"], "losslens: there is no study called 'papr'\nremedy: give a YAML file or a bundled study: did you mean paper?\n"),
        (["plan", "paper", "--set", "family.sizs=1"], "losslens: unknown key 'sizs' in family\nremedy: did you mean sizes?\n"),
        (["run", "paper", "--set", "training.global_batch=0"], "losslens: training.global_batch: expected `int` >= 1\nremedy:"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(arguments: list[str], sentence: str, losslens: Losslens) -> None:
    failed = losslens(*arguments)
    assert failed.returncode == 2
    assert failed.stderr.startswith(sentence)
    assert failed.stdout == ""


@pytest.mark.parametrize(
    "arguments", [["plan"], ["pln", "paper"], ["plan", "paper", "--format", "xml"], ["evaluate", "x", "--tasks", "a", "--limit", "0"]]
)
def test_a_wrong_call_is_exit_2_without_traceback(arguments: list[str], losslens: Losslens) -> None:
    failed = losslens(*arguments)
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("arguments", [["--debug", "plan", "papr"], ["plan", "papr", "--debug"]])
def test_debug_shows_the_traceback_and_keeps_the_code(arguments: list[str], losslens: Losslens) -> None:
    failed = losslens(*arguments)
    assert failed.returncode == 2
    assert "Traceback (most recent call last)" in failed.stderr
    assert failed.stderr.endswith("did you mean paper?\n")


INTERRUPTED = "raise KeyboardInterrupt"
FULL = "import errno; raise OSError(errno.ENOSPC, 'No space left on device', 'results/x')"
BROKEN = "raise ValueError('a fault of ours')"


@pytest.mark.parametrize(
    ("what", "code", "ending"),
    [
        (INTERRUPTED, 130, "losslens: interrupted; nothing that was saved is lost\nremedy: run the same command again to resume\n"),
        (FULL, 3, "losslens: the disk is full (writing results/x)\nremedy: free some space and run the same command again to resume\n"),
        (BROKEN, 1, "ValueError: a fault of ours\n"),
    ],
)
def test_failures_inside_a_verb(what: str, code: int, ending: str, environment: dict[str, str]) -> None:
    """The verb's own job is replaced by the failure; everything around it is real."""
    replaced = f"import sys, jobs.plan\ndef plan(*_):\n    {what}\njobs.plan.plan = plan\n"
    script = replaced + "from jobs.cli import main\nsys.argv[1:] = ['plan', 'paper']\nmain()"
    failed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPO, env=environment, check=False)
    assert failed.returncode == code
    assert failed.stderr.endswith(ending)
    assert ("Traceback" in failed.stderr) == (what is BROKEN)


def test_doctor_prints_its_findings(losslens: Losslens) -> None:
    printed = losslens("doctor", "--format", "json")
    findings = {row["what"]: row for row in json.loads(printed.stdout)}
    assert {"python", "torch", "ray", "duckdb", "vllm", "torchvision", "memory", "disk", "cores", "gpu"} <= set(findings)
    assert all(row["ok"] or row["remedy"] for row in findings.values())
    assert printed.returncode == (0 if all(row["ok"] for row in findings.values() if row["required"]) else 3)


def test_a_job_script_is_its_verb(environment: dict[str, str]) -> None:
    script = "import sys; from jobs.cli import run_verb; sys.argv[1:] = ['paper', '--format', 'json']; run_verb('plan')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPO, env=environment, check=True)
    assert len(json.loads(done.stdout)) == 31
