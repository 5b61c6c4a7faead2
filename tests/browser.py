"""A real browser without a screen, where the machine has one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")


def browser(profile: Path, *flags: str) -> list[str]:
    """The command that opens what its last flag names, in a profile of its own."""
    assert BROWSER is not None
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    return [BROWSER, "--headless", *sandbox, *QUIET.split(), f"--user-data-dir={profile}", *flags]
