"""The same benchmarks through lm-evaluation-harness, with its `hf` model, and through our tasks and our torch engine.

Where docs/TASKS.md names no difference, acc and acc_norm are equal to the last digit. lm-eval's own task code runs on the
same rows, see tests/lm_eval_tasks.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
pytest.importorskip("accelerate", reason="lm-evaluation-harness's `hf` needs accelerate")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from eval_service.torch_engine import TorchEngine
from losslens import tasks
from losslens.tasks.metrics import score_items
from losslens.tasks.requests import BuiltTask, GenerateResult, LogLikelihood, LogLikelihoodResult, Result
from tests import lm_eval_tasks
from tests.tiny_models import tiny_model

# Their libraries warn of their own affairs.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]
DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "tasks"
TOLERANCE = 1e-4  # nats per token
ITEMS = 40
SUBJECTS = ("college_medicine", "professional_psychology")  # white space around options: of questions, of examples
FORMATS = {"hellaswag": "text", "winogrande": "pair", "piqa": "text", "arc_easy": "text", "arc_challenge": "text"} | {
    "lambada": "open",
    "mmlu": "letter",
}


@dataclass(frozen=True)
class Rows:
    """Where both layouts lie, and lm-eval's tasks by ours."""

    folder: Path
    theirs: dict[str, list[str]]

    def ours(self, task: str, format: str) -> BuiltTask:
        built = tasks.build(task, data=self.folder / "data", limit=None, seed=0, seq_len=None)
        return next(b for b in built if b.format == format)

    def evaluate(self, lm: LM, *names: str, **settings: Any) -> dict[str, Any]:
        manager = TaskManager(include_path=str(self.folder / "lm_eval"), include_defaults=False)
        found = simple_evaluate(model=lm, tasks=list(names), task_manager=manager, bootstrap_iters=2, **settings)
        assert found is not None
        return dict(found)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    if missing := [task for task in (*FORMATS, "gsm8k") if not (DATA / task).is_dir()]:
        pytest.skip(f"there is no data of {', '.join(missing)} in {DATA}")
    folder = tmp_path_factory.mktemp("rows")
    names = {task: [lm_eval_tasks.write(folder, task, some(lm_eval_tasks.read(DATA, task)))] for task in FORMATS if task != "mmlu"}
    questions, examples = lm_eval_tasks.read(DATA, "mmlu"), lm_eval_tasks.read(DATA, "mmlu", "dev")
    names["mmlu"] = [
        lm_eval_tasks.write(folder, "mmlu", of(subject, questions)[:20], of(subject, examples), subject) for subject in SUBJECTS
    ]
    examples = lm_eval_tasks.read(DATA, "gsm8k", "dev")
    names["gsm8k"] = [lm_eval_tasks.write(folder, "gsm8k", some(lm_eval_tasks.read(DATA, "gsm8k")), examples)]
    return Rows(folder, names)


def some(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows from all over the file. Options in ASCII: acc_norm divides by bytes here and by characters there."""
    kept = [row for row in found if all(choice.isascii() for choice in row.get("choices", ()))]
    return kept[:: len(kept) // ITEMS][:ITEMS]


def of(subject: str, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in found if row["subject"] == subject]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its window holds every prompt of these benchmarks, in bytes."""
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny", seq_len=8192)


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[TorchEngine]:
    engine = TorchEngine()
    engine.load(model)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def measured(rows: Rows, model: Path) -> dict[str, Any]:
    """lm-eval's own verdict on all the tasks."""
    return rows.evaluate(hf(model), *(name for task in FORMATS for name in rows.theirs[task]))


def hf(directory: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(directory), device="cpu", dtype="float32", batch_size=8)


@dataclass(frozen=True)
class Answered:
    """A task of ours with what our engine said, and lm-eval's samples of the same items in the same order."""

    built: BuiltTask
    results: list[list[Result]]
    logged: list[dict[str, Any]]


@pytest.fixture(scope="module")
def answered(rows: Rows, engine: TorchEngine, measured: dict[str, Any]) -> Callable[[str], Answered]:
    @cache
    def ask(task: str) -> Answered:
        built = rows.ours(task, FORMATS[task])
        results = iter(engine.run([request for item in built.items for request in item.requests]))
        logged = [sample for name in rows.theirs[task] for sample in measured["samples"][name]]
        return Answered(built, [[next(results) for _ in item.requests] for item in built.items], logged)

    return ask


@pytest.mark.parametrize("task", FORMATS)
def test_every_option_is_asked_and_answered_alike(task: str, answered: Callable[[str], Answered], engine: TorchEngine) -> None:
    found = answered(task)
    for item, results, sample in zip(found.built.items, found.results, found.logged, strict=True):
        for request, ours, asked, theirs in zip(item.requests, results, sample["arguments"], sample["filtered_resps"], strict=True):
            assert isinstance(request, LogLikelihood) and isinstance(ours, LogLikelihoodResult)
            assert (request.context, request.continuation) == asked
            assert abs(ours.logprob - theirs[0]) <= TOLERANCE * ours.tokens, asked
            assert ours.greedy == theirs[1], asked


@pytest.mark.parametrize("task", FORMATS)
def test_scores_are_theirs(task: str, answered: Callable[[str], Answered], rows: Rows, measured: dict[str, Any]) -> None:
    found = answered(task)
    scored, samples = score_items(found.built, found.results)
    scores = {score.metric: score for score in scored}
    assert [sample.correct for sample in samples if sample.option == 0] == [sample["acc"] == 1 for sample in found.logged]
    theirs = [measured["results"][name] for name in rows.theirs[task]]
    acc = scores["exact_match" if task == "lambada" else "acc"]
    assert acc.value == sum(result["acc,none"] for result in theirs) / len(theirs)
    assert acc.n == sum(measured["n-samples"][name]["effective"] for name in rows.theirs[task]) == ITEMS
    if len(theirs) == 1:
        assert acc.stderr == pytest.approx(theirs[0]["acc_stderr,none"], rel=1e-12)
    if "acc_norm,none" in theirs[0]:
        assert scores["acc_norm"].value == theirs[0]["acc_norm,none"]


def test_a_problem_of_gsm8k_is_asked_in_their_words(rows: Rows) -> None:
    """The examples before it differ on purpose: see docs/TASKS.md."""
    found = rows.evaluate(Answering({}), *rows.theirs["gsm8k"])
    prompts = [sample["arguments"][0][0] for sample in found["samples"][rows.theirs["gsm8k"][0]] if sample["filter"] == "strict-match"]
    asked = [item.requests[0].context for item in rows.ours("gsm8k", "open").items]
    assert [prompt.rpartition("\n\n")[2] for prompt in asked] == prompts


def test_answers_to_gsm8k_are_judged_as_theirs(rows: Rows) -> None:
    """With a mark as their strict match, without one as their flexible one."""
    built = rows.ours("gsm8k", "open")
    written = {
        item.requests[0].context.rpartition("\n\n")[2]: ANSWERS[i % len(ANSWERS)](item.answers[0]) for i, item in enumerate(built.items)
    }
    found = rows.evaluate(Answering(written), *rows.theirs["gsm8k"])
    theirs: dict[str, list[bool]] = {"strict-match": [], "flexible-extract": []}
    for sample in found["samples"][rows.theirs["gsm8k"][0]]:
        theirs[sample["filter"]].append(sample["exact_match"] == 1)
    results: list[list[Result]] = [[GenerateResult(text), LogLikelihoodResult(-1.0, 1, False)] for text in written.values()]
    _, samples = score_items(built, results)
    chosen = [theirs["strict-match" if "####" in text else "flexible-extract"][i] for i, text in enumerate(written.values())]
    assert [sample.correct for sample in samples] == chosen
    assert 0 < sum(chosen) < len(chosen)


class Answering(LM):  # type: ignore[misc] # lm_eval is untyped
    """Says what it was told to say after a problem."""

    def __init__(self, written: Mapping[str, str]) -> None:
        super().__init__()
        self._written = written

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return [self._written.get(request.args[0], "") for request in requests]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError


ANSWERS: tuple[Callable[[str], str], ...] = (
    lambda final: f" 3 + 4 = 7, so it is {final}.\n#### {final}",
    lambda final: f" I take 12.\n#### 1{final}",
    lambda final: f" First 250, then ${final}.",
    lambda final: f" It is {final}, not 77.",
    lambda final: " I do not know.",
)
