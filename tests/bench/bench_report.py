"""How long a report takes, by part, in seconds of one core and of the clock.

python -m tests.bench.bench_report RESULTS
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from losslens.report.gather import gather
from losslens.report.page import render
from losslens.results import Results

T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("results", type=Path)
    given = parser.parse_args()
    results = Results(given.results)
    results.query("SELECT 1 FROM curve LIMIT 1")  # views are made once
    timed("rows", lambda: gather(results, crossings=False))
    studies = timed("rows, crossings and seeds", lambda: gather(results))
    text = timed("page", lambda: render(studies, [], made=datetime.now(UTC)))
    panels, crossings = sum(len(study.panels) for study in studies), sum(len(p.crossings) for study in studies for p in study.panels)
    print(f"{panels:,} panels, {crossings:,} crossings, {len(text) / 1e6:.1f} MB")


def timed(name: str, work: Callable[[], T]) -> T:
    """What `work` gives, after a line about its time."""
    began, used = time.perf_counter(), time.process_time()
    found = work()
    print(f"{name:26}{time.process_time() - used:7.2f} of one core{time.perf_counter() - began:7.2f} of the clock")
    return found


if __name__ == "__main__":
    main()
