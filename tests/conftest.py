"""What every kind of test shares: golden files and the command line as a real process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

# Before anything imports torch: threads that wait for each other on busy cores make tiny models a hundred times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Machines are of any speed: no deadlines.
hypothesis.settings.register_profile("losslens", deadline=None)
hypothesis.settings.load_profile("losslens")

REPO = Path(__file__).parents[1]
GOLDEN = REPO / "tests" / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="rewrite the golden files and run only the tests that have one")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The clusters begin at once, since they take longest."""
    items.sort(key=lambda item: not _starts_clusters(item.path))
    if config.getoption("--golden"):
        items[:] = [item for item in items if "update_golden" in getattr(item, "fixturenames", ())]


class Apart(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Of two processes that share the tests, one starts every Ray cluster, which mostly waits; the other gets the rest file by file."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "clusters" if _starts_clusters(REPO / file) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Apart:
    """For `-n 2` (`make test`)."""
    return Apart(config, log)


@cache
def _starts_clusters(file: Path) -> bool:
    return file.parent.name == "e2e" or re.search(r"\b(import ray|local_ray)\b", file.read_text(encoding="utf-8")) is not None


@pytest.fixture(scope="session")
def update_golden(request: pytest.FixtureRequest) -> bool:
    """`make golden` runs: golden files are to be rewritten."""
    return bool(request.config.getoption("--golden"))


@pytest.fixture
def golden(update_golden: bool) -> Callable[[str, str], None]:
    """`golden(name, text)`: `text` is what tests/golden/`name` holds."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if update_golden:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{path.relative_to(REPO)} is missing: run `make golden` and read what it wrote"
        assert text == path.read_text(encoding="utf-8"), f"{path.relative_to(REPO)} differs: if that is meant, run `make golden`"

    return check


Process = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Of child processes: plain text of a fixed width, whatever terminal or CI runs the tests."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
    return kept | {"PYTHONPATH": f"{REPO / 'platform'}{os.pathsep}{REPO}", "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}


@pytest.fixture(scope="session")
def losslens(environment: dict[str, str]) -> Callable[..., Process]:
    """`losslens("plan", "paper")` runs the command line in a process of its own."""

    def run(*arguments: str | Path, cwd: Path = REPO) -> Process:
        command = [sys.executable, "-m", "jobs.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300, check=False)

    return run
