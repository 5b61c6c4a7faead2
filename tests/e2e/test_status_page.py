"""A real browser watches a study: what runs, what arrives while it looks, and that nobody answers any more."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from jobs.status_page import HOST, status_server
from tests.browser import browsing, needs_browser, opened, values
from tests.running import plan_more, save_another, write_running

pytestmark = needs_browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browsing() as found:
        yield found


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write_running(tmp_path)
    plan_more(tmp_path)
    return tmp_path


@contextmanager
def serving(results: Path) -> Iterator[tuple[str, ThreadingHTTPServer]]:
    with status_server(results, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_port}/", server
        finally:
            server.shutdown()
            thread.join()


def test_a_study_is_watched(chromium: Browser, results: Path) -> None:
    with serving(results) as (url, _), opened(chromium, url) as page:
        expect(page.locator("#title")).to_have_text("synthetic")
        expect(page.locator("#cluster")).to_contain_text("3 of 4 train slots used (1 more asked for)")
        row = page.get_by_role("row", name=re.compile("synthetic-d48-s0"))
        expect(row).to_contain_text("training")
        expect(page.get_by_role("row", name=re.compile("synthetic-d64-s0"))).to_contain_text("2 workers at least, 1 slot")
        expect(page.locator("#tiles")).to_contain_text("workers")
        for figure in ("loss", "world", "queue", "wait"):
            expect(page.locator(f"#{figure} svg")).to_be_visible()
        assert all("NaN" not in svg for svg in values(page, "figure svg", "svg => svg.outerHTML"))
        expect(page.locator("#panels figure svg")).to_have_count(3)
        expect(page.locator("#lag")).to_contain_text("All 88 checkpoints are scored.")

        page.locator("#world svg").focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#tip")).to_contain_text("3 workers")
        page.keyboard.press("Escape")

        save_another(results, "d48")
        expect(page.locator("#lag")).to_contain_text("1 of 89 checkpoints wait for a score")
        expect(row).to_contain_text("23")


def test_what_is_shown_can_be_chosen(chromium: Browser, results: Path) -> None:
    with serving(results) as (url, _), opened(chromium, url, scheme="dark", width=400) as page:
        expect(page.locator("#panels figure svg")).to_have_count(3)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        page.get_by_role("radio", name="loss").check(force=True)
        expect(page.locator("#panels svg").first).to_have_attribute("aria-label", re.compile("against held-out loss"))
        page.get_by_placeholder("task").fill("sort")
        expect(page.locator("#panels figure svg")).to_have_count(0)
        expect(page.locator("#shown")).to_be_visible()
        page.get_by_role("button", name="d48").click()
        expect(page.locator("#loss g")).to_have_count(4 - 1)


def test_a_server_that_ended_is_said(chromium: Browser, results: Path) -> None:
    with serving(results) as (url, server), opened(chromium, url, expected=("Failed to load resource",)) as page:
        expect(page.locator("#panels figure svg").first).to_be_visible()
        server.shutdown()
        server.socket.close()
        expect(page.locator("#state")).to_contain_text("does not answer any more")
