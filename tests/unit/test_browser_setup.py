"""What .ci/browser.sh does on which machine. `id` and `apt-get` are stand-ins; the latter writes down what it is asked."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "browser.sh"
APT = """#!/bin/sh
echo "$1 $*" | cut -d' ' -f1 >>"$LOG"
case "$1" in install) [ -e "$LISTS" ] && [ "$OFFERS" = yes ] ;; update) touch "$LISTS" ;; esac
"""


def run(tmp_path: Path, *, root: bool = True, apt: bool = True, browser: bool = False, offers: bool = True) -> tuple[list[str], str]:
    """What apt-get was asked, and what was said."""
    tools = {"id": f"#!/bin/sh\necho {0 if root else 1000}\n"}
    if apt:
        tools["apt-get"] = APT
    if browser:
        tools["chromium"] = "#!/bin/sh\n"
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "cut", "touch"):
        found = next(path for path in (Path("/bin") / tool, Path("/usr/bin") / tool) if path.exists())
        (folder / tool).symlink_to(found)
    for name, text in tools.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    log = tmp_path / "log"
    places = {"PATH": os.fspath(folder), "LOG": os.fspath(log), "LISTS": os.fspath(tmp_path / "lists")}
    environment = places | {"OFFERS": "yes" if offers else "no"}
    done = subprocess.run(["/bin/bash", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return log.read_text(encoding="utf-8").split() if log.exists() else [], done.stderr


@pytest.mark.parametrize(
    ("machine", "asked", "said"),
    [
        ({"browser": True}, [], ""),
        ({}, ["install", "update", "install"], "browser: chromium\n"),
        ({"offers": False}, ["install", "update", "install"], "apt-get gave none"),
        ({"root": False}, [], "takes apt-get and root"),
        ({"apt": False}, [], "takes apt-get and root"),
    ],
)
def test_a_browser_is_installed_where_it_can_be(tmp_path: Path, machine: dict[str, bool], asked: list[str], said: str) -> None:
    found, words = run(tmp_path, **machine)
    assert found == asked
    assert said in words
    assert bool(words) == bool(said)
