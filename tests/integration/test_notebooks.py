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


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no published tables beside the checkout (../shared/data/published)")
def test_what_loss_tells_of_published_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss tells full answers of OLMo and Pythia best; sizes alike at equal loss are far apart at equal tokens."""
    answer = answer_of(ROOT / "notebooks" / "03_published_models.ipynb", monkeypatch)
    best = {name: int(loss) for name, loss in re.findall(r"^(\S+ · \S+), .* best: loss for (\d+)", answer, re.MULTILINE)}
    assert best["olmo-ladder · text"] == 8 and best["pythia · text"] == 4 and best["gadre · text"] >= 6
    added = [float(points) for points in re.findall(r"at equal \w+ size adds ([\d.]+) points", answer)]
    at_loss, at_tokens = added[::2], added[1::2]
    assert len(at_loss) == 7 and all(loss < tokens for loss, tokens in zip(at_loss, at_tokens, strict=True))
    assert "8 have a threshold from 2.71 to 2.70, 0 are gradual" in answer, "letters"


def test_seeds_of_the_runs_beside_the_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOSSLENS_RESULTS", raising=False)
    answer = answer_of(ROOT / "notebooks" / "06_seeds.ipynb", monkeypatch)
    assert "6 of 6 tasks scatter beyond the noise of their items" in answer and "fewer than two seeds: skill_addition." in answer
    recall = re.search(r"skill_recall at \S+: (\d+) of (\d+) past half .*, scores (\S+) to (\S+), (\d+) near their mean", answer)
    assert recall is not None and 0 < int(recall[1]) < int(recall[2]) and float(recall[3]) < 0.3 and float(recall[4]) > 0.9
    assert re.search(r"^Yes: for .*skill_recall.* at most a quarter of the seeds score near their mean", answer, re.MULTILINE)


def test_seeds_of_another_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSLENS_RESULTS", str(write_study(tmp_path / "results", seeds=4, tasks=(TASKS[0], TASKS[-2])).root))
    answer = answer_of(ROOT / "notebooks" / "06_seeds.ipynb", monkeypatch)
    assert re.search(r"^    skill_copy at 1\.\d\d: \d of 4 past half .* too few seeds for a dip test\.$", answer, re.MULTILINE)
    assert "fewer than two seeds: cloze_near." in answer


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_without_outputs(path: Path) -> None:
    cells = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4).cells  # type: ignore[no-untyped-call]
    assert cells[0].cell_type == "markdown"
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
