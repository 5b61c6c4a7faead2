"""Every notebook runs from top to bottom, on the synthetic study or on published tables, and is stored without outputs."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.simulated_variants import write_variants
from tests.synthetic import ANSWERED, TASKS, write_study

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


PUBLISHED = ROOT.parent / "shared" / "data" / "published" / "olmo-ladder"


def answer_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the last cell prints when the whole notebook has run."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'platform'}:{ROOT}")
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    return "".join(output.get("text", "") for output in notebook.cells[-1].outputs)


@pytest.mark.parametrize("path", [ROOT / "notebooks" / "01_first_study.ipynb"], ids=lambda path: path.stem)
@pytest.mark.parametrize("thresholds", [True, False], ids=["stored", "computed"])
def test_runs_and_answers(path: Path, thresholds: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = write_study(tmp_path / "results", thresholds=thresholds)
    monkeypatch.setenv("LOSSLENS_RESULTS", str(study.root))
    answer = answer_of(path, monkeypatch)
    assert "appears at heldout loss" in answer
    if thresholds:
        assert "skill_sort · open appears at heldout loss 2.02 [1.97, 2.06] nats/token." in answer


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no published tables beside the checkout (../shared/data/published)")
def test_thresholds_of_published_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = answer_of(ROOT / "notebooks" / "02_thresholds.ipynb", monkeypatch)
    for task in ("mmlu_test", "arc_challenge_test", "hellaswag_val"):
        assert f"{task} · letter appears at C4 loss 2.70" in answer
        assert f"{task} · text: gradual." in answer


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no published tables beside the checkout (../shared/data/published)")
def test_forecasts_of_published_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = answer_of(ROOT / "notebooks" / "04_forecasts.ipynb", monkeypatch)
    told = r"^(\S+), .*misses by ([\d.]+) points, .*two stages by ([\d.]+); (\d) of 8"
    missed = {name: (float(ours), float(theirs), int(inside)) for name, ours, theirs, inside in re.findall(told, answer, re.MULTILINE)}
    assert set(missed) == {"peteish13", "peteish7", "peteish7_eval_anneal", "peteish7_medlr"}
    for name in ("peteish13", "peteish7_eval_anneal"):  # those of the published forecast
        ours, theirs, inside = missed[name]
        assert ours <= 3.0 and ours < theirs and inside >= 7
    passed = [float(size) for size in re.findall(r"C4 loss 2\.70, is passed after \S+ tokens at ([\d.]+)B", answer)]
    assert len(passed) == 3 and passed == sorted(passed, reverse=True), "with more tokens a smaller model passes"


def test_metrics_of_stored_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = write_study(tmp_path / "results", tasks=(TASKS[0], TASKS[-2], *ANSWERED))
    monkeypatch.setenv("LOSSLENS_RESULTS", str(study.root))
    answer = answer_of(ROOT / "notebooks" / "07_metrics.ipynb", monkeypatch)
    again = re.search(r"440 stored scores come out again from the answers, to (\S+)\.", answer)
    assert again is not None and float(again[1]) < 1e-9
    stays = re.search(r"exam · letter: the threshold stays \(emergent under acc, brier, correct_choice_prob; (\S+) to (\S+) lies", answer)
    assert stays is not None and float(stays[1]) - 0.05 <= 1.9 <= float(stays[2]) + 0.05, answer
    assert "sums · open: the threshold is one of some metrics only" in answer
    assert "(emergent under exact_match; gradual under token_prob)" in answer
    assert "cloze_near · text: no threshold (gradual under acc, acc_norm, brier, correct_choice_prob)." in answer
    assert "skill_copy · open: cannot be told (only exact_match has a verdict)." in answer


def test_metrics_of_a_study_without_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = write_study(tmp_path / "results", tasks=TASKS[-2:])
    monkeypatch.setenv("LOSSLENS_RESULTS", str(study.root))
    answer = answer_of(ROOT / "notebooks" / "07_metrics.ipynb", monkeypatch)
    assert "come out again" not in answer
    assert "cloze_near · text: no threshold" in answer


def test_architectures_and_tokenizers_of_simulated_studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores follow bits a byte, and one architecture copies worse at equal loss: both are found, and nothing else."""
    monkeypatch.setenv("LOSSLENS_RESULTS", str(write_variants(tmp_path / "results").root))
    answer = answer_of(ROOT / "notebooks" / "05_architectures_and_tokenizers.ipynb", monkeypatch)
    assert "tokenizers: the curves coincide best on shared bits/byte (1.00 times" in answer
    assert re.findall(r"^    (\S+) · \S+: (\S+) -\d", answer, re.MULTILINE) == [("skill_copy", "mamba2")], answer
    assert not re.search(r"^    .* \+\d", answer, re.MULTILINE), answer


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_without_outputs(path: Path) -> None:
    cells = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4).cells  # type: ignore[no-untyped-call]
    assert cells[0].cell_type == "markdown"
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
