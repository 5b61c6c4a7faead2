"""A real browser opens the report: it is read by mouse and by keys, in both themes, on a narrow screen and on paper."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from losslens.report import write_report
from losslens.results import Results
from tests.browser import browsing, needs_browser, opened, values
from tests.synthetic import TASKS, write_study, write_tuned
from tests.unit.test_report_seeds import COMPARED

LOSSES = 4  # datasets measured in one unit
METRICS = 2  # of the task that the section on metrics shows first
GROUND = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}

pytestmark = needs_browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browsing() as found:
        yield found


def written(root: Path) -> str:
    return write_report(Results(root), root / "report.html").resolve().as_uri()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The study that every test but one reads, with a verdict for a second metric of one task."""
    root = tmp_path_factory.mktemp("results")
    write_study(root)
    results = Results(root)
    judged = results.query("SELECT * REPLACE ('bits_per_byte' AS metric, 'gradual' AS verdict) FROM thresholds WHERE task = 'skill_sort'")
    results.write("thresholds", judged)
    return written(root)


def drawn(page: Page) -> None:
    """Wait until every figure is."""
    expect(page.locator(".study").first).to_have_attribute("data-drawn", "true")


def figures(page: Page) -> list[str]:
    return [str(text) for text in values(page, "figure svg", "svg => svg.outerHTML")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn(chromium: Browser, report: str, scheme: str) -> None:
    with opened(chromium, report, scheme="dark" if scheme == "dark" else "light") as page:
        drawn(page)
        found = figures(page)
        assert len(found) == 3 * len(TASKS) + METRICS + LOSSES
        assert all("NaN" not in figure and "Infinity" not in figure for figure in found)
        assert all(len(re.findall(r'<path class="mark" d="M', figure)) == 4 for figure in found)
        assert values(page, "body", "body => getComputedStyle(body).backgroundColor") == [GROUND[scheme]]


def test_a_mark_says_which_checkpoint_it_is(chromium: Browser, report: str) -> None:
    with opened(chromium, report) as page:
        chart = page.locator(".panel figure[data-x=loss] svg").first
        chart.scroll_into_view_if_needed()
        box = chart.bounding_box()
        assert box
        page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.2)
        tip = page.locator("#tip")
        expect(tip).to_contain_text("synthetic-d")
        words = tip.inner_text()
        assert re.search(r"^d\d+ synthetic-d\d+-s0\n", words)
        assert re.search(r"exact_match 0\.\d{3} ± 0\.\d{3} on 200 items\nheld-out loss, nats/token: \d\.\d{3}\n", words)
        assert re.search(r"step \d+ · \S+ tokens · \d\S*×10\S+ FLOPs", words)
        page.mouse.move(5, 5)
        expect(tip).to_be_hidden()


def test_what_is_shown_can_be_chosen(chromium: Browser, report: str) -> None:
    with opened(chromium, report) as page:
        panel = page.locator(".panel").first
        loss = panel.locator("figure[data-x=loss] svg")
        page.get_by_role("button", name="d48").click()
        expect(loss.locator("g")).to_have_count(3)
        page.get_by_role("button", name="d48").click()
        panel.locator("[data-choose=metric]").select_option("bits_per_byte")
        expect(panel.locator("figure[data-x=loss] text.label").last).to_have_text("bits_per_byte, lower is better")
        expect(panel.locator(".verdict")).to_contain_text("Gradual")
        expect(loss).to_contain_text("4 earlier not drawn")  # the untrained models of four sizes
        page.locator("[data-choose=range]").select_option("all")
        expect(loss).not_to_contain_text("not drawn")
        page.locator("[data-choose=axis]").select_option(label="training loss, nats/token")
        expect(loss).to_have_attribute("aria-label", re.compile("^skill_sort: bits_per_byte against training loss, nats/token"))
        expect(panel.locator(".verdict")).to_have_text("No threshold has been computed for this metric on this loss.")
        page.get_by_role("radio", name="tokens").check(force=True)
        assert values(page, ".panel:first-of-type figure", "figure => figure.hidden") == [True, False, True]
        panel.locator(".values summary").click()
        expect(panel.locator(".values tbody tr")).to_have_count(88)


def test_tasks_can_be_found(chromium: Browser, report: str) -> None:
    with opened(chromium, report) as page:
        shown = page.locator(".panel:visible h4")
        page.locator("[data-choose=format]").select_option("letter")
        expect(shown).to_have_text(["cloze_far · letter"])
        page.locator("[data-choose=format]").select_option("all")
        page.get_by_placeholder("task").fill("COUNT")
        expect(shown).to_have_text(["skill_count"])
        page.get_by_placeholder("task").fill("nothing")
        expect(page.get_by_text("No task is called that.")).to_be_visible()


def test_keys_are_enough(chromium: Browser, report: str) -> None:
    with opened(chromium, report) as page:
        page.keyboard.press("Tab")
        expect(page.locator(":focus")).to_have_text("Skip to the answer")
        page.get_by_role("button", name="d48").focus()
        page.keyboard.press("Space")
        expect(page.get_by_role("button", name="d48")).to_have_attribute("aria-pressed", "false")
        page.keyboard.press("Space")
        page.get_by_role("radio", name="all three").focus()
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("radio", name="loss")).to_be_checked()
        chart = page.locator(".panel figure[data-x=loss] svg").first
        chart.focus()
        page.keyboard.press("ArrowRight")
        first = page.locator("#tip").inner_text()
        assert "synthetic-d48-s0" in first
        page.keyboard.press("ArrowRight")
        assert page.locator("#tip").inner_text() != first
        page.keyboard.press("Escape")
        expect(page.locator("#tip")).to_be_hidden()


def test_the_theme_can_be_switched_and_paper_is_light(chromium: Browser, report: str, tmp_path: Path) -> None:
    ground = "body => getComputedStyle(body).backgroundColor"
    with opened(chromium, report) as page:
        page.locator("#theme").click()
        assert values(page, "body", ground) == [GROUND["dark"]]
        out = tmp_path / "report.pdf"
        page.pdf(path=out, format="A4")
        assert out.read_bytes().startswith(b"%PDF")
        assert out.stat().st_size > 50_000
        page.emulate_media(media="print")
        assert values(page, "body", ground) == [GROUND["light"]]
        expect(page.locator("[data-choose=axis]")).to_be_hidden()
        expect(page.locator(".legend button").first).to_be_visible()


def test_printing_draws_what_was_never_in_sight(chromium: Browser, report: str) -> None:
    with opened(chromium, report) as page:
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert len(figures(page)) == 3 * len(TASKS) + METRICS + LOSSES
        assert set(values(page, ".panel figure:first-child svg", "svg => svg.viewBox.baseVal.width")) == {340}


def test_a_narrow_screen_needs_no_sideways_scrolling(chromium: Browser, report: str) -> None:
    with opened(chromium, report, width=400) as page:
        drawn(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert values(page, ".panel:first-of-type figure", "figure => figure.hidden") == [False, True, True]


def test_without_scripts_the_answer_stands(chromium: Browser, report: str) -> None:
    with opened(chromium, report, scripts=False) as page:
        expect(page.get_by_text("7 of 12 task forms appear at a loss threshold")).to_be_visible()
        expect(page.get_by_role("row", name="skill_sort open 0 exact_match emergent 2.020")).to_be_visible()


def test_seeds_stand_beside_each_other(chromium: Browser, tmp_path: Path) -> None:
    write_study(tmp_path, seeds=4, tasks=TASKS[:2])
    results = Results(tmp_path)
    results.write("same_curve", [COMPARED])
    with opened(chromium, written(tmp_path)) as page:
        drawn(page)
        strip = page.locator("figure[data-seeds] svg").first
        assert len(values(page, "figure[data-seeds]:first-of-type", "f => f.outerHTML")) == 2
        counts = strip.locator("text.head").all_text_contents()
        assert len(counts) == 7
        assert all(re.fullmatch(r"\d+/1[0-6]|\d+/\d", count) for count in counts)
        strip.focus()
        page.keyboard.press("ArrowRight")
        assert re.search(r"exact_match \d\.\d{3} ± \d\.\d{3}\nat loss \d\.\d{3}, seed 0", page.locator("#tip").inner_text())
        success = page.locator("figure[data-success] svg").first
        expect(success.locator("g")).to_have_count(4)
        success.focus()
        page.keyboard.press("ArrowRight")
        assert re.search(r"^d48\n\d of 4 seeds at loss \d\.\d{3}\nprobability 0\.\d\d to [01]\.\d\d$", page.locator("#tip").inner_text())
        page.get_by_role("button", name="d48").click()
        expect(success.locator("g")).to_have_count(3)
        panel = page.locator(".panel").filter(has=page.get_by_role("heading", name="skill_copy"))
        compared = panel.get_by_text("By size at equal loss: same")
        expect(compared).to_be_visible()
        panel.locator("[data-choose=metric]").select_option("bits_per_byte")
        expect(compared).to_be_hidden()
        page.locator("[data-choose=by]").select_option(label="seed")
        expect(page.locator(".legend button")).to_have_count(4)
        expect(success.locator("g")).to_have_count(4)


def test_tuned_checkpoints_stand_at_the_loss_of_their_parents(chromium: Browser, tmp_path: Path) -> None:
    write_tuned(tmp_path, write_study(tmp_path, checkpoints=8, tasks=TASKS[:2]))
    with opened(chromium, written(tmp_path)) as page:
        expect(page.locator("#study-1")).to_have_attribute("data-drawn", "true")
        assert page.locator("#study-0 .tuned").count() == 0
        tuned = page.locator("#study-1 .tuned")
        assert tuned.locator(".key span").all_text_contents() == ["untuned", "8.19k", "65.5k"]
        expect(tuned.locator("figure svg")).to_have_count(2)
        first = tuned.locator("figure svg").first
        expect(first.locator("g")).to_have_count(3 * 4)
        assert first.locator("text.label").all_text_contents() == [
            "parent's held-out loss, nats/token (reversed)",
            "skill_copy: exact_match",
        ]
        first.focus()
        page.keyboard.press("ArrowRight")
        said = page.locator("#tip").inner_text()
        assert re.search(r"^d48 synthetic-tuned-\d+\nexact_match 0\.\d{3} ± 0\.\d{3} on 200 items\n", said)
        assert re.search(r"\nparent's held-out loss, nats/token: \d\.\d{3}\nstep 0 · 0 tokens", said)
        page.locator("#study-1 .legend").get_by_role("button", name="d48").click()
        expect(first.locator("g")).to_have_count(3 * 3)


def test_a_thousand_checkpoints_open(chromium: Browser, tmp_path: Path) -> None:
    write_study(tmp_path, checkpoints=250, tasks=TASKS[:3])
    with opened(chromium, written(tmp_path)) as page:
        drawn(page)
        assert "1,000 checkpoints" in page.locator(".facts").inner_text()


def test_hostile_names_run_nothing(chromium: Browser, tmp_path: Path) -> None:
    hostile = "</script><img src=x onerror=\"document.documentElement.dataset.error='ran'\">"
    write_study(tmp_path, name=hostile, tasks=tuple(type(task)(hostile, "emergent", eta=1.9) for task in TASKS[:1]))
    with opened(chromium, written(tmp_path)) as page:
        drawn(page)
        assert page.locator("img").count() == 0
        assert page.locator("html[data-error]").count() == 0
