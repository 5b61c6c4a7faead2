"""A real browser without a screen, where the machine has one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine: .ci/browser.sh installs one")
_WAIT_MS = 60_000
expect.set_options(timeout=_WAIT_MS)


def browser(profile: Path, *flags: str) -> list[str]:
    """The command that opens what its last flag names, in a profile of its own."""
    assert BROWSER is not None
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    return [BROWSER, "--headless", *sandbox, *QUIET.split(), f"--user-data-dir={profile}", *flags]


@contextmanager
def browsing() -> Iterator[Browser]:
    """The machine's browser, driven by Playwright. While it is open this thread has a running event loop."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=[*sandbox, *QUIET.split()])
        try:
            yield found
        finally:
            found.close()


@dataclass
class Seen:
    """What a page complained of, and what it asked for."""

    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@contextmanager
def opened(
    browser: Browser,
    url: str,
    *,
    width: int = 1280,
    scheme: Literal["light", "dark"] = "light",
    scripts: bool = True,
    expected: tuple[str, ...] = (),
) -> Iterator[Page]:
    """The page at `url`. Fails when anything was fetched that does not begin with `url`, or when the console says anything but what
    begins with one of `expected`."""
    seen = Seen()
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=scripts)
    context.set_default_timeout(_WAIT_MS)
    page = context.new_page()
    page.on("console", lambda message: seen.complaints.append(message.text))
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("request", lambda request: seen.asked.append(request.url))
    try:
        page.goto(url)
        yield page
        assert [text for text in seen.complaints if not text.startswith(expected or "\0")] == []
        assert [asked for asked in seen.asked if not asked.startswith(url)] == []
    finally:
        context.close()


def values(page: Page, selector: str, script: str) -> list[Any]:
    """What `script`, a function of an element, gives for each element."""
    found: list[Any] = page.locator(selector).evaluate_all(f"elements => elements.map({script})")
    return found
