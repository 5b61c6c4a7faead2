"""Scoring speed beside lm-evaluation-harness: every row of the table against the named rival in the same run.

    make bench-scoring
    python tests/bench/bench_lm_eval.py [--rows hellaswag,mmlu-letter] [--sizes 2.8M] [--items 300] [--rounds 5] [--engines torch]

Randomly initialised models of the paper's block with a BPE of 8,192 entries, float32, 2 threads for both sides, warm
scoring: model loaded, clock from text to log-probabilities. Each round asks other items, the same of every side, one side
after another; figures are medians of the rounds, ratios medians of the rounds' ratios. `first` tokenises and plans as
lm-eval does at every call, and is what is compared; `next` is the next checkpoint, whose plan is there. `hf` has the
quickest of four batch sizes.

    hellaswag          `text` of --items items
    mmlu-text          five shots, `text`, a third of --items, all of one subject as in the whole benchmark (another each round)
    mmlu-letter        the same in `letter`
    mmlu-letter-drawn  five shots, `letter`, a third of --items drawn from all subjects, as --limit draws them
    prefill            our vLLM engine on HellaSwag against a vLLM that only reads the same options
    checkpoints        50 checkpoints x 6 tasks x 200 items, in the format in which lm-eval asks each: `losslens evaluate` against
                       one `lm_eval` process a checkpoint, of which three are measured and scaled
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

THREADS = "2"
os.environ.update({"OMP_NUM_THREADS": THREADS, "RAYON_NUM_THREADS": THREADS, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"

import torch  # noqa: E402 - after the number of threads is set

from eval_service.engine import Engine  # noqa: E402
from eval_service.torch_engine import TorchEngine  # noqa: E402
from eval_service.vllm_engine import VllmEngine, installed  # noqa: E402
from losslens import tasks  # noqa: E402
from losslens.tasks.requests import Item, LogLikelihood  # noqa: E402
from tests import lm_eval_tasks  # noqa: E402
from tests.bench import lm_eval_rivals as sides  # noqa: E402

REPO = Path(__file__).resolve().parents[2]
SHARED = REPO.parent / "shared" / "data"
PINNED = "0.4.13"
ENGINES: dict[str, Callable[[], Engine]] = {"torch": TorchEngine, "vllm": VllmEngine}
LOOP = "lm_eval processes"
# Wanted ratio by (row, rival, size); "" stands for every size.
TARGETS = {
    ("hellaswag", "hf", ""): 2.0,
    ("hellaswag", "vllm", ""): 3.0,
    ("mmlu-text", "hf", ""): 3.0,
    ("mmlu-letter", "hf", "2.8M"): 6.0,
    ("mmlu-letter", "hf", "18.9M"): 4.0,
    ("prefill", "vLLM reading", ""): 0.9,
    ("checkpoints", LOOP, ""): 10.0,
}
# The format in which lm-eval's task of that name asks.
LOOP_TASKS = {
    "hellaswag": "text",
    "winogrande": "pair",
    "piqa": "text",
    "arc_challenge": "text",
    "lambada": "open",
    "mmlu": "letter",
}
LOOP_MEASURED, LOOP_BATCH = 3, 32
HEAD = (
    f"{'size':6}{'row':19}{'ours':7}{'items/s first':>14}{'options/s':>11}{'next':>8}"
    f"  {'rival':13}{'items/s':>9}{'first/rival':>13}{'next':>7}{'wanted':>8}"
)


@dataclass(frozen=True, slots=True)
class Question:
    """What one round asks."""

    items: int
    asked: list[LogLikelihood]


@dataclass(frozen=True, slots=True)
class Round:
    """Items a second of one round, by side."""

    question: Question
    first: dict[str, float]
    next: dict[str, float]


def main() -> None:
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    given = arguments()
    torch.set_num_threads(int(THREADS))
    print(f"lm-eval {require_lm_eval()}, torch {torch.__version__}, {THREADS} threads, medians of {given.rounds} rounds; items/s")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tokenizer = sides.tokenizer_of_8192(place / "tokenizer", SHARED / "corpus")
        print(HEAD)
        for size in given.sizes.split(","):
            warm_rows(place / size, tokenizer, size, given)
        if "checkpoints" in given.rows:
            checkpoint_row(place / "loop", tokenizer, given)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="hellaswag,mmlu-text,mmlu-letter,mmlu-letter-drawn,prefill,checkpoints")
    parser.add_argument("--sizes", default="2.8M,18.9M")
    parser.add_argument("--engines", default="torch,vllm", help="ours")
    parser.add_argument("--rivals", default="hf,vllm")
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--checkpoints", type=int, default=50)
    parser.add_argument("--loop-items", type=int, default=200, help="of each task of the row `checkpoints`")
    parser.add_argument("--data", type=Path, default=SHARED / "tasks")
    given = parser.parse_args()
    given.rows = given.rows.split(",")
    if not (SHARED / "corpus").is_dir():
        sys.exit(f"the tokenizer needs English text in {SHARED / 'corpus'}")
    for row in [row for row in given.rows if not (given.data / row.split("-")[0]).is_dir() and row not in ("prefill", "checkpoints")]:
        print(f"{row} is left out: {given.data / row.split('-')[0]} does not exist")
        given.rows.remove(row)
    if not installed():
        print("vLLM is not installed: its rows are left out")
        given.engines, given.rivals = given.engines.replace(",vllm", ""), given.rivals.replace(",vllm", "")
        given.rows = [row for row in given.rows if row != "prefill"]
    return given


def require_lm_eval() -> str:
    """The pinned rival, or nothing is measured."""
    try:
        found = version("lm_eval")
    except PackageNotFoundError:
        sys.exit("lm-eval is not installed: pip install --constraint constraints.txt lm_eval accelerate")
    if found != PINNED:
        sys.exit(f"lm-eval {found} is installed and {PINNED} is the one compared with")
    return found


def warm_rows(folder: Path, tokenizer: Path, size: str, given: argparse.Namespace) -> None:
    """All rows of one size that score with a loaded model."""
    rows = [row for row in given.rows if row in QUESTIONS]
    if not rows and "prefill" not in given.rows:
        return
    directories = sides.checkpoints(folder, size, tokenizer, 2)
    makers = {"hf": sides.lm_eval_hf, "vllm": sides.lm_eval_vllm}
    with ExitStack() as stack:
        ours = {name: stack.enter_context(closing(sides.Ours(ENGINES[name](), directories))) for name in given.engines.split(",")}
        rivals = {name: stack.enter_context(closing(makers[name](directories[0]))) for name in given.rivals.split(",") if rows}
        for row in rows:
            compare(size, row, ours, rivals, given)
        if "prefill" in given.rows and "vllm" in ours:
            prefill_row(size, directories[0], ours["vllm"], given)


def compare(size: str, row: str, ours: dict[str, sides.Ours], rivals: dict[str, sides.LmEval], given: argparse.Namespace) -> None:
    """One row: a line for each engine of ours and each rival."""
    questions = [QUESTIONS[row](given.data, given.items, number) for number in range(given.rounds)]
    if "hf" in rivals:
        tried = rivals["hf"].best_batch_size(questions[0].asked)
        print(f"{size:6}{row:19}hf, items/s by batch size:", ", ".join(f"{b}: {questions[0].items / s:,.1f}" for b, s in tried.items()))
    rounds = [one_round(question, ours, rivals) for question in questions]
    for name in ours:
        for rival in rivals:
            print(line(size, row, name, rival, rounds))


def one_round(question: Question, ours: dict[str, sides.Ours], rivals: dict[str, sides.LmEval]) -> Round:
    passes = {f"our {name}": side.first(question.asked) for name, side in ours.items()}
    following = {f"our {name}": side.next(question.asked) for name, side in ours.items()}
    passes |= {name: side.first(question.asked) for name, side in rivals.items()}
    require_equal_answers(passes)
    return Round(
        question,
        {name: question.items / found.seconds for name, found in passes.items()},
        {name: question.items / found.seconds for name, found in following.items()},
    )


def require_equal_answers(passes: dict[str, sides.Timed]) -> None:
    """Nobody is quick by computing something else."""
    reference = next(iter(passes.values())).logprobs
    for name, found in passes.items():
        worst = max(abs(a - b) for a, b in zip(found.logprobs, reference, strict=True))
        assert worst < 0.05, f"{name} differs by {worst:.3g} nats"


def line(size: str, row: str, name: str, rival: str, rounds: Sequence[Round]) -> str:
    first = statistics.median(r.first[f"our {name}"] for r in rounds)
    following = statistics.median(r.next[f"our {name}"] for r in rounds)
    theirs = statistics.median(r.first[rival] for r in rounds)
    options = statistics.median(r.first[f"our {name}"] * len(r.question.asked) / r.question.items for r in rounds)
    ratio = statistics.median(r.first[f"our {name}"] / r.first[rival] for r in rounds)
    ratio_next = statistics.median(r.next[f"our {name}"] / r.first[rival] for r in rounds)
    return (
        f"{size:6}{row:19}{name:7}{first:14,.1f}{options:11,.0f}{following:8,.1f}  {rival:13}{theirs:9,.1f}"
        f"{ratio:13.2f}{ratio_next:7.2f}{wanted(row, rival, size):>8}"
    )


def wanted(row: str, rival: str, size: str) -> str:
    target = TARGETS.get((row, rival, size)) or TARGETS.get((row, rival, ""))
    return f" >= {target:g}" if target else ""


def prefill_row(size: str, checkpoint: Path, ours: sides.Ours, given: argparse.Namespace) -> None:
    """Our vLLM engine against vLLM reading the same options; one after the other in each round."""
    rounds = []
    with sides.prefill_only(checkpoint) as read:
        for number in range(given.rounds):
            question = hellaswag(given.data, given.items, 1000 + number)
            first, following, reading = ours.first(question.asked), ours.next(question.asked), read(question.asked)
            rate = {"our vllm": question.items / first.seconds, "vLLM reading": question.items / reading.seconds}
            rounds.append(Round(question, rate, {"our vllm": question.items / following.seconds}))
    print(line(size, "prefill", "vllm", "vLLM reading", rounds))


def hellaswag(data: Path, items: int, number: int) -> Question:
    built = {b.format: b for b in tasks.build("hellaswag", data=data, limit=items, seed=number, seq_len=None)}
    return question_of(built["text"].items)


def mmlu_subject(data: Path, items: int, number: int, format: str) -> Question:
    """The first items of one subject, another for each number."""
    subjects = sorted({item.item_id.split("/")[0] for item in mmlu(data, format)})
    subject = subjects[(7 * number + 3) % len(subjects)]
    return question_of([item for item in mmlu(data, format) if item.item_id.startswith(f"{subject}/")][: items // 3])


def mmlu_drawn(data: Path, items: int, number: int) -> Question:
    built = {b.format: b for b in tasks.build("mmlu", data=data, limit=items // 3, seed=number, seq_len=None)}
    return question_of(built["letter"].items)


@cache
def mmlu(data: Path, format: str) -> tuple[Item, ...]:
    return next(built.items for built in tasks.build("mmlu", data=data, limit=None, seed=0, seq_len=None) if built.format == format)


def question_of(items: Sequence[Item]) -> Question:
    return Question(len(items), [request for item in items for request in item.requests if isinstance(request, LogLikelihood)])


QUESTIONS: dict[str, Callable[[Path, int, int], Question]] = {
    "hellaswag": hellaswag,
    "mmlu-text": lambda data, items, number: mmlu_subject(data, items, number, "text"),
    "mmlu-letter": lambda data, items, number: mmlu_subject(data, items, number, "letter"),
    "mmlu-letter-drawn": mmlu_drawn,
}


def checkpoint_row(folder: Path, tokenizer: Path, given: argparse.Namespace) -> None:
    """Whole processes, all included: interpreter, loading, scoring, writing results."""
    missing = [task for task in LOOP_TASKS if not (given.data / task).is_dir()]
    if missing:
        print(f"checkpoints is left out: there is no data of {', '.join(missing)}")
        return
    directories = sides.checkpoints(folder / "run", "2.8M", tokenizer, given.checkpoints)
    names = [loop_task(folder, given.data, task, given.loop_items) for task in LOOP_TASKS]
    loop = [seconds_of(lm_eval_command(folder, directory, names))[0] for directory in directories[: LOOP_MEASURED + 1]][1:]
    each = statistics.median(loop)  # the first filled lm-eval's cache of data
    whole, scores = seconds_of(
        [sys.executable, "-m", "jobs.cli", "evaluate", str(folder / "run"), "--tasks", ",".join(map(":".join, LOOP_TASKS.items()))]
        + ["--data", str(folder / "data"), "--results", str(folder / "results"), "--format", "json"]
    )
    require_equal_scores(folder, names, json.loads(scores), given.loop_items)
    scaled = each * len(directories)
    print(f"checkpoints: {len(directories)} of 2.8M x {len(LOOP_TASKS)} tasks x {given.loop_items} items")
    print(f"    losslens evaluate {whole:,.0f} s; lm_eval (hf, batch size {LOOP_BATCH}) {each:.1f} s a process,")
    print(f"    median of {len(loop)}, scaled to {scaled:,.0f} s; ratio {scaled / whole:.1f}, wanted{wanted('checkpoints', LOOP, '')}")


def require_equal_scores(folder: Path, names: Sequence[str], ours: Sequence[dict[str, Any]], items: int) -> None:
    """Both sides found as many right answers on the checkpoints that both scored, but for an item whose options are all but equal."""
    right = [row for row in ours if row["metric"] in ("acc", "exact_match")]
    found = {(row["checkpoint_id"].split("/")[-1].rpartition("-")[0], row["task"]): row for row in right}  # RUN/step-N-HASH
    files = sorted((folder / "lm_eval_results").rglob("results_*.json"))
    assert files, "lm_eval wrote no results"
    for file in files:
        told = json.loads(file.read_text(encoding="utf-8"))
        step = told["model_name"].rstrip("/").split("/")[-1]
        for task, name in zip(LOOP_TASKS, names, strict=True):
            row, theirs = found[step, task], told["results"][name]["acc,none"]
            assert row["n"] == told["n-samples"][name]["effective"] <= items
            assert abs(row["value"] - theirs) < 1.5 / row["n"], f"{step}: {task} {row['value']} here, {theirs} there"


def loop_task(folder: Path, data: Path, task: str, items: int) -> str:
    """The first items of a task, of MMLU's largest subject with its examples, for both sides; lm-eval's name of it."""
    rows = lm_eval_tasks.read(data, task)
    if task != "mmlu":
        return lm_eval_tasks.write(folder, task, rows[:items])
    subject = Counter(row["subject"] for row in rows).most_common(1)[0][0]
    asked, examples = ([row for row in split if row["subject"] == subject] for split in (rows, lm_eval_tasks.read(data, task, "dev")))
    return lm_eval_tasks.write(folder, task, asked[:items], examples, subject)


def lm_eval_command(folder: Path, checkpoint: Path, names: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={checkpoint},dtype=float32"] + [
        *("--device", "cpu", "--batch_size", str(LOOP_BATCH), "--include_path", str(folder / "lm_eval"), "--tasks", ",".join(names)),
        *("--output_path", str(folder / "lm_eval_results")),
    ]


def seconds_of(command: Sequence[str]) -> tuple[float, str]:
    """Wall-clock seconds of a process that succeeds, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return time.perf_counter() - began, done.stdout


if __name__ == "__main__":
    main()
