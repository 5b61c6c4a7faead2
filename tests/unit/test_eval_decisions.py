"""Pure decisions of the scoring service: which engine, what next."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval_service import scorer
from eval_service.backlog import Assignment, next_for, pending
from eval_service.checkpoints import Checkpoint
from eval_service.choose import LARGE_ON_CPU, Available, choose, instead, rough_params
from eval_service.engine import EngineDied
from eval_service.fake import FakeEngine
from eval_service.questions import Asked, Questions
from eval_service.vllm_engine import CPU_HEAD_SIZES, serves
from losslens.errors import DataMismatch, EnvironmentFailure, LosslensError, UserError

SMALL: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "intermediate_size": 352,
    "vocab_size": 8192,
    "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5},
}
LARGE = SMALL | {"hidden_size": 2048, "num_attention_heads": 16, "num_hidden_layers": 24, "intermediate_size": 5632, "vocab_size": 65_536}
ODD = SMALL | {"hidden_size": 96, "num_attention_heads": 2}
COPY, SORT, SORT_BY_LETTER = Asked("copy", "text"), Asked("sort", "text"), Asked("sort", "letter")
EVERYTHING, CPU, BARE = Available(vllm=True, gpu=True), Available(vllm=True, gpu=False), Available(vllm=False, gpu=False)


@pytest.mark.parametrize(
    ("engine", "config", "machine", "name", "reason"),
    [
        ("auto", SMALL, CPU, "torch", "faster"),
        ("auto", LARGE, CPU, "vllm", "M parameters"),
        ("auto", SMALL, EVERYTHING, "vllm", "GPU"),
        ("auto", LARGE, BARE, "torch", "not installed"),
        ("auto", ODD, CPU, "torch", "head size 48"),
        ("auto", ODD, EVERYTHING, "vllm", "GPU"),
        ("vllm", SMALL, CPU, "vllm", "asked for"),
        ("torch", LARGE, EVERYTHING, "torch", "asked for"),
        ("fake", {}, BARE, "fake", "asked for"),
    ],
)
def test_choice(engine: str, config: dict[str, Any], machine: Available, name: str, reason: str) -> None:
    chosen, why = choose(engine, config, machine)
    assert chosen == name
    assert reason in why


@pytest.mark.parametrize(
    ("engine", "config", "machine", "error", "sentence"),
    [
        ("vllm", ODD, CPU, UserError, "head size 48"),
        ("vllm", SMALL, BARE, EnvironmentFailure, "not installed"),
        ("tvm", SMALL, CPU, UserError, "no engine 'tvm'"),
    ],
)
def test_an_engine_asked_for_in_vain(
    engine: str, config: dict[str, Any], machine: Available, error: type[LosslensError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        choose(engine, config, machine)


def test_torch_serves_what_vllm_does_not() -> None:
    """Only where vLLM was nobody's wish, and failed by itself."""
    refused = EnvironmentFailure("vLLM cannot load it", "use the torch engine")
    engine, why = instead("auto", "vllm", refused) or ("", "")
    assert engine == "torch" and "cannot load it" in why
    assert instead("auto", "vllm", DataMismatch("the two differ by 0.3 nats a token", "-")) is not None
    assert instead("vllm", "vllm", refused) is None
    assert instead("auto", "torch", refused) is None
    assert instead("auto", "vllm", EngineDied("a process died", "score again")) is None
    assert instead("auto", "vllm", UserError("no model", "give one")) is None


def test_a_scorer_asks_an_engine_once_for_each_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Refusing(FakeEngine):
        def load(self, checkpoint: Path) -> None:
            asked.append(checkpoint.name)
            raise EnvironmentFailure("vLLM cannot load it", "use the torch engine")

    monkeypatch.setattr(scorer, "open_engine", lambda short: Refusing() if short == "vllm" else FakeEngine())
    one = scorer.Scorer(tmp_path, Questions(()), "auto")
    for name, shape in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).mkdir()
        engine, why = one._loaded("vllm", "there is a GPU", tmp_path / name, shape)
        assert not isinstance(engine, Refusing) and why == "vLLM does not serve it: vLLM cannot load it"
    assert asked == ["a", "c"]


def test_large_is_about_parameters() -> None:
    assert rough_params(SMALL) < 10_000_000 < LARGE_ON_CPU < rough_params(LARGE)


def test_a_llama_with_a_partial_rotary_factor_is_two_models() -> None:
    llama = SMALL | {"architectures": ["LlamaForCausalLM"]}
    assert "two models" in str(serves(llama))
    assert serves(llama | {"rope_parameters": {"rope_type": "default"}}) is None


def test_head_sizes_are_those_of_the_installed_vllm() -> None:
    backend = importlib.util.find_spec("vllm")
    if backend is None:
        pytest.skip("vLLM is not installed")
    source = Path(str(backend.origin)).parent / "v1/attention/backends/cpu_attn.py"
    assert str(list(CPU_HEAD_SIZES)) in source.read_text(encoding="utf-8")


def checkpoint(number: int, shape: str = "a") -> Checkpoint:
    return Checkpoint(f"run/step-{number:08d}", f"/somewhere/{number}", f"2026-01-01T00:{number:02d}:00+00:00", shape)


def test_oldest_first_and_only_what_is_missing() -> None:
    scored = {("run/step-00000001", COPY, 1), ("run/step-00000002", COPY, 1), ("run/step-00000002", SORT, 2)}
    found = pending([checkpoint(3), checkpoint(1), checkpoint(2), checkpoint(1)], scored, {COPY: 1, SORT: 2})
    assert found == [Assignment(checkpoint(1), (SORT,)), Assignment(checkpoint(3), (COPY, SORT))]


def test_each_format_of_a_task_is_missing_by_itself() -> None:
    scored = {("run/step-00000001", SORT, 2), ("run/step-00000002", SORT_BY_LETTER, 2), ("run/step-00000003", Asked("sort", ""), 2)}
    found = pending([checkpoint(1), checkpoint(2), checkpoint(3)], scored, {SORT: 2, SORT_BY_LETTER: 2})
    assert [assignment.tasks for assignment in found] == [(SORT_BY_LETTER,), (SORT,), (SORT, SORT_BY_LETTER)]
    assert pending([checkpoint(1)], scored, {SORT: 2}) == []


def test_another_version_of_a_task_is_another_task() -> None:
    assert pending([checkpoint(1)], {("run/step-00000001", COPY, 1)}, {COPY: 2}) == [Assignment(checkpoint(1), (COPY,))]


@given(st.sets(st.integers(0, 30)), st.sets(st.tuples(st.integers(0, 30), st.sampled_from([COPY, SORT, SORT_BY_LETTER]))))
def test_scoring_what_is_pending_leaves_nothing_pending(steps: set[int], before: set[tuple[int, Asked]]) -> None:
    scored = {(checkpoint(step).checkpoint_id, asked, 1) for step, asked in before}
    tasks = {COPY: 1, SORT: 1, SORT_BY_LETTER: 1}
    work = pending(map(checkpoint, steps), scored, tasks)
    scored |= {(a.checkpoint.checkpoint_id, task, 1) for a in work for task in a.tasks}
    assert pending(map(checkpoint, steps), scored, tasks) == []
    assert [a.checkpoint.created_at for a in work] == sorted(a.checkpoint.created_at for a in work)


def test_a_scorer_goes_on_with_shapes_it_has_warm() -> None:
    waiting = [Assignment(checkpoint(number, shape), (COPY,)) for number, shape in ((1, "a"), (2, "b"), (3, "c"))]
    assert next_for(waiting, warm={"b"}, warm_elsewhere=set()) == waiting[1]
    assert next_for(waiting, warm=set(), warm_elsewhere={"a"}) == waiting[1]
    assert next_for(waiting, warm=set(), warm_elsewhere={"a", "b", "c"}) == waiting[0]
