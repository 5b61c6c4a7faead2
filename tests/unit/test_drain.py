"""The drain watcher without Ray: what clouds say, how they are asked, and how trouble is outlived."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from losslens.cluster import notices
from losslens.cluster.drain import _until, drain, only
from losslens.cluster.notices import Aws, Gcp, Notice, NoticeFile, aws_notice, file_notice, gcp_notice, seconds_of, source_named
from losslens.errors import UserError
from tests.conftest import REPO
from tests.metadata_service import AWS_PATH, MAINTENANCE, PREEMPTED, Service, metadata_service

NOON = 1_790_942_400.0  # 2026-10-02T12:00:00Z
ACTION = '{"action": "terminate", "time": "2026-10-02T12:02:00Z"}'


# What they say


def test_aws_names_the_action_and_the_time() -> None:
    notice = aws_notice(ACTION)
    assert "terminate" in notice.why
    assert notice.deadline == NOON + 120


@pytest.mark.parametrize("answer", ["", "<html>", "[]", "{}", '{"action": 3}', '"terminate"'])
def test_aws_garbage_is_no_notice(answer: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        aws_notice(answer)


@pytest.mark.parametrize("answer", ['{"action": "stop"}', '{"action": "stop", "time": "soon"}', '{"action": "stop", "time": null}'])
def test_an_aws_notice_without_a_readable_time_is_still_one(answer: str) -> None:
    assert aws_notice(answer).deadline is None


@pytest.mark.parametrize(
    ("preempted", "maintenance", "seconds"),
    [
        ("TRUE", "NONE", 30),
        ("TRUE", "TERMINATE_ON_HOST_MAINTENANCE", 30),
        ("FALSE", "TERMINATE_ON_HOST_MAINTENANCE", 60),
        ("FALSE", "MIGRATE_ON_HOST_MAINTENANCE", None),
        ("FALSE", "NONE", None),
        ("FALSE", "", None),
    ],
)
def test_gcp_preempts_or_maintains(preempted: str, maintenance: str, seconds: int | None) -> None:
    notice = gcp_notice(preempted, maintenance, NOON)
    assert (notice and notice.deadline) == (seconds and NOON + seconds)


def test_gcp_garbage_is_no_notice() -> None:
    with pytest.raises(ValueError, match="neither TRUE nor FALSE: '<html>'"):
        gcp_notice("<html>", "NONE", NOON)


@pytest.mark.parametrize(
    ("content", "deadline"),
    [
        ("", None),
        ("  \n", None),
        ("90\n", NOON + 90),
        ("0.5", NOON + 0.5),
        ("2026-10-02T12:02:00Z", NOON + 120),
        ("2026-10-02T12:02:00", NOON + 120),
        ("2026-10-02T14:02:00+02:00", NOON + 120),
        ("inf", None),
        ("nan", None),
        ("going away", None),
    ],
)
def test_a_file_is_a_notice_whatever_it_holds(content: str, deadline: float | None) -> None:
    assert file_notice(content, written=NOON).deadline == deadline


@pytest.mark.parametrize(("deadline", "remaining"), [(NOON + 120, 120), (NOON + 29.9, 29), (NOON, 1), (NOON - 60, 1), (None, None)])
def test_remaining_seconds(deadline: float | None, remaining: int | None) -> None:
    assert Notice("why", deadline).remaining(NOON) == remaining


def test_times_are_utc_unless_they_say_otherwise() -> None:
    assert seconds_of("2026-10-02T12:00:00") == seconds_of("2026-10-02T12:00:00Z") == seconds_of("2026-10-02T14:00:00+02:00") == NOON
    with pytest.raises(ValueError, match="isoformat"):
        seconds_of("noon")


# How they are asked


@pytest.fixture
def service() -> Iterator[Service]:
    with metadata_service() as running:
        yield running


def test_aws_is_asked_with_one_token(service: Service) -> None:
    ask = Aws(service.endpoint)
    assert [ask(), ask()] == [None, None]  # 404
    service.answers[AWS_PATH] = (200, ACTION)
    assert ask() == aws_notice(ACTION)
    assert service.tokens == 1


def test_aws_gets_a_new_token_when_the_old_one_is_refused(service: Service) -> None:
    ask = Aws(service.endpoint)
    ask()
    service.valid = "another"
    service.answers[AWS_PATH] = (200, ACTION)
    assert ask() == aws_notice(ACTION)
    assert service.tokens == 2


@pytest.mark.parametrize("answer", [(500, ""), (403, ""), (401, ""), (200, "garbage"), (200, "")])
def test_what_aws_should_not_answer_raises(answer: tuple[int, str], service: Service) -> None:
    service.answers[AWS_PATH] = answer
    with pytest.raises((OSError, ValueError)):
        Aws(service.endpoint)()


@pytest.mark.parametrize(
    ("preempted", "maintenance", "noticed"), [("FALSE", "NONE", False), ("TRUE\n", "NONE", True), ("FALSE", None, False)]
)
def test_gcp_is_asked_for_both_kinds(preempted: str, maintenance: str | None, noticed: bool, service: Service) -> None:
    service.answers[PREEMPTED] = (200, preempted)
    if maintenance:
        service.answers[MAINTENANCE] = (200, maintenance)
    assert (Gcp(service.endpoint)() is not None) == noticed


def test_gcp_maintenance(service: Service) -> None:
    service.answers = {PREEMPTED: (200, "FALSE"), MAINTENANCE: (200, "TERMINATE_ON_HOST_MAINTENANCE")}
    notice = Gcp(service.endpoint)()
    assert notice is not None
    assert notice.remaining(time.time()) in (58, 59, 60)


def test_a_slow_service_is_not_waited_for(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "TIMEOUT_S", 0.1)
    service.delay_s = 30
    with pytest.raises(TimeoutError):
        Gcp(service.endpoint)()


def test_no_service_at_all() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        with pytest.raises(OSError, match="refused"):
            Aws(f"http://127.0.0.1:{unused.getsockname()[1]}")()


def test_a_service_that_speaks_something_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def mumble() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"mumble\r\n\r\n")

        thread = threading.Thread(target=mumble)
        thread.start()
        with pytest.raises(ValueError, match="does not speak HTTP"):
            Gcp(f"http://127.0.0.1:{listener.getsockname()[1]}")()
        thread.join()


def test_a_proxy_is_not_asked(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    service.answers[AWS_PATH] = (200, ACTION)
    assert Aws(service.endpoint)() is not None


def test_seconds_count_from_the_writing_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "notice"
    ask = NoticeFile(file)
    assert ask() is None
    file.write_text("90")
    os.utime(file, (NOON, NOON))
    assert ask() == file_notice("90", NOON)


def test_sources_by_name(tmp_path: Path) -> None:
    assert source_named("aws") == Aws("http://169.254.169.254")
    assert source_named("gcp", "http://127.0.0.1:80/") == Gcp("http://127.0.0.1:80")
    assert source_named(f"file:{tmp_path}/a:b") == NoticeFile(tmp_path / "a:b")


@pytest.mark.parametrize(("name", "endpoint"), [("azure", None), ("file:", None), ("aws:x", None), ("aws", "x"), ("file:x", "http://x")])
def test_no_such_source(name: str, endpoint: str | None) -> None:
    with pytest.raises(UserError) as raised:
        source_named(name, endpoint)
    assert raised.value.remedy


# How trouble is outlived


def in_turn(*results: object) -> Callable[[], object | None]:
    """A source that gives these in turn, raising those that are errors."""
    left = list(results)

    def ask() -> object | None:
        result = left.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    return ask


def test_trouble_is_said_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    down = ConnectionError("down")
    ask = in_turn(None, down, down, ValueError("garbage"), None, None, down, "notice")
    assert _until(ask, 0.0, "it") == "notice"
    assert [record.message.split(",")[0] for record in caplog.records] == ["it does not answer", "it answers again"] * 2


def test_a_mistake_of_the_user_is_not_outlived() -> None:
    with pytest.raises(UserError):
        _until(in_turn(UserError("no such node")), 0.0, "it")


def test_one_name_or_a_question() -> None:
    assert only(set(), "nodes", "--node-id") is None
    assert only({"a"}, "nodes", "--node-id") == "a"
    with pytest.raises(UserError) as raised:
        only({"b", "a"}, "nodes run", "--node-id HEX")
    assert (str(raised.value), raised.value.remedy) == (
        "2 nodes run on this machine",
        "name the one that is meant with --node-id HEX: a, b",
    )


def test_a_node_that_is_gone_needs_no_drain() -> None:
    notice = Notice("why", None)
    assert drain(None, notice, seen=True) == "the node has gone by itself"
    assert drain(None, notice, seen=False) is None  # its raylet may still be starting


def test_the_watcher_is_light(environment: dict[str, str]) -> None:
    heavy = ("torch", "pyarrow", "pandas", "duckdb", "ray.data", "ray.train")
    script = f"import sys, jobs.watch_drain; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPO, env=environment, check=True)
    assert done.stdout == "[]\n"
