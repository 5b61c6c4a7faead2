"""Ctrl-C ends a command wherever it lands."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

WITHIN = """
import sys, time
from jobs import interrupt
interrupt.GRACE_S = 0.5

class Swallows:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(60)  # an exception raised here is printed and dropped

with interrupt.interruptible():
    {body}
    time.sleep(60)
"""


@pytest.mark.parametrize("body", ["del [Swallows()][0]", "print('ready', flush=True)"])
def test_an_interrupt_ends_the_process(body: str, environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", WITHIN.format(body=body)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    swallowed = "Swallows" in body
    assert process.returncode == (130 if swallowed else -signal.SIGINT)
    assert ("interrupted; nothing that was saved is lost" in stderr) == swallowed


@pytest.mark.parametrize("body", ["del [Swallows()][0]", "print('ready', flush=True)"])
def test_sigterm_ends_the_process_too_after_time_to_save(body: str, environment: dict[str, str]) -> None:
    """A second SIGTERM does not cut that time short; where the first got lost, the process still ends."""
    code = WITHIN.format(body=body).replace("interrupt.GRACE_S = 0.5", "interrupt.GRACE_S = interrupt.SAVING_S = 0.5")
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=30)
    swallowed = "Swallows" in body
    assert process.returncode == (143 if swallowed else 1)  # 1: nobody catches it in this process, the command line does
    assert ("told to end; nothing that was saved is lost" in stderr) == swallowed
    assert "ToldToEnd" in stderr


def test_the_handler_before_is_there_again() -> None:
    from jobs.interrupt import interruptible

    before = signal.getsignal(signal.SIGINT)
    with interruptible():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
