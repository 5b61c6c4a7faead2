"""Evaluations from many clients at once, while scorers and the service itself are killed with -9 at random.

Every checkpoint is a directory of its own, some are asked for twice; a client whose service is gone asks again. In the end
every evaluation that was acknowledged must have ended as done, and every score must be there once.

    python tests/bench/load_serve.py [--evaluations 500] [--clients 20] [--kills 20] [--scorers 2] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from losslens.results import Results
from tests.serving import ENDED, Service, fake_model

REPO = Path(__file__).parents[2]
TASKS = ("skill_copy", "skill_sort", "cloze_near", "next_char")
TWICE = 0.1  # of the checkpoints
AT_SERVICE = 0.3  # of the kills


@dataclass
class Seen:
    """What the clients saw."""

    accepted: dict[str, float] = field(default_factory=dict)
    submit_s: list[float] = field(default_factory=list)
    show_s: list[float] = field(default_factory=list)
    until_done_s: list[float] = field(default_factory=list)
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: Counter[int] = field(default_factory=Counter)


def patiently(ask: Callable[[], tuple[int, Any]], took: list[float]) -> tuple[int, Any]:
    """Ask until the service is there and answers; how long the answer itself took is noted."""
    while True:
        began = time.monotonic()
        try:
            found = ask()
        except (OSError, HTTPException):
            time.sleep(0.1)
        else:
            took.append(time.monotonic() - began)
            return found


def client(service: Service, checkpoints: Sequence[Path], seen: Seen) -> None:
    """Submit one after another, then watch them end."""
    mine: list[str] = []
    for checkpoint in checkpoints:
        body = {"checkpoint": str(checkpoint), "tasks": TASKS}
        status, answer = patiently(lambda body=body: service.ask("POST", "/evaluations", body), seen.submit_s)  # type: ignore[misc]
        if status == 202:
            seen.accepted[answer["id"]] = time.monotonic()
            mine.append(answer["id"])
        else:
            seen.refused[status] += 1
    while mine:
        for evaluation_id in list(mine):
            status, shown = patiently(lambda e=evaluation_id: service.ask("GET", f"/evaluations/{e}"), seen.show_s)  # type: ignore[misc]
            if status == 404 or shown["state"] in ENDED:
                mine.remove(evaluation_id)
                seen.until_done_s.append(time.monotonic() - seen.accepted[evaluation_id])
                seen.ended[evaluation_id] = shown if status == 200 else {"state": "lost", "attempts": 0}
        time.sleep(0.5)


def kill_at_random(service: Service, draw: random.Random, kills: int, over: threading.Event) -> Counter[str]:
    """Kill scorers at work, and the service, which is started again as a supervisor would."""
    killed: Counter[str] = Counter()
    while killed.total() < kills and not over.wait(draw.uniform(1.0, 6.0)):
        if draw.random() < AT_SERVICE:
            service.end(signal.SIGKILL)
            killed["service"] += 1
            service.start()
        elif scorers := service.scorers(at_work=True) or service.scorers():
            draw.choice(scorers).kill()
            killed["scorer"] += 1
    return killed


def quantiles(values: Sequence[float]) -> str:
    """Milliseconds: median, 95 of 100, largest."""
    ordered = sorted(values)
    return "  ".join(
        f"{name} {ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3:,.0f}"
        for name, share in (("median", 0.5), ("95 %", 0.95), ("largest", 1.0))
    )


def doubles(results: Path) -> tuple[int, int, int]:
    """(scores as SQL sees them, keys there more than once as SQL sees them, keys that were written more than once)."""
    key = "checkpoint_id, task, task_version, format, shots, metric"
    counts = [
        [row["n"] for row in Results(results).query(f"SELECT count(*) AS n FROM {table} GROUP BY {key}").to_pylist()]
        for table in ("scores", "parts.scores")
    ]
    return len(counts[0]), sum(n > 1 for n in counts[0]), sum(n > 1 for n in counts[1])


def load(folder: Path, asked: argparse.Namespace) -> bool:
    """Run it and print what came of it; whether nothing was lost and nothing doubled."""
    draw = random.Random(asked.seed)
    models = [fake_model(folder / "models" / f"run-{number % 10}" / f"step-{number:05d}") for number in range(asked.evaluations)]
    work = [*models, *draw.sample(models, int(TWICE * len(models)))]
    draw.shuffle(work)
    environment = dict(os.environ) | {"PYTHONPATH": f"{REPO / 'platform'}{os.pathsep}{REPO}"}
    options = ("--engine", "fake", "--root", folder / "models", "--results", folder / "results", "--max-scorers", asked.scorers)
    service = Service(folder / "serve", environment, *map(str, options), token="a-token-of-this-bench-0123")
    seen, over, began = Seen(), threading.Event(), time.monotonic()
    clients = [threading.Thread(target=client, args=(service, work[n :: asked.clients], seen)) for n in range(asked.clients)]
    killed: list[Counter[str]] = []
    killer = threading.Thread(target=lambda: killed.append(kill_at_random(service, draw, asked.kills, over)))
    try:
        for thread in (*clients, killer):
            thread.start()
        for thread in clients:
            thread.join()
        seconds = time.monotonic() - began
        over.set()
        killer.join()
        drained = service.end(signal.SIGTERM)
    finally:
        service.clear()
    return report(seen, killed[0], seconds, drained, folder / "results", len(models))


def report(seen: Seen, killed: Counter[str], seconds: float, drained: int, results: Path, checkpoints: int) -> bool:
    """Print it; whether all is well."""
    states = Counter(str(shown["state"]) for shown in seen.ended.values())
    scores, double, written = doubles(results)
    (scored,) = Results(results).query("SELECT count(DISTINCT checkpoint_id) AS n FROM scores").to_pylist()
    print(f"kills          {killed['scorer']} scorers, {killed['service']} times the service; exit code after SIGTERM {drained}")
    print(f"acknowledged   {len(seen.accepted)} evaluations of {checkpoints} checkpoints; refused {dict(seen.refused)}")
    print(f"ended as       {dict(states)}; attempts {dict(sorted(Counter(s['attempts'] for s in seen.ended.values()).items()))}")
    print(f"lost           {len(seen.accepted) - states['done']} evaluations, {checkpoints - scored['n']} checkpoints")
    print(f"double         {double} of {scores} scores as SQL sees them; {written} were written twice")
    print(f"throughput     {len(seen.ended) / seconds:.1f} evaluations/s over {seconds:.0f} s, the service's absences included")
    print(f"submit, ms     {quantiles(seen.submit_s)}")
    print(f"show, ms       {quantiles(seen.show_s)}")
    print(f"until done, ms {quantiles(seen.until_done_s)}")
    return not double and states["done"] == len(seen.accepted) and scored["n"] == checkpoints and drained == 0


def main() -> None:
    """Parse, run, exit with 1 when something was lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("evaluations", 500), ("clients", 20), ("kills", 20), ("scorers", 2), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(not load(Path(folder), parser.parse_args()))


if __name__ == "__main__":
    main()
