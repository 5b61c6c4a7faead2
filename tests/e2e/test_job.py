"""`ray job submit -- python jobs/study.py`, then `jobs/finetune.py`, on a plain `ray start --head`: no slots, token authentication."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from losslens.results import Results
from tests.nodes import wait_for
from tests.ports import free_port

REPO = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
SIZES = "[{name: s, d_model: 32, d_ffn: 96, heads: 2, kv_heads: 1, layers: 2, tokens: 200k}]"
SMALL = {
    "family.sizes": SIZES,
    "evaluation.tasks": "[skill_copy]",
    "evaluation.limit": "20",
    "evaluation.cross_check": "null",
    "training.checkpoints.count": "2",
    "tuning.training.tokens": "20k",
    "tuning.training.checkpoints": "{count: 1}",
}

pytestmark = pytest.mark.timeout(500)


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a client of a head node that nothing but this test knows."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    sockets = Path("/tmp") / f"losslens-{os.getpid()}"  # socket paths have at most 107 characters
    port, dashboard = free_port(), free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # a bare `python` in a job is the one of the head's PATH
        "HOME": str(tmp_path),
    }
    # Every port is ours: another cluster on this machine may hold the defaults.
    start = [RAY, "start", "--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}"]
    start += [f"--dashboard-agent-listen-port={free_port()}", "--num-cpus=2", f"--temp-dir={sockets}", "--disable-usage-stats", "--block"]
    with (tmp_path / "head.log").open("w") as log, subprocess.Popen(start, env=environment, stdout=log, stderr=log) as running:
        try:
            yield environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
        finally:
            for process in [*psutil.Process(running.pid).children(recursive=True), running]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()  # `ray start --block` may take minutes to end by itself
            shutil.rmtree(sockets, ignore_errors=True)


class Submitter:
    """`ray job submit` of a job with the study and the settings of this test, as often as wanted."""

    def __init__(self, head: dict[str, str], results: Path) -> None:
        settings = [argument for key, value in SMALL.items() for argument in ("--set", f"{key}={value}")]
        self.arguments = ["demo", "--results", str(results), *settings]
        self.environment = head | {"RAY_ADDRESS": head["RAY_API_SERVER_ADDRESS"]}

    def submit(self, file: str, *arguments: str, wait: bool = True) -> subprocess.CompletedProcess[str]:
        options = () if wait else ("--no-wait",)
        command = [RAY, "job", "submit", "--working-dir", ".", *options, "--", "python", file, *self.arguments, *arguments]
        for _ in range(60):  # the dashboard comes up before the agent that starts jobs
            ended = subprocess.run(command, cwd=REPO, env=self.environment, capture_output=True, text=True, timeout=300, check=False)
            if "Failed to connect" not in ended.stderr and "No available agent" not in ended.stderr:
                break
            time.sleep(1)
        return ended


def drivers(results: Path) -> list[psutil.Process]:
    """The job's own processes: `python jobs/study.py ...`, wherever Ray put them."""
    every = [process for process in psutil.process_iter(["cmdline"]) if str(results) in (process.info["cmdline"] or [])]
    return [process for process in every if "submit" not in process.info["cmdline"]]


def test_a_submitted_study_whose_driver_was_killed_resumes_and_is_tuned_by_another_job(head: dict[str, str], tmp_path: Path) -> None:
    results = tmp_path / "results"
    job = Submitter(head, results)
    first = job.submit("jobs/study.py", wait=False)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    wait_for(lambda: list(results.glob("checkpoints/*/state/step-*/losslens.json")), 200, "a saved state")
    for process in drivers(results):
        process.kill()
    begun = len(list(results.glob("checkpoints/*/step-*/losslens.json")))
    assert begun < 3, "the study is too short to be killed: lengthen it"

    ended = job.submit("jobs/study.py")
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert "succeeded" in ended.stdout
    assert str(results / "report.html") in ended.stdout
    (found,) = Results(results).query("SELECT count(DISTINCT checkpoint_id) AS n FROM scores").to_pylist()
    assert found["n"] == 3
    (attempts,) = results.glob("checkpoints/*/attempts")
    assert attempts.read_text() == "2"

    tuned = job.submit("jobs/finetune.py", "--from", str(results))
    assert tuned.returncode == 0, tuned.stdout[-3000:] + tuned.stderr[-3000:]
    (found,) = (
        Results(results)
        .query(
            "SELECT count(DISTINCT run_id) AS runs, count(DISTINCT checkpoint_id) AS checkpoints FROM runs JOIN checkpoints USING (run_id) "
            "JOIN scores USING (checkpoint_id) WHERE study = 'demo-tuned'"
        )
        .to_pylist()
    )
    assert found == {"runs": 2, "checkpoints": 4}
