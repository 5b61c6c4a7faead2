"""Every notebook runs from top to bottom, on the synthetic study or on published tables, and is stored without outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.synthetic import write_study

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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_without_outputs(path: Path) -> None:
    cells = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4).cells  # type: ignore[no-untyped-call]
    assert cells[0].cell_type == "markdown"
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
