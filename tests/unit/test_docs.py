"""The documentation builds without a warning and fetches nothing from elsewhere; a broken link or signature stops it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs import conf, reference
from tests.conftest import REPO, Process

OUTSIDE = re.compile(r"""(?:\bsrc\s*=\s*["']?|<link[^>]*\bhref\s*=\s*["']?|url\(\s*["']?|@import\s+["'])(?:https?:)?//[^"'\s)>]+""", re.I)


def build(source: Path, out: Path, environment: dict[str, str]) -> Process:
    """What `make docs` does, from `source` into `out`."""
    options = ["-W", "--keep-going", "-q", "-c", str(REPO / "docs"), "-d", str(out / "read")]
    command = [sys.executable, "-m", "sphinx", *options, str(source), str(out / "site")]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPO, timeout=280, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    out = tmp_path_factory.mktemp("docs")
    done = build(REPO, out, environment)
    assert (done.returncode, done.stderr) == (0, "")
    return out / "site"


def test_every_page_is_there(site: Path) -> None:
    guides = [file.relative_to(REPO) for file in (REPO / "docs").rglob("*.md")]
    made = [Path("build/reference") / name for name in reference.pages()]
    for page in (Path("README.md"), Path("ARCHITECTURE.md"), Path("CHANGELOG.md"), *guides, *made):
        assert (site / page.with_suffix(".html")).is_file(), page
    assert 'url=README.html"' in (site / "index.html").read_text(encoding="utf-8")
    assert "losslens.analysis.thresholds.thresholds" in (site / "build" / "reference" / "python.html").read_text(encoding="utf-8")


def test_it_fetches_nothing_from_elsewhere(site: Path) -> None:
    kinds = {".html", ".css", ".js"}
    pages = [file for file in site.rglob("*") if file.suffix in kinds]
    assert {file.suffix for file in pages} == kinds
    found = {match for file in pages for match in OUTSIDE.findall(file.read_text(encoding="utf-8"))}
    assert found == set()
    assert OUTSIDE.search('<script src="https://cdn.example/x.js">')


def test_a_broken_link_or_signature_stops_it(tmp_path: Path, environment: dict[str, str]) -> None:
    gone = "[gone](docs/nowhere.md) and [not there](#no-such-heading)\n\n```{eval-rst}\n.. autofunction:: losslens.specs.load_studdy\n```\n"
    (tmp_path / "README.md").write_text(f"# Broken\n\n{gone}", encoding="utf-8")
    done = build(tmp_path, tmp_path / "out", environment)
    assert done.returncode != 0
    for broken in ("docs/nowhere.md", "no-such-heading", "load_studdy"):
        assert broken in done.stderr


def test_what_stands_indented_in_a_docstring_is_kept_as_it_is() -> None:
    law, rest = ["    y = |x|", "", "    z = y"], ["", "Raises:", "    UserError: never."]
    lines = ["A law:", "", *law, *rest]
    conf.keep_layout(None, "function", "f", None, None, lines)
    assert lines == ["A law:", "", "::", "", *law, *rest]
