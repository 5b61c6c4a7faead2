"""`losslens figure`: what it writes, and what it says to a request that names no curve or several."""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.figure import Wanted, figure
from losslens.errors import EnvironmentFailure, LosslensError, UserError
from losslens.results import Results
from tests.conftest import Process
from tests.synthetic import TASKS, write_study

BEGINNINGS = {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    write_study(root, tasks=(*TASKS[:1], TASKS[9], TASKS[11]))  # cloze_far in two formats
    return root


def texts(svg: Path) -> list[str]:
    return re.findall(r">([^<>\n]+)</text>", svg.read_text(encoding="utf-8"))


def test_colours_tell_apart_what_is_asked_for(tmp_path: Path) -> None:
    write_study(tmp_path, seeds=2, tasks=TASKS[:1])
    sizes, seeds = {"d48", "d64", "d96", "d160"}, {"0", "1"}
    for by, shown, hidden in ((None, sizes, seeds), ("seed", seeds, sizes)):
        found = set(texts(figure(tmp_path, Wanted(TASKS[0].task, by=by), "loss", tmp_path / "f.svg")))
        assert shown <= found
        assert not hidden & found


@pytest.mark.parametrize(("kind", "against"), [("pdf", "loss"), ("svg", "tokens"), ("png", "flops")])
def test_each_kind(results: Path, tmp_path: Path, kind: str, against: Any) -> None:
    out = figure(results, Wanted("skill_copy"), against, tmp_path / "new" / f"f.{kind}")
    assert out.read_bytes().startswith(BEGINNINGS[kind])
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_what_a_figure_says(results: Path, tmp_path: Path) -> None:
    found = texts(figure(results, Wanted("skill_copy"), "loss", tmp_path / "f.svg"))
    said = {"skill_copy", "exact match", "held-out loss, nats/token (reversed)", "chance", "η 1.86 [1.81, 1.90]", "d48", "d160"}
    assert said <= set(found)
    wanted = Wanted("cloze_far", format="text", metric="brier", loss="train:bits/byte")
    found = texts(figure(results, wanted, "loss", tmp_path / "g.svg"))
    assert {"cloze_far · text", "brier (lower is better)", "training loss, bits/byte (reversed)"} <= set(found)
    found = texts(figure(results, Wanted("skill_copy", metric="bits_per_byte"), "loss", tmp_path / "b.svg"))
    assert "chance" not in found, "8 bits a byte would dwarf the curve"
    assert not [text for text in found if re.fullmatch(r"4\.[5-9]\d*", text)], "untrained models are not drawn"
    assert "training FLOPs" in texts(figure(results, Wanted("skill_copy"), "flops", tmp_path / "h.svg"))


@pytest.mark.parametrize(
    ("wanted", "name", "sentence", "remedy"),
    [
        (Wanted("nope"), "f.pdf", "no task 'nope'", "cloze_far, skill_copy"),
        (Wanted("cloze_far"), "f.pdf", "several curves", "--format-filter: letter, text"),
        (Wanted("cloze_far", format="open"), "f.pdf", "no scores with --format-filter open", "letter, text"),
        (Wanted("skill_copy", shots=5), "f.pdf", "no scores with --shots 5", "0"),
        (Wanted("skill_copy", study="other"), "f.pdf", "no scores with --study other", "synthetic"),
        (Wanted("skill_copy", metric="acc"), "f.pdf", "no metric 'acc'", "bits_per_byte, exact_match"),
        (Wanted("skill_copy", loss="heldout"), "f.pdf", "no loss 'heldout'", "heldout:nats/token"),
        (Wanted("skill_copy", by="seed"), "f.pdf", "do not differ in 'seed'", "colour them by size"),
        (Wanted("skill_copy"), "f.jpeg", "no figure that can be drawn", ".pdf, .svg, .png"),
    ],
)
def test_bad_input(results: Path, tmp_path: Path, wanted: Wanted, name: str, sentence: str, remedy: str) -> None:
    with pytest.raises(UserError, match=sentence) as raised:
        figure(results, wanted, "loss", tmp_path / name)
    assert remedy in raised.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_what_the_machine_lacks(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentFailure, match="cannot be written"):
        figure(results, Wanted("skill_copy"), "loss", tmp_path / "file" / "f.pdf")
    there: Callable[..., Any] = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return there(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LosslensError, match="not installed") as raised:
        figure(results, Wanted("skill_copy"), "loss", tmp_path / "f.pdf")
    assert raised.value.exit_code == 3


def test_the_verb_says_that_no_threshold_is_stored(results: Path, tmp_path: Path, losslens: Callable[..., Process]) -> None:
    write_study(tmp_path, tasks=TASKS[:1], thresholds=False)
    assert Results(tmp_path).query("FROM thresholds").num_rows == 0
    done = losslens("figure", "skill_copy", "--out", tmp_path / "f.pdf", "--results", tmp_path)
    assert done.stdout.strip() == str(tmp_path / "f.pdf")
    assert "losslens thresholds computes them" in done.stderr
