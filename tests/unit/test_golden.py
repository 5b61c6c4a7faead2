"""What users see and what runs are made of, kept as files: a changed default or option shows as a diff."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from losslens.specs import bundled, canonical_text, load_study
from tests.conftest import Process

Golden = Callable[[str, str], None]
VERBS = (
    "plan",
    "run",
    "corpus",
    "pretrain",
    "finetune",
    "sweep",
    "evaluate",
    "import",
    "sql",
    "thresholds",
    "correlations",
    "same-curve",
    "seeds",
    "axes",
    "metrics",
    "translate",
    "forecast",
    "scaling",
    "design",
    "tuning",
    "report",
    "figure",
    "status",
    "export",
    "log",
    "compact",
    "doctor",
    "serve",
    "drain-watcher",
)


@pytest.mark.parametrize("study", bundled())
def test_resolved_configs(study: str, golden: Golden) -> None:
    golden(f"configs/{study}.txt", canonical_text(load_study(study)))


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help(verb: str, golden: Golden, losslens: Callable[..., Process]) -> None:
    shown = losslens(*verb.split(), "--help")
    assert shown.returncode == 0
    golden(f"help/{verb or 'losslens'}.txt", "\n".join(line.rstrip() for line in shown.stdout.splitlines()) + "\n")


def test_plan_of_the_paper(golden: Golden, losslens: Callable[..., Process]) -> None:
    golden("plan/paper.json", losslens("plan", "paper", "--format", "json").stdout)
