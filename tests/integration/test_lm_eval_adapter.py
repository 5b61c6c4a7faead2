"""`losslens` as a model of lm-evaluation-harness, beside its own `hf` on the same directory: three tokenizers, every request."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, processors

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
pytest.importorskip("accelerate", reason="lm-evaluation-harness's `hf` needs accelerate")

from lm_eval.api.instance import Instance

from eval_service.lm_eval_adapter import LosslensModel
from jobs.import_results import import_results
from losslens.corpus.tokenizer import EOS, Encoder, make
from losslens.errors import EnvironmentFailure, UserError
from losslens.families import Shape
from losslens.generated.stdlib import stdlib_documents
from losslens.models import build, write_hugging_face
from losslens.models.export import hugging_face_state
from losslens.specs import TokenizerSpec
from losslens.tasks.requests import Generate, LogLikelihood
from tests import handwritten, lm_eval_tasks
from tests.conftest import REPO
from tests.tiny_models import requests, tiny_model

# Their libraries warn of their own affairs.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]
TOLERANCE = 1e-4  # nats per token
WINDOW, VOCABULARY = 128, 384


@pytest.fixture(scope="module", params=["bytes", "bpe", "bpe that begins every text"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    if request.param == "bytes":
        return tiny_model(folder / "model", seq_len=WINDOW)
    make(TokenizerSpec(kind="bpe", vocab_size=VOCABULARY), (text for _, text in stdlib_documents("heldout")), folder / "tokenizer")
    if request.param != "bpe":
        opened(folder / "tokenizer", f"{EOS} $A")
    return model_of(folder / "model", folder / "tokenizer")


def opened(tokenizer: Path, template: str) -> None:
    """Let a tokenizer put tokens around every text, as Llama's and Gemma's do before it."""
    fast = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    fast.post_processor = processors.TemplateProcessing(single=template, special_tokens=[(EOS, fast.token_to_id(EOS))])
    fast.save(str(tokenizer / "tokenizer.json"))


def model_of(directory: Path, tokenizer: Path) -> Path:
    directory.mkdir()
    shape = Shape("paper", VOCABULARY, 64, 96, 2, 1, 2, WINDOW, 10_000.0, tie_embeddings=False)
    eos = Encoder(tokenizer).eos
    module = build(shape, seed=3, eos_token_id=eos)
    with torch.no_grad():  # logits spread enough to make choices
        for name, weight in module.named_parameters():
            weight.mul_(20 if "lm_head" in name else 1)
    write_hugging_face(directory, hugging_face_state(module.state_dict(), shape), shape, tokenizer, eos)
    return directory


@pytest.fixture(scope="module")
def theirs(directory: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(directory), device="cpu", dtype="float32", batch_size=8)


@pytest.fixture(scope="module")
def ours(directory: Path) -> Iterator[LosslensModel]:
    lm = LosslensModel(pretrained=str(directory), engine="torch", batch_size=1, device="cuda:0")  # what lm-eval hands over
    yield lm
    lm.close()


def instances(kind: Any, *asked: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, arguments, 0) for arguments in asked]


def test_loglikelihoods(ours: LosslensModel, theirs: Any) -> None:
    pairs = [(r.context, r.continuation) for r in requests() if isinstance(r, LogLikelihood) and r.context]
    pairs = [pair for pair in pairs if is_split(theirs, *pair)]
    assert len(pairs) > 100
    pairs += [("spaces after  ", " it"), ("a line\n", "and the next"), ("two\n\n", "three"), ("", "alone"), (f"{EOS}begun", " already")]
    asked = instances("loglikelihood", *pairs)
    for pair, found, expected in zip(pairs, ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True), strict=True):
        tokens = len(theirs.tok_encode(pair[1], add_special_tokens=False))
        assert abs(found[0] - expected[0]) <= TOLERANCE * tokens, pair
        assert found[1] == expected[1], pair


def is_split(theirs: Any, context: str, continuation: str) -> bool:
    """Whether no token lies across the border. Where one does, lm-eval scores tokens that no longer spell the text, or none."""
    before, after = theirs._encode_pair(context, continuation)
    return bool(after) and before + after == theirs.tok_encode(context + continuation)


def test_whole_texts_in_rolling_windows(ours: LosslensModel, theirs: Any) -> None:
    draw = np.random.default_rng(0)
    texts = ["".join(draw.choice(list("abcdef gh\n"), n)) for n in (1, WINDOW - 1, WINDOW, WINDOW + 1, 700)] + ["问题：一加一等于" * 3, ""]
    asked = instances("loglikelihood_rolling", *((text,) for text in texts))
    for text, found, expected in zip(texts, ours.loglikelihood_rolling(asked), theirs.loglikelihood_rolling(asked, True), strict=True):
        assert abs(found - expected) <= TOLERANCE * max(1, len(text.encode())), text


def test_generated_texts(ours: LosslensModel, theirs: Any) -> None:
    pairs: list[tuple[str, dict[str, Any]]] = [
        (r.context, {"until": list(r.stop), "max_gen_toks": r.max_tokens, "do_sample": False})
        for r in requests()
        if isinstance(r, Generate) and r.context
    ]
    pairs += [("def f(", {"until": "\n", "max_new_tokens": 12, "temperature": 0.0}), ("1 + 1", {"max_gen_toks": 9})]
    asked = instances("generate_until", *pairs)
    assert ours.generate_until(asked) == theirs.generate_until(asked, disable_tqdm=True)


def test_what_it_cannot_do_is_said(tmp_path: Path, ours: LosslensModel) -> None:
    with pytest.raises(UserError, match="decodes greedily"):
        ours.generate_until(instances("generate_until", ("a", {"do_sample": True, "temperature": 0.7})))
    with pytest.raises(UserError, match="has no argument 'dtype'"):
        LosslensModel(pretrained=str(tmp_path), dtype="bfloat16")
    with pytest.raises(UserError, match="is not a directory"):
        LosslensModel(pretrained=str(tmp_path / "nowhere"))


def test_a_tokenizer_that_ends_every_text_is_refused(tmp_path: Path) -> None:
    make(TokenizerSpec(kind="bpe", vocab_size=VOCABULARY), (text for _, text in stdlib_documents("heldout")), tmp_path / "tokenizer")
    opened(tmp_path / "tokenizer", f"$A {EOS} {EOS}")
    directory = model_of(tmp_path / "model", tmp_path / "tokenizer")
    with pytest.raises(UserError, match="adds tokens to every text"):
        LosslensModel(pretrained=str(directory), engine="torch")


def test_without_lm_eval_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.instance", None)
    monkeypatch.delitem(sys.modules, "eval_service.lm_eval_adapter")
    with pytest.raises(EnvironmentFailure, match="lm-evaluation-harness is not installed"):
        importlib.import_module("eval_service.lm_eval_adapter")


def test_its_command_line_knows_one_model_more(tmp_path: Path, environment: dict[str, str]) -> None:
    model = tiny_model(tmp_path / "model")
    names = [lm_eval_tasks.write(tmp_path, task, handwritten.TEST[task], handwritten.DEV.get(task, ())) for task in ("piqa", "gsm8k")]
    command = [sys.executable, "-m", "eval_service.lm_eval_adapter", "run", "--model", "losslens"]
    command += ["--model_args", f"pretrained={model},engine=torch", "--include_path", str(tmp_path / "lm_eval"), "--tasks", ",".join(names)]
    command += ["--gen_kwargs", "max_gen_toks=8", "--output_path", str(tmp_path / "out"), "--log_samples"]
    offline = environment | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, env=offline, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "|our_piqa " in done.stdout
    rows = import_results("lm-eval", tmp_path / "out", tmp_path / "results")
    assert {(row["task"], row["engine"], row["n"]) for row in rows} == {(name, "lm-eval/losslens", 2) for name in names}
