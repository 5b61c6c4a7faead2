"""A real browser opens the report: the script runs without errors, draws every figure and answers mouse and keys."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from losslens.report import write_report
from losslens.results import Results
from tests.browser import browser, needs_browser
from tests.synthetic import TASKS, write_study

LOSSES = 4  # datasets measured in one unit

pytestmark = needs_browser

# Uses the page as a reader would and writes down what happened.
EXERCISE = """
<script>
const seen = {};
const figure = document.querySelector(".panel figure[data-x=loss]");
const svg = () => figure.querySelector("svg");
svg().dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
seen.tip = document.getElementById("tip").innerText;
svg().dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
seen.tipGone = document.getElementById("tip").hidden;
const groups = () => figure.querySelectorAll("g").length;
const before = groups();
document.querySelector("[data-size='0']").click();
seen.hiddenSizes = before - groups();
const choose = (select, value) => { select.value = value; select.dispatchEvent(new Event("change", { bubbles: true })); };
choose(document.querySelector(".panel [data-choose=metric]"), "0");
seen.metric = figure.querySelector("text.label:last-of-type").textContent;
seen.verdict = document.querySelector(".panel .verdict").textContent;
choose(document.querySelector("[data-choose=axis]"), "2");
seen.axis = svg().getAttribute("aria-label");
const details = document.querySelector(".panel .values");
details.open = true;
setTimeout(() => {
  seen.rows = details.querySelectorAll("tbody tr").length;
  document.body.insertAdjacentHTML("beforeend", "<pre id='seen'></pre>");
  document.getElementById("seen").textContent = JSON.stringify(seen);
}, 300);
</script>
"""


def dom(page: Path, profile: Path, *flags: str) -> str:
    """The document after its scripts ran; fails on anything that the console reports."""
    command = browser(profile, "--enable-logging=stderr", "--virtual-time-budget=3000", "--window-size=1280,900", *flags)
    command += ["--dump-dom", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    assert "data-error" not in done.stdout.split(">", 2)[1]
    assert 'data-ready="true"' in done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    write_study(root)
    return write_report(Results(root), root / "report.html")


@pytest.mark.parametrize("flags", [[], ["--blink-settings=preferredColorScheme=0"]], ids=["light", "dark"])
def test_every_figure_is_drawn(report: Path, tmp_path: Path, flags: list[str]) -> None:
    found = dom(report, tmp_path, *flags)
    figures = re.findall(r"<figure[^>]*><svg viewBox.*?</svg></figure>", found, re.DOTALL)
    assert len(figures) == 3 * len(TASKS) + LOSSES
    assert all("NaN" not in figure and "Infinity" not in figure for figure in figures)
    assert all(len(re.findall(r'<path class="mark" d="M', figure)) == 4 for figure in figures)


def test_a_reader_can_use_it(report: Path, tmp_path: Path) -> None:
    page = tmp_path / "exercised.html"
    page.write_text(report.read_text(encoding="utf-8").replace("</body>", f"{EXERCISE}</body>"), encoding="utf-8")
    found = dom(page, tmp_path / "profile")
    seen = re.search(r'<pre id="seen">(.*?)</pre>', found, re.DOTALL)
    assert seen
    text = seen[1]
    assert re.search(r'"tip":"d48 .*exact_match 0\.\d{3} ± 0\.\d{3}', text)
    assert '"tipGone":true' in text
    assert '"hiddenSizes":1' in text
    assert '"metric":"bits_per_byte, lower is better"' in text
    assert "No threshold has been computed for this metric" in text
    assert "skill_sort: bits_per_byte against training loss, nats/token" in text
    assert '"rows":88' in text


def test_hostile_names_run_nothing(tmp_path: Path) -> None:
    hostile = "</script><img src=x onerror=\"document.documentElement.dataset.error='ran'\">"
    write_study(tmp_path, name=hostile, tasks=tuple(type(task)(hostile, "emergent", eta=1.9) for task in TASKS[:1]))
    found = dom(write_report(Results(tmp_path), tmp_path / "report.html"), tmp_path / "profile")
    assert "<img" not in re.sub(r"<script.*?</script>", "", found, flags=re.DOTALL)


def test_it_prints(report: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.pdf"
    subprocess.run(
        [*browser(tmp_path / "profile", f"--print-to-pdf={out}"), report.resolve().as_uri()], capture_output=True, timeout=120, check=True
    )
    assert out.read_bytes().startswith(b"%PDF")
    assert out.stat().st_size > 50_000
