"""Study files: what is read, what is refused and in which words, and that text round-trips."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from losslens import specs
from losslens.errors import UserError
from losslens.specs import SizeSpec, StudySpec, canonical_text, fingerprint, load_study, to_yaml

MINIMAL = """
name: tiny
corpus: {sources: [{generated: copy}], seq_len: 128}
family: {sizes: [{name: d64, d_model: 64, d_ffn: 192, heads: 2, layers: 4, tokens: 1M}]}
training: {global_batch: 8}
evaluation: {tasks: [skill_copy]}
"""

Load = Callable[..., StudySpec]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """`load(text, *overrides)` through a file."""

    def from_text(text: str, *overrides: str) -> StudySpec:
        path = tmp_path / "study.yaml"
        path.write_text(text, encoding="utf-8")
        return load_study(str(path), overrides)

    return from_text


def test_defaults_are_filled_in(load: Load) -> None:
    spec = load(MINIMAL)
    assert spec.family.sizes[0].tokens == (1_000_000,)
    assert spec.training.optimizer.betas == (0.9, 0.95)
    assert spec.results == "results"


@pytest.mark.parametrize(
    ("written", "tokens"),
    [("67B", 67 * 10**9), ("2.5M", 2_500_000), ("6.7e10", 67 * 10**9), ("67e9", 67 * 10**9), ("[1M, 2_000_000]", (10**6, 2 * 10**6))],
)
def test_quantities(load: Load, written: str, tokens: int | tuple[int, ...]) -> None:
    budgets = load(MINIMAL, f"family.sizes.d64.tokens={written}").family.sizes[0].tokens
    assert budgets == (tokens if isinstance(tokens, tuple) else (tokens,))


@pytest.mark.parametrize("written", ["1e-3", "1.0e-3", "0.001", ".001", "1E-3"])
def test_exponents_are_numbers(load: Load, written: str) -> None:
    assert load(MINIMAL, f"training.optimizer.lr={written}").training.optimizer.lr == 1e-3


def test_overrides_reach_lists_by_name_and_position(load: Load) -> None:
    spec = load(
        MINIMAL, "family.sizes.d64.layers=2", "corpus.sources.copy.weight=3", "corpus.sources.0.name=first", "evaluation.tasks=[a, b]"
    )
    assert (spec.family.sizes[0].layers, spec.corpus.sources[0].weight, spec.corpus.sources[0].name) == (2, 3.0, "first")
    assert spec.evaluation.tasks == ("a", "b")


WRONG_VALUES = [
    ("trainning.global_batch=8", "unknown key 'trainning' in the study", "did you mean training?"),
    ("training.globalbatch=8", "unknown key 'globalbatch' in training", "did you mean global_batch?"),
    ("family.sizes.d64.head=2", "unknown key 'head' in family.sizes[0]", "did you mean heads?"),
    ("corpus.sources.0.wieght=2", "unknown key 'wieght' in corpus.sources[0]", "did you mean weight?"),
    ("corpus.holdout.qqq=2", "unknown key 'qqq' in corpus.holdout", "choose from fraction, rows"),
    ("training.global_batch=0", "training.global_batch: expected `int` >= 1", "correct that value"),
    ("training.global_batch=many", "training.global_batch: expected `int`, got `str`", "correct that value"),
    ("training.global_batch=true", "training.global_batch: expected `int`, got `bool`", "correct that value"),
    ("training.optimizer.lr=.inf", "training.optimizer.lr: expected `float` <=", "correct that value"),
    ("training.compile=maybe", "training.compile: 'maybe' is not one of its values", "choose from true, false, auto"),
    ("training.optimizer.name=adam", "training.optimizer.name: 'adam' is not one of its values", "choose from adamw, muon"),
    ("evaluation.tasks=[copy: open]", "evaluation.tasks[0]: expected `str`, got `object`", "`a: b` is a mapping: leave out the space"),
    ("family.sizes.d64.name=64", "family.sizes[0].name: expected `str`, got `int`", "put that value in quotes"),
    ("seed=-1", "seed: expected `int` >= 0", "correct that value"),
    ("family=null", "family: expected `object`, got `null`", "correct that value"),
]
WRONG_LAWS = [
    ("family.sizes.d64.heads=3", "size d64: 3 heads do not divide d_model 64", "choose a number of heads that divides d_model"),
    ("family.sizes.d64.kv_heads=3", "size d64: 3 key-value heads do not divide 2 heads", "choose kv_heads that divides heads"),
    ("family.sizes.d64.heads=32", "multiple of 4, not 2", "change d_model or heads"),
    ("family.sizes=[]", "the family has no sizes", "family.sizes"),
    ("corpus.sources=[]", "the corpus has no sources", "corpus.sources"),
    ("corpus.sources.0.path=x", "exactly one of path, hf and generated", "split it"),
    ("corpus.sources=[{path: a/x.txt}, {path: b/x.txt}]", "the source name 'x' occurs twice", "give each source a name of its own"),
    ("family.sizes.d64.tokens=null", "size d64 has no token budget", "training.tokens"),
    ("family.sizes.d64.tokens=1K", "less than one global batch of 1,024 tokens", "raise tokens or lower global_batch"),
    ("corpus.tokenizer.kind=path", "no path is given", "corpus.tokenizer.path"),
    ("corpus.tokenizer.vocab_size=300", "a byte tokenizer cannot have 300 entries", "128 (ASCII) or 257"),
    ("corpus.tokenizer={kind: bpe, vocab_size: 200}", "cannot hold the 256 bytes", "at least 260"),
    ("cluster.workers=[2, 1]", "a minimum above its maximum", "swap them"),
    ("cluster.workers=[1, 9]", "9 workers cannot share a global batch of 8 sequences", "lower cluster.workers"),
    ("evaluation.cross_check={sizes: [d65]}", "the size 'd65', which the family lacks", "choose from d64"),
]
WRONG_OVERRIDES = [
    ("seed", "not of the form key=value", "training.global_batch=16"),
    ("=1", "not of the form key=value", "training.global_batch=16"),
    ("seed=[", "is not valid YAML", "quote it"),
    ("name.x=1", "name holds a plain value", "set it directly"),
    ("family.sizes.d65.layers=2", "there is no entry 'd65'", "did you mean d64?"),
]


@pytest.mark.parametrize(("override", "sentence", "remedy"), WRONG_VALUES + WRONG_LAWS + WRONG_OVERRIDES)
def test_mistakes_are_one_sentence_and_a_remedy(load: Load, override: str, sentence: str, remedy: str) -> None:
    with pytest.raises(UserError) as caught:
        load(MINIMAL, override)
    assert sentence in str(caught.value)
    assert remedy in caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("name: [", "line 1 is not valid YAML"), ("- a\n- b\n", "does not hold a mapping"), ("", "does not hold a mapping")]
    + [
        ("name: a\nseed: 1\nseed: 2\n", "line 3 is not valid YAML: the key 'seed' occurs twice"),
        ("name: a\n? [b, c]\n: 1\n", "line 2 is not valid YAML: a key is not a plain word"),
        ("name: a\nseed: 2020-13-45\n", "is not valid YAML: month must be in 1..12"),
        ("name: a\n", "missing required field `corpus`"),
    ],
)
def test_malformed_files(load: Load, text: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        load(text)
    assert sentence in str(caught.value)


def test_unknown_study_names_the_nearest() -> None:
    with pytest.raises(UserError, match="there is no study called 'papr'") as caught:
        load_study("papr")
    assert "did you mean paper?" in caught.value.remedy


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        load_study(str(path))


@pytest.mark.parametrize("name", specs.bundled())
def test_bundled_studies_load_and_carry_their_own_name(name: str) -> None:
    assert load_study(name).name == name


def test_fingerprint_sees_every_setting_and_no_spelling(load: Load) -> None:
    spec = load(MINIMAL)
    assert fingerprint(spec) == fingerprint(load(MINIMAL, "training.global_batch=8"))
    assert fingerprint(spec) != fingerprint(load(MINIMAL, "training.optimizer.clip=2.0"))
    assert fingerprint(spec, 1) != fingerprint(spec, 2)


def test_canonical_text_is_sorted_and_complete(load: Load) -> None:
    lines = canonical_text(load(MINIMAL)).splitlines()
    assert lines == sorted(lines)
    assert "family.sizes[0].tokens: [1000000]" in lines
    assert "training.optimizer.clip: 1.0" in lines


# Names and texts that YAML could mistake for something else, besides arbitrary ones.
odd = st.sampled_from(["\x85", "a\u2028b", "\ufeff", "\r\n", "\t", "- a", "a: b", "#", "中文"])
tricky = st.sampled_from(["1e5", "1.5B", "no", "null", "0x10", "1_000", "2024-03-23", "300", "1.10"])
names = tricky | st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,12}\Z")
rates = st.floats(min_value=1e-12, max_value=1e12)
sizes = st.builds(
    SizeSpec,
    name=names,
    d_model=st.just(64),
    d_ffn=st.integers(1, 999),
    heads=st.sampled_from([1, 2, 4]),
    layers=st.integers(1, 99),
    tokens=st.lists(st.integers(10**6, 10**15), min_size=1, max_size=4).map(tuple),
    peak_lr=st.none() | rates,
)
texts = tricky | odd | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@settings(max_examples=200)
@given(name=names, size=sizes, lr=rates, seed=st.integers(0, 2**32 - 1), where=st.dictionaries(texts, texts, max_size=3), path=texts)
def test_yaml_round_trip(name: str, size: SizeSpec, lr: float, seed: int, where: dict[str, str], path: str) -> None:
    base = msgspec.to_builtins(load_study("paper"))
    base |= {"name": name, "seed": seed, "family": {"sizes": [msgspec.to_builtins(size)]}, "results": path}
    base["corpus"] |= {"sources": [{"path": path, "where": where}], "seq_len": 64}
    base["training"] |= {"global_batch": 8, "optimizer": {"lr": lr}}
    base["cluster"] = {}
    spec = msgspec.convert(base, StudySpec)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "study.yaml"
        file.write_text(to_yaml(spec), encoding="utf-8")
        assert load_study(str(file)) == spec
