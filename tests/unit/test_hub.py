"""Positions told by names and files, which revisions are chosen, what leaves the cache first, and who keeps it there."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from eval_service.cache import Cache, Entry, Stopped, leaving_order, parse_size
from eval_service.position import Position, StepNames, chosen, in_order, position
from losslens.errors import EnvironmentFailure, UserError


@pytest.mark.parametrize(
    ("name", "step", "tokens", "branch"),
    [
        ("step1000", 1000, None, ""),  # Pythia
        ("step0", 0, None, ""),
        ("step1000-tokens4B", 1000, 4 * 10**9, ""),  # OLMo
        ("stage1-step140000-tokens294B", 140_000, 294 * 10**9, "stage1"),  # OLMo 2
        ("stage2-ingredient3-step1000-tokens5B", 1000, 5 * 10**9, "stage2-ingredient3"),
        ("step7-tokens1.5T", 7, 15 * 10**11, ""),
        ("global_step95000", 95_000, None, ""),  # BLOOM
        ("checkpoint-500", 500, None, ""),  # transformers' Trainer
        ("step-00000020", 20, None, ""),
        ("main", None, None, ""),
        ("ckpt_012", None, None, ""),  # an index, not a step
    ],
)
def test_names_of_published_revisions(name: str, step: int | None, tokens: int | None, branch: str) -> None:
    assert StepNames().read(name) == Position(step, tokens, branch=branch)


def test_tokens_per_step_go_before_rounded_names() -> None:
    assert StepNames(tokens_per_step=2**21).read("step1000-tokens2B").tokens == 1000 * 2**21
    assert StepNames(tokens_per_step=2**21).read("step0").tokens == 0
    assert StepNames(r"it(?P<step>\d+)(_(?P<tokens>\d+))?", 7).read("it3_9").tokens == 21
    assert StepNames(r"it(?P<step>\d+)(_(?P<tokens>\d+))?").read("it3_9").tokens == 9


@pytest.mark.parametrize(("pattern", "says"), [("step(", "is not a regular expression"), (r"step(\d+)", "has no group named step")])
def test_step_patterns_that_cannot_work(pattern: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        StepNames(pattern)
    assert "(?P<step>" in refused.value.remedy


def test_patterns_that_find_no_number() -> None:
    with pytest.raises(UserError, match="'1e3' in step1e3"):
        StepNames(r"step(?P<step>\w+)").read("step1e3")
    with pytest.raises(UserError, match="'5X' tokens"):
        StepNames(r"step(?P<step>\d+)-(?P<tokens>\w+)").read("step1-5X")


def test_revisions_are_walked_branch_by_branch_in_order_of_step() -> None:
    names = ["stage2-step5", "stage1-step1000", "main", "step20", "stage1-step200", "step3"]
    ordered = sorted(names, key=lambda name: in_order(StepNames().read(name), name))
    assert ordered == ["step3", "step20", "main", "stage1-step200", "stage1-step1000", "stage2-step5"]
    assert chosen(ordered, ["step*", "main"]) == ["step3", "step20", "main"]
    assert chosen(ordered, ["stage[12]-step?"]) == ["stage2-step5"]


def trainer_state(directory: Path, **content: Any) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "trainer_state.json").write_text(json.dumps(content), encoding="utf-8")
    return directory


def test_the_trainers_state_tells_step_tokens_and_loss(tmp_path: Path) -> None:
    history = [{"loss": 3.5, "step": 50, "epoch": 0.1}, {"loss": 3.25, "step": 100, "grad_norm": 1.0}, {"eval_loss": 3.4, "step": 100}]
    directory = trainer_state(tmp_path / "checkpoint-7", global_step=100, num_input_tokens_seen=4096, log_history=history)
    found = position(directory, None, StepNames(tokens_per_step=3))
    assert (found.step, found.tokens) == (100, 4096)
    assert found.losses == ({"dataset": "train", "unit": "nats/token", "value": 3.25},)


def test_a_loss_of_another_step_is_not_taken_and_zero_tokens_are_unknown(tmp_path: Path) -> None:
    directory = trainer_state(tmp_path / "x", global_step=120, num_input_tokens_seen=0, log_history=[{"loss": 3.5, "step": 100}])
    assert position(directory, None, StepNames()) == Position(120)
    assert position(directory, None, StepNames(tokens_per_step=2)) == Position(120, 240)
    directory = trainer_state(tmp_path / "x", global_step=120, log_history=[{"loss": float("nan"), "step": 120}])
    assert position(directory, None, StepNames()) == Position(120)


def test_another_trainers_card_goes_before_its_name(tmp_path: Path) -> None:
    loss = {"dataset": "heldout", "unit": "bits/byte", "value": 0.9, "bytes": 100}
    card = {"step": 30, "tokens": 900, "flops": 1e9, "losses": [loss]}
    found = position(tmp_path / "step10-tokens5K", card, StepNames())
    assert (found.step, found.tokens, found.flops) == (30, 900, 1e9)
    assert found.losses[0]["value"] == 0.9
    assert position(tmp_path / "step10-tokens5K", {"flops": 1.0}, StepNames()) == Position(10, 5000, 1.0)
    assert position(tmp_path / "step10-tokens5K", {"step": 30}, StepNames()) == Position(30)  # the name's tokens are of its own step


@pytest.mark.parametrize(
    "card", [{"steps": 3}, {"step": -1}, {"step": "3"}, {"losses": [{"dataset": "train", "unit": "nats", "value": 1.0}]}, {"losses": [{}]}]
)
def test_cards_that_are_not_what_they_should_be(tmp_path: Path, card: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"losslens\.json is not what it should be"):
        position(tmp_path / "x", card, StepNames())


@pytest.mark.parametrize("text", ["", "[]", '{"global_step": -1}', '{"log_history": []}', '{"global_step": 1, "log_history": [3]}'])
def test_a_trainers_state_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "trainer_state.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"trainer_state\.json cannot be read"):
        position(tmp_path, None, StepNames())


@pytest.mark.parametrize(
    ("text", "size"), [("50GB", 50 * 10**9), ("1.5 TB", 15 * 10**11), ("10MiB", 10 * 2**20), ("7k", 7000), ("123", 123), ("12B", 12)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "lots", "-1GB", "0GB", "1e3MB", "5XB"])
def test_what_is_not_a_size(text: str) -> None:
    with pytest.raises(UserError, match=r"is not a size|holds nothing"):
        parse_size(text)


def test_what_leaves_the_cache_first() -> None:
    a, b, c, d = (Entry(Path(name), 10, used) for name, used in (("a", 4.0), ("b", 3.0), ("c", 2.0), ("d", 1.0)))
    assert leaving_order([a, b, c, d], []) == [d, c, b, a]
    assert leaving_order([a, b, c, d], [Path("d"), Path("c")]) == [b, a, c, d]  # d is needed next, so it stays longest


def filled(size: int) -> Any:
    return lambda into: (into / "model.safetensors").write_bytes(bytes(size))


def test_the_cache_evicts_what_nobody_reads_and_no_more_than_it_must(tmp_path: Path) -> None:
    cache, never = Cache(tmp_path, 250), threading.Event()
    for number in range(2):
        cache.lend(cache.home("org/a", str(number)), 100, filled(100), never)[0].release()
    reading, was_there = cache.lend(cache.home("org/a", "0"), 100, filled(100), never)
    assert was_there
    third, _ = cache.lend(cache.home("org/b", "2"), 100, filled(100), never)
    assert {str(e.home.relative_to(tmp_path)) for e in cache.entries()} == {"org--a/0", "org--b/2"}  # 1 was unused
    for lease in (reading, third):
        lease.release()
    with pytest.raises(UserError, match="does not fit into the cache"):
        cache.lend(cache.home("org/a", "3"), 251, filled(251), never)
    cache.lend(cache.home("org/a", "3"), 250, filled(250), never)[0].release()
    assert [entry.home.name for entry in cache.entries()] == ["3"]


def test_a_full_cache_is_waited_for_until_a_reader_is_done(tmp_path: Path) -> None:
    cache, stop = Cache(tmp_path, 100), threading.Event()
    reading, _ = cache.lend(cache.home("org/a", "0"), 100, filled(100), stop)
    lent: list[Any] = []
    waiting = threading.Thread(target=lambda: lent.append(Cache(tmp_path, 100).lend(cache.home("org/a", "1"), 100, filled(100), stop)))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    assert (reading.home / "model.safetensors").is_file()
    reading.release()
    waiting.join()
    assert not reading.home.exists()
    lent[0][0].release()


def test_waiting_for_room_can_be_stopped(tmp_path: Path) -> None:
    cache, stop = Cache(tmp_path, 100), threading.Event()
    reading, _ = cache.lend(cache.home("org/a", "0"), 100, filled(100), stop)
    stop.set()
    with pytest.raises(Stopped):
        cache.lend(cache.home("org/a", "1"), 100, filled(100), stop)
    reading.release()


def test_what_an_interrupted_download_left_is_found_again_and_counts(tmp_path: Path) -> None:
    cache, never = Cache(tmp_path, 250), threading.Event()
    home = cache.home("org/a", "0")

    def interrupted(into: Path) -> None:
        (into / "model.safetensors.partial").write_bytes(bytes(40))
        raise Stopped

    with pytest.raises(Stopped):
        cache.lend(home, 100, interrupted, never)
    assert not home.exists()
    assert [entry.bytes for entry in cache.entries()] == [100]  # what it was going to have
    seen: list[list[str]] = []
    cache.lend(home, 100, lambda into: seen.append([file.name for file in into.iterdir()]), never)[0].release()
    assert seen == [["model.safetensors.partial"]]


def test_two_who_want_the_same_revision_download_it_once(tmp_path: Path) -> None:
    never, filling, go_on = threading.Event(), threading.Event(), threading.Event()
    home = Cache(tmp_path, 100).home("org/a", "0")
    filled_by: list[str] = []

    def slowly(into: Path) -> None:
        filled_by.append("first")
        filling.set()
        go_on.wait()

    def lend(fill: Any) -> None:
        Cache(tmp_path, 100).lend(home, 100, fill, never)[0].release()

    first = threading.Thread(target=lend, args=(slowly,))
    first.start()
    filling.wait()
    second = threading.Thread(target=lend, args=(lambda into: filled_by.append("second"),))
    second.start()
    go_on.set()
    first.join()
    second.join()
    assert filled_by == ["first"]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file", 100)
    with pytest.raises(EnvironmentFailure, match="cannot be written"):
        cache.lend(cache.home("org/a", "0"), 1, filled(1), threading.Event())
