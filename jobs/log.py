"""Curves of a results directory in another tool: now, and with `follow` as they grow."""

from __future__ import annotations

import sys
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from jobs.exclusive import exclusive
from losslens.results import Results
from losslens.tracking import Tool, opened, send_new

EVERY_S = 5.0


def log(results: Path, tool: Tool, project: str, study: str | None = None, *, follow: bool = False) -> list[dict[str, Any]]:
    """Send what the tool has not got yet; a row for each run that had something. `follow`: until Ctrl-C or SIGTERM.

    Raises:
        UserError: no results there, or another process sends them to the same tool.
        EnvironmentFailure: the tool is not installed or does not answer, or the disk is full.
        DataMismatch: what was sent before is no longer there.
    """
    stored, counts = Results(results), Counter[str]()
    stored.query("SELECT 1")  # no folder is made where there are no results
    with closing(opened(tool, stored.root, project)) as destination, exclusive(destination.home):
        if tool == "tensorboard":
            print(f"tensorboard --logdir {destination.home} shows them", file=sys.stderr)
        _count(counts, send_new(stored, destination, study))
        with suppress(KeyboardInterrupt):
            while follow:
                time.sleep(EVERY_S)
                _count(counts, send_new(stored, destination, study))
    return [{"run": run, "points": points} for run, points in sorted(counts.items())]


def _count(counts: Counter[str], new: Counter[str]) -> None:
    counts += new
    for run, points in sorted(new.items()):
        print(f"{run}: {points:,} new points", file=sys.stderr, flush=True)
