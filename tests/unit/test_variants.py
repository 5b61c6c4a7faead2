"""Studies over architectures, optimizers, tokenizers: each combination of levels is a study, and each bad one is one sentence."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from jobs.corpus import pack
from jobs.plan import plan
from jobs.proposals import propose
from losslens.analysis import same_curve
from losslens.errors import UserError
from losslens.families import planned_runs
from losslens.specs import fingerprint, levels_of, load_study, to_yaml, variants
from tests.simulated_runs import Family, simulate

GRID = (
    "variants={architecture: {ours: {}, moe: {family.architecture: mixtral, family.sizes.d48.tokens: 1M}},"
    " optimizer: {adamw: {training.optimizer: {name: adamw, lr: 3e-3}}, muon: {training.schedule.name: wsd}}}"
)


def test_every_combination_is_a_study() -> None:
    spec = load_study("demo", [GRID])
    found = variants(spec)
    assert list(found) == [f"architecture={a},optimizer={o}" for a in ("ours", "moe") for o in ("adamw", "muon")]
    moe = found["architecture=moe,optimizer=adamw"]
    assert (moe.family.architecture, moe.family.sizes[0].tokens, moe.family.sizes[1].tokens) == ("mixtral", (1_000_000,), (1_500_000,))
    assert (moe.training.optimizer.name, moe.training.optimizer.weight_decay) == ("adamw", 0.1), "a mapping replaces a whole part"
    muon = found["architecture=ours,optimizer=muon"]
    assert (muon.training.optimizer.name, muon.training.schedule.name) == ("muon", "wsd")
    assert not any(each.variants for each in found.values())
    assert levels_of("architecture=moe,optimizer=adamw") == {"architecture": "moe", "optimizer": "adamw"}
    assert levels_of(None) == {}


def test_a_study_without_variants_is_its_own() -> None:
    spec = load_study("demo")
    assert variants(spec) == {"": spec}
    assert {run.variant for run in planned_runs(spec)} == {""}


def test_runs_of_variants() -> None:
    spec = load_study("demo", [GRID])
    runs = planned_runs(spec)
    assert len(runs) == len({run.run_id for run in runs}) == 16
    assert [run.label for run in runs[8:10]] == ["moe-adamw-d48-1M-s0", "moe-adamw-d64-1.5M-s0"]
    assert {run.study for run in runs} == {"demo"}
    alone = planned_runs(variants(spec)["architecture=moe,optimizer=adamw"])
    assert [run.run_id.rsplit("-", 1)[1] for run in alone] == [run.run_id.rsplit("-", 1)[1] for run in runs[8:12]]
    rows = plan(spec)
    assert [row["variant"] for row in rows] == [run.variant for run in runs]
    assert all(row["params_active"] < row["params"] for row in rows[8:])  # type: ignore[operator]


def test_the_resolved_study_is_read_back(tmp_path: Path) -> None:
    spec = load_study("demo", [GRID])
    file = tmp_path / "study.yaml"
    file.write_text(to_yaml(spec), encoding="utf-8")
    assert load_study(str(file)) == spec
    assert fingerprint(load_study(str(file))) == fingerprint(spec)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("{a: {}}", "the variants 'a' have no levels"),
        ("{a: {b: {evaluation.limit: 3}}}", "variants.a.b: evaluation.limit cannot vary within a study"),
        ("{a: {b: {corpus.seq_len: 64}}}", "variants differ in corpus.seq_len"),
        ("{a: {b: {family.sizes.d49.tokens: 1M}}}", "variants.a.b: family.sizes.d49.tokens: there is no entry 'd49'"),
        ("{a: {b: {training.optimiser: {}}}}", "unknown key 'optimiser' in training"),
        ("{a: {b: {family.architecture: lama}}}", "'lama' is not one of its values"),
        ("{a: {b: {family.architecture: mixtral, family.experts: 1}}}", "a token cannot go through 2 of 1 experts"),
        ("{a: {b-c: {}}}", "variants"),
        ("{a: {b: 3}}", "variants"),
    ],
)
def test_what_cannot_vary(given: str, complaint: str) -> None:
    with pytest.raises(UserError) as refused:
        planned_runs(load_study("demo", [f"variants={given}"]))
    assert complaint in str(refused.value)
    assert refused.value.remedy


def test_variants_that_read_the_same_share_a_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed for the longest run among them; another mixture is packed for its own."""
    rows: dict[float, set[int]] = {}

    def build(corpus: Any, *, rows: int, root: Path, into: dict[float, set[int]] = rows, **_: Any) -> Any:
        into.setdefault(corpus.sources[0].weight, set()).add(rows)
        return SimpleNamespace(dir=root / str(corpus.sources[0].weight), require=lambda batch: None)

    monkeypatch.setattr("jobs.corpus.build", build)
    mixture = "mixture: {more: {corpus.sources.stdlib.weight: 0.9}, less: {}}"
    length = "length: {long: {family.sizes.d48.tokens: 4M}, short: {family.sizes.d48.tokens: 2M}}"
    spec = load_study("demo", [f"variants={{{mixture}, {length}}}"])
    found = pack(spec, tmp_path, board=None)  # type: ignore[arg-type]
    assert [path.name for path in found.values()] == ["0.9", "0.9", "0.4", "0.4"]
    assert rows == {0.9: {31_248}, 0.4: {31_248}}


def test_a_sweep_is_of_one_study() -> None:
    with pytest.raises(UserError, match="this one has variants"):
        propose("demo", [GRID], load_study("demo").family.sizes[0], {}, samples=2, seed=0)


def test_runs_are_compared_by_any_factor() -> None:
    """By a factor of the variants as by a column of `runs`; a word that is neither is refused with what there is."""
    curve, runs = simulate(Family(seeds=3, effect=0.06), 0)
    named = [f"rule={row['optimizer']},mixture=all" for row in runs.to_pylist()]
    runs = runs.append_column("variant", pa.array(named))
    found = {by: same_curve(curve, runs, by=by).to_pylist() for by in ("rule", "optimizer")}
    assert [row["property"] for row in found["rule"]] == ["rule"] * 3
    same = ("level", "reference", "effect", "verdict", "axis")
    assert [[row[name] for name in same] for row in found["rule"]] == [[row[name] for name in same] for row in found["optimizer"]]
    reasons = {row["reason"] for row in same_curve(curve, runs, by="mixture").to_pylist()}
    assert reasons == {"all runs have the same mixture, or none is known"}
    with pytest.raises(UserError, match="cannot be compared by 'ruel'") as refused:
        same_curve(curve, runs, by="ruel")
    assert refused.value.remedy.endswith("variant, study, mixture, rule.")
