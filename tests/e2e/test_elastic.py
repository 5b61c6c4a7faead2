"""Elastic training on a real cluster of several nodes that are killed, frozen, joined and drained: what must stay true.

The faults are those of `make chaos`, one of each kind; how long recovery takes is measured there, not asserted here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from losslens.corpus.feed import direct
from losslens.corpus.packed import PackedCorpus
from losslens.results import Results
from losslens.specs import load_study
from losslens.training import journal
from losslens.training.checkpoint import saved_step, states
from losslens.training.snapshot import state_of
from losslens.training.worker import make_trainer
from tests.bench.chaos import STUDY, Chaos, Fault, Pretraining, disturb
from tests.nodes import Machines, machines, wait_for

pytestmark = pytest.mark.timeout(900)

KINDS = ["kill_node", "join", "drain", "join", "freeze_node", "kill_driver"]
MANY = 8_000  # steps: no machine ends them while the faults last


def study(folder: Path, steps: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "study.yaml"
    file.write_text(STUDY.format(tokens=steps * 8 * 128), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with machines(2, eval_slots=1) as running:
        yield running


@pytest.fixture(scope="module")
def disturbed(cluster: Machines, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pretraining, list[Fault]]:
    """A run with one fault after the other, ended at some step after the last."""
    folder = tmp_path_factory.mktemp("disturbed")
    training = Pretraining(study(folder, MANY), folder / "results", cluster.address)
    training.start()
    faults = list(disturb(Chaos(cluster, training, seed=1), KINDS))
    saved = saved_step(training.results, training.run.run_id)
    wait_for(lambda: saved_step(training.results, training.run.run_id) > saved, 60, "a state after the last fault")
    training.kill()
    return training, faults


def undisturbed(training: Pretraining, steps: int) -> dict[str, torch.Tensor]:
    """The state of the same run after so many steps in one process, without Ray."""
    spec, run = load_study(str(training.study)), training.run
    (manifest,) = (training.results / "corpus").glob("*/manifest.json")
    threads = torch.get_num_threads()
    torch.set_num_threads(spec.cluster.threads)
    trainer = make_trainer(spec, run, torch.device("cpu"), PackedCorpus.open(manifest.parent).eos)
    for rows in direct(manifest.parent, run.seed, cursor=0, steps=steps, global_batch=run.global_batch, rank=0, world=1):
        trainer.update(torch.from_numpy(rows))
    torch.set_num_threads(threads)
    return state_of(trainer)


def curve(training: Pretraining) -> list[dict[str, Any]]:
    """Each step's loss, how many different losses it was logged with, and its world sizes."""
    rows: list[dict[str, Any]] = (
        Results(training.results)
        .query(
            "SELECT step, any_value(loss) AS loss, count(DISTINCT loss) AS losses, min(world_size) AS least, max(world_size) AS most "
            "FROM train_log GROUP BY step ORDER BY step"
        )
        .to_pylist()
    )
    return rows


def test_every_fault_happened_while_it_trained(disturbed: tuple[Pretraining, list[Fault]]) -> None:
    _, faults = disturbed
    assert [fault.kind for fault in faults] == KINDS
    assert all(fault.recovery > 0 for fault in faults), "the run ended too early: give it more steps"


def test_planned_changes_lose_no_step(disturbed: tuple[Pretraining, list[Fault]]) -> None:
    _, faults = disturbed
    assert [(f.kind, f.lost) for f in faults if f.kind in ("join", "drain") and f.lost] == []


def test_the_group_follows_the_nodes(disturbed: tuple[Pretraining, list[Fault]]) -> None:
    training, faults = disturbed
    sizes = {(row["least"], row["most"]) for row in curve(training)}
    assert {size for pair in sizes for size in pair} == {1, 2}
    for fault in faults:
        before, after = fault.workers
        expected = {"join": before + 1, "kill_worker": before, "kill_driver": before}.get(fault.kind, before - 1)
        assert after == expected, fault


def test_every_step_has_the_loss_and_the_end_the_state_of_an_undisturbed_run(disturbed: tuple[Pretraining, list[Fault]]) -> None:
    training, _ = disturbed
    step, state = next(states(training.results, training.run.run_id))
    rows = curve(training)[:step]
    assert [row["step"] for row in rows] == list(range(1, step + 1))
    assert all(row["losses"] == 1 for row in rows), "a step that was done twice gave two losses"
    alone = undisturbed(training, step)
    assert [row["loss"] for row in rows] == alone["losses"][:step].tolist()
    assert state.keys() == alone.keys()
    assert [name for name in alone if not torch.equal(state[name], alone[name])] == []


def one_slot(losslens: Callable[..., Any], training: Pretraining) -> dict[str, Any] | None:
    """The run's row of `losslens status`, once that shows one train slot."""
    (row,) = json.loads(losslens("status", "--results", training.results, "--format", "json").stdout)
    return row if row["train_slots"] == 1 else None


def test_below_the_least_number_of_workers_it_waits_and_says_so(cluster: Machines, tmp_path: Path, losslens: Callable[..., Any]) -> None:
    while len(cluster.nodes) < 2:
        cluster.join()
    training = Pretraining(study(tmp_path, 250), tmp_path / "results", cluster.address)
    training.start("--set", "cluster.workers=[2, 2]")
    wait_for(lambda: training.step() > 20, 120, "some steps of training")
    cluster.kill(cluster.nodes[0])
    why = "needs 2 train slots, the cluster has 1"
    wait_for(lambda: journal.state(training.home / "workers.json").get("why") == why, 60, "waiting")
    row = wait_for(lambda: one_slot(losslens, training), 30, "a view of the smaller cluster")
    assert (row["state"], row["waits_for"]) == ("waiting", why), row
    cluster.join()
    wait_for(training.over, 240, "the end of training")
    assert f"waits: {why}" in training.log[-1].read_text()
    assert curve(training)[-1]["step"] == 250


def test_a_family_shares_the_slots_and_a_finished_size_leaves_its_own_to_the_others(cluster: Machines, tmp_path: Path) -> None:
    while len(cluster.nodes) < 3:
        cluster.join()
    small = "{name: s, d_model: 32, d_ffn: 96, heads: 2, kv_heads: 1, layers: 2, tokens: 200k}"
    large = f"{{name: l, d_model: 48, d_ffn: 128, heads: 2, kv_heads: 1, layers: 3, tokens: {MANY * 1024}}}"
    training = Pretraining(study(tmp_path, MANY), tmp_path / "results", cluster.address)
    training.start("--set", f"family.sizes=[{small}, {large}]", "--set", "training.checkpoints.count=1", verb="run")
    (tmp_path / "results" / "checkpoints").mkdir(parents=True)

    def events(size: str) -> list[dict[str, Any]]:
        return [e for home in (training.results / "checkpoints").glob(f"chaos-{size}-*") for e in journal.events(home)]

    def world_sizes(size: str) -> list[int]:
        return [e["world_size"] for e in events(size) if e["event"] == "stepping"]

    wait_for(lambda: training.over() or 3 in world_sizes("l"), 240, "the large size on all slots")
    training.kill()
    assert world_sizes("s") == [1], "the small size gets its least"
    assert world_sizes("l") == [2, 3], "the size with the most work gets the rest, and all when the other has ended"
    assert [e["reason"] for e in events("l") if e["event"] == "resize"] == ["grow"]
    ended = max(e["time"] for e in events("s"))
    assert next(e["time"] for e in events("l") if e["event"] == "ask") > ended
