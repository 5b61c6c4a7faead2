"""A realistic study with planted truths, written as Parquet parts: what analysis, report and notebooks are tested on.

Four sizes, 22 checkpoints each and 11 tasks as in the bundled demo, but every curve is known: emergent tasks stay at
chance above their planted loss and rise below it, gradual ones rise from the start, one format never leaves chance, and
two tasks are exceptions whose threshold moves with size. Scores carry binomial noise of their number of items.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from losslens.results import Results
from losslens.results.tables import TABLES
from losslens.tasks.builder import CHOICE_METRICS, OPEN_METRICS, choice_item, gold_item
from losslens.tasks.metrics import score_items
from losslens.tasks.records import Scored
from losslens.tasks.requests import BuiltTask, Generate, GenerateResult, Item, LogLikelihoodResult, Result

Floats = npt.NDArray[np.float64]
Row = dict[str, Any]
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SIZES = {"d48": (114_000, 2_000_000), "d64": (201_000, 1_500_000), "d96": (431_000, 1_200_000), "d160": (1_180_000, 950_000)}
INITIAL_LOSS = math.log(128)


@dataclass(frozen=True)
class Planted:
    """The truth of one task in one format. `eta` is the planted threshold in nats/token of held-out loss; `shift` moves
    it per e-fold of parameters (0: all sizes share one curve)."""

    task: str
    kind: Literal["emergent", "gradual", "flat"]
    format: str = "open"
    eta: float | None = None
    shift: float = 0.0
    chance: float = 0.0
    best: float = 0.95  # value far below the threshold
    width: float = 0.10  # nats/token over which the ability grows
    items: int = 200
    answers: bool = False  # every item's are in `samples`, and its scores are the scorer's

    @property
    def metric(self) -> str:
        return {"open": "exact_match", "text": "acc_norm", "letter": "acc"}[self.format]


TASKS = (
    Planted("skill_copy", "emergent", eta=1.86),
    Planted("skill_reverse", "emergent", eta=1.92, items=240),
    Planted("skill_addition", "emergent", eta=1.66, best=0.9),
    Planted("skill_sort", "emergent", eta=2.02, best=0.9),
    Planted("skill_count", "emergent", eta=1.62, best=0.8, items=380),
    Planted("skill_recall", "emergent", eta=1.68, shift=0.05, best=0.9, width=0.06),
    Planted("skill_facts", "emergent", eta=1.70, shift=-0.05, best=0.7, width=0.12, items=140),
    Planted("next_char", "gradual", best=0.62, items=300),
    Planted("rest_of_word", "gradual", best=0.5, items=300),
    Planted("cloze_far", "gradual", format="text", chance=0.25, best=0.85, items=150),
    Planted("cloze_near", "gradual", format="text", chance=0.25, best=0.6, items=150),
    Planted("cloze_far", "flat", format="letter", chance=0.25, items=150),
)
ANSWERED = (
    Planted("exam", "emergent", format="letter", eta=1.9, chance=0.25, items=80, answers=True),
    Planted("sums", "emergent", eta=1.8, best=0.9, items=80, answers=True),
)
"""Tasks with stored answers. The threshold of `exam` is in the model: the right letter's probability leaves a quarter where its
accuracy does. That of `sums` is the metric's: the probability of each token of the answer grows from the start."""


@dataclass(frozen=True)
class Study:
    """What was written and where."""

    root: Path
    name: str
    sizes: tuple[str, ...]
    planted: tuple[Planted, ...]
    checkpoints: int  # in all


@dataclass
class _Parts:
    rows: dict[str, list[Row]] = field(default_factory=lambda: {name: [] for name in TABLES})

    def write(self, root: Path, study: str) -> None:
        stem = hashlib.sha256(study.encode()).hexdigest()[:16]
        for name, rows in self.rows.items():
            if rows:
                folder = root / "parts" / name
                folder.mkdir(parents=True, exist_ok=True)
                pq.write_table(pa.Table.from_pylist(rows, schema=TABLES[name]), folder / f"{stem}.parquet")


def write_study(
    root: Path,
    *,
    name: str = "synthetic",
    checkpoints: int = 22,
    tasks: tuple[Planted, ...] = TASKS,
    seed: int = 0,
    seeds: int = 1,
    thresholds: bool = True,
) -> Study:
    """Write the study's parts under `root`: `checkpoints` per run, the first at step 0, and `seeds` runs per size, each after the first
    with thresholds of its own. `thresholds=False` leaves that table to the analysis; otherwise it holds the planted truth."""
    rng = np.random.default_rng(seed)
    parts = _Parts()
    for size, (params, budget) in SIZES.items():
        for number in range(seeds):
            own = tasks if number == 0 else tuple(_elsewhere(task, float(rng.normal(0, 0.05))) for task in tasks)
            _add_run(parts, rng, name, size, params, budget, checkpoints, own, number)
    if thresholds:
        parts.rows["thresholds"] = [_threshold(name, task, checkpoints) for task in tasks]
    parts.write(root, name)
    return Study(root, name, tuple(SIZES), tasks, checkpoints * len(SIZES) * seeds)


def write_tuned(root: Path, study: Study, amounts: tuple[int, ...] = (0, 8_192, 65_536), moved: float = 0.3) -> None:
    """Write the study's trained checkpoints tuned on `amounts` tokens, a run of `<study>-tuned` each; the largest amount moves the
    emergent tasks' thresholds `moved` nats/token up."""
    rng = np.random.default_rng(0)
    parts = _Parts()
    parents = Results(root).query(
        "SELECT checkpoint_id, size, params, value FROM runs JOIN checkpoints USING (run_id) JOIN losses USING (checkpoint_id) "
        "WHERE study = ? AND step > 0 AND dataset = 'heldout' AND unit = 'nats/token' ORDER BY ALL",
        (study.name,),
    )
    for number, parent in enumerate(parents.to_pylist()):
        run = _run(f"{study.name}-tuned", f"{study.name}-tuned-{number}", parent["size"], parent["params"], max(amounts), 0)
        parts.rows["runs"].append(run | {"parent_checkpoint_id": parent["checkpoint_id"]})
        for tokens in amounts:
            checkpoint = f"{run['run_id']}/step-{tokens // 1024:08d}"
            parts.rows["checkpoints"].append(
                {"checkpoint_id": checkpoint, "run_id": run["run_id"], "step": tokens // 1024, "tokens": tokens}
            )
            before = {"checkpoint_id": checkpoint, "dataset": "parent/heldout", "unit": "nats/token", "value": parent["value"]}
            parts.rows["losses"] += [before, *_losses(rng, checkpoint, parent["value"] - 0.1 * tokens / max(amounts))]
            for task in study.planted:
                own = _elsewhere(task, moved * tokens / max(amounts))
                parts.rows["scores"] += _scores(rng, checkpoint, own, float(ability(own, np.array([parent["value"]]), parent["params"])[0]))
    parts.write(root, f"{study.name}-tuned")


def _elsewhere(task: Planted, by: float) -> Planted:
    return task if task.eta is None else replace(task, eta=task.eta + by)


def loss(params: int, tokens: Floats) -> Floats:
    """Held-out loss in nats/token: from ln(vocabulary) down to a floor that falls with size, sooner for larger sizes."""
    floor = 1.2 + 0.15 * math.sqrt(114_000 / params)
    scale = 60_000 * (114_000 / params) ** 0.4
    falling: Floats = floor + (INITIAL_LOSS - floor) / (1 + (tokens / scale) ** 0.75)
    return falling


def ability(task: Planted, losses: Floats, params: int) -> Floats:
    """The true score at each loss."""
    if task.kind == "flat":
        return np.full_like(losses, task.chance)
    if task.kind == "gradual":
        progress = (INITIAL_LOSS - losses) / (INITIAL_LOSS - 1.4)
    else:
        assert task.eta is not None
        eta = task.eta + task.shift * math.log(params / 114_000)
        progress = 1 - np.exp(-np.maximum(eta - losses, 0) / task.width)
    return task.chance + (task.best - task.chance) * np.clip(progress, 0, 1)


def _add_run(
    parts: _Parts,
    rng: np.random.Generator,
    study: str,
    size: str,
    params: int,
    budget: int,
    count: int,
    tasks: tuple[Planted, ...],
    number: int,
) -> None:
    run_id = f"{study}-{size}-s{number}"
    steps = np.unique(np.concatenate([[0], np.geomspace(10, budget // 1024, max(count - 1, 1)).round()]).astype(np.int64))
    if len(steps) < count:  # log spacing rounded two checkpoints to one step
        steps = np.unique(np.linspace(0, budget // 1024 + count, count).round().astype(np.int64))
    tokens = steps * 1024.0
    true = loss(params, np.asarray(tokens, dtype=np.float64))
    parts.rows["runs"].append(_run(study, run_id, size, params, budget, number))
    ids = [f"{run_id}/step-{step:08d}" for step in steps]
    for i, (checkpoint, step) in enumerate(zip(ids, steps, strict=True)):
        parts.rows["checkpoints"].append(
            {"checkpoint_id": checkpoint, "run_id": run_id, "step": int(step), "tokens": int(tokens[i]), "flops": 6.0 * params * tokens[i]}
            | {"path": f"checkpoints/{checkpoint}", "created_at": NOW}
        )
        parts.rows["losses"] += _losses(rng, checkpoint, float(true[i]))
    for task in tasks:
        scores = ability(task, true, params)
        for i, (checkpoint, value) in enumerate(zip(ids, scores, strict=True)):
            if task.answers:
                _add_answers(parts, rng, checkpoint, task, float(value), float(true[i]))
            else:
                parts.rows["scores"] += _scores(rng, checkpoint, task, float(value))
    for step in range(10, int(steps[-1]) + 1, max(10, int(steps[-1]) // 100)):
        value = float(loss(params, np.array([step * 1024.0]))[0] + rng.normal(0, 0.05))
        parts.rows["train_log"].append(
            {"run_id": run_id, "attempt": 0, "step": step, "tokens": step * 1024, "loss": value, "lr": 0.01, "grad_norm": 1.0}
            | {"tokens_per_second": 2e9 / params, "world_size": 1, "time": NOW}
        )


def _run(study: str, run_id: str, size: str, params: int, budget: int, seed: int) -> Row:
    return {
        "run_id": run_id, "study": study, "size": size, "architecture": "paper", "params": params,
        "params_non_embedding": params - 12_000, "tokenizer": "byte", "vocab_size": 128, "corpus": "synthetic-corpus", "seq_len": 128,
        "optimizer": "muon", "schedule": "constant", "peak_lr": 0.014, "batch_tokens": 1024, "tokens_planned": budget, "seed": seed,
        "source": "synthetic", "created_at": NOW,
    }  # fmt: skip


def _losses(rng: np.random.Generator, checkpoint: str, true: float) -> list[Row]:
    rows = []
    sources = (("train", 0.02, 0.02), ("heldout", 0.0, 0.004), ("heldout/stdlib", 0.2, 0.006), ("heldout/skills", -0.15, 0.006))
    for dataset, offset, noise in sources:
        value = true + offset + float(rng.normal(0, noise))
        row = {"checkpoint_id": checkpoint, "dataset": dataset, "stderr": noise, "tokens": 8_192, "bytes": 8_192}
        rows.append(row | {"unit": "nats/token", "value": value})
        rows.append(row | {"unit": "bits/byte", "value": value / math.log(2), "stderr": noise / math.log(2)})
    return rows


def _scores(rng: np.random.Generator, checkpoint: str, task: Planted, true: float) -> list[Row]:
    def row(metric: str, value: float, stderr: float, chance: float, higher: bool = True) -> Row:
        base = {"checkpoint_id": checkpoint, "task": task.task, "task_version": 1, "format": task.format, "shots": 0, "n": task.items}
        measured = {"metric": metric, "value": value, "stderr": stderr, "chance": chance, "higher_is_better": higher}
        return base | measured | {"engine": "fake", "scored_at": NOW}

    def share(probability: float) -> tuple[float, float]:
        value = float(rng.binomial(task.items, probability)) / task.items
        return value, math.sqrt(value * (1 - value) / task.items)

    rows = [row(task.metric, *share(true), task.chance)]
    rows.append(row("bits_per_byte", 3 - 2 * true + float(rng.normal(0, 0.05)), 0.05, 8.0, higher=False))
    if task.format != "open":
        probability = min(max(true - 0.02 + float(rng.normal(0, 0.01)), 0), 1)
        rows.append(row("correct_choice_prob", probability, 0.01, task.chance))
        rows.append(row("brier", 0.75 * (1 - probability) / (1 - task.chance), 0.01, 0.75, higher=False))
    if task.format == "text":
        rows.append(row("acc", *share(max(true - 0.03, task.chance)), task.chance))
    return rows


def _add_answers(parts: _Parts, rng: np.random.Generator, checkpoint: str, task: Planted, true: float, loss: float) -> None:
    known = (rng.random(task.items) < (true - task.chance) / (1 - task.chance)).tolist()
    if task.format == "open":
        answers = [_open_answer(rng, str(number), knows, loss) for number, knows in enumerate(known)]
        built = BuiltTask(task.task, "open", 0, 1, OPEN_METRICS, tuple(item for item, _ in answers))
    else:
        answers = [_letter_answer(rng, str(number), knows) for number, knows in enumerate(known)]
        built = BuiltTask(task.task, "letter", 0, 1, CHOICE_METRICS["letter"], tuple(item for item, _ in answers))
    scores, samples = score_items(built, [results for _, results in answers])
    base: Row = {"checkpoint_id": checkpoint, "task": task.task, "task_version": 1, "format": task.format, "shots": 0, "engine": "fake"}
    parts.rows["scores"] += [base | asdict(score) | {"scored_at": NOW} for score in scores]
    parts.rows["samples"] += [base | asdict(sample) for sample in samples]


def _letter_answer(rng: np.random.Generator, number: str, knows: bool) -> tuple[Item, list[Result]]:
    """Four letters: the right one e^3 times as likely where the model knows it, all about alike where not."""
    gold = int(rng.integers(4))
    logprobs = rng.normal(-4, 0.1, 4)
    logprobs[gold] += 3 * knows
    item = choice_item(number, gold, [Scored("Q:", letter, " ") for letter in "ABCD"])
    return item, [LogLikelihoodResult(float(logprob), 1, False) for logprob in logprobs]


def _open_answer(rng: np.random.Generator, number: str, knows: bool, loss: float) -> tuple[Item, list[Result]]:
    """A number of three tokens, each of a probability that grows with every bit of loss."""
    item = gold_item(number, Scored("Q:", "371", " "), 0.0)
    each = math.log(0.1 + 0.7 * (INITIAL_LOSS - loss) / INITIAL_LOSS) + rng.normal(0, 0.05)
    asked = Item(number, (Generate("Q:", ("\n",), 8), *item.requests), answers=item.answers, option_bytes=item.option_bytes, chance=0.0)
    return asked, [GenerateResult("371" if knows else "317"), LogLikelihoodResult(3 * each, 3, False)]


def _threshold(study: str, task: Planted, checkpoints: int) -> Row:
    verdict = {"emergent": "emergent", "gradual": "gradual", "flat": "not_reached"}[task.kind]
    row: Row = {"study": study, "task": task.task, "format": task.format, "shots": 0, "metric": task.metric}
    row |= {"loss_dataset": "heldout", "loss_unit": "nats/token", "verdict": verdict, "method": "planted", "computed_at": NOW}
    row |= {"spearman": -0.9 if task.kind != "flat" else 0.01, "pearson": -0.8 if task.kind != "flat" else 0.02}
    row |= {"n_checkpoints": checkpoints * len(SIZES), "n_runs": len(SIZES)}
    if task.eta is not None:
        row |= {"eta": task.eta, "eta_low": task.eta - 0.05, "eta_high": task.eta + 0.04}
        row |= {"last_at_chance": task.eta + 0.01, "first_above": task.eta - 0.04}
    return row
