"""Importing the published tables themselves: row counts, known values, and the jump of MMLU that they show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.analyse import thresholds
from jobs.filters import Filters
from jobs.import_results import import_results
from losslens.analysis import correlations
from losslens.analysis import thresholds as thresholds_of
from losslens.results import Results

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "data" / "published"
pytestmark = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no published tables beside the checkout (../shared/data/published)")

LICENCES = {"gadre": "MIT", "olmo-ladder": "Apache-2.0", "pythia": "Apache-2.0"}
COUNTS = {  # runs, checkpoints, losses, scores
    "gadre": (104, 104, 104 * 8, 104 * 46),
    "olmo-ladder": (34, 3948, 126_336, 173_775),
    "pythia": (37, 746, 150, 160_352),
}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("published")
    for name in LICENCES:
        import_results(name, PUBLISHED / name, root)
    return Results(root)


def rows(results: Results, sql: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = results.query(sql).to_pylist()
    return found


@pytest.mark.parametrize("study", LICENCES)
def test_row_counts(imported: Results, study: str) -> None:
    counts = []
    for table, key in (("runs", "run_id"), ("checkpoints", "run_id"), ("losses", "checkpoint_id"), ("scores", "checkpoint_id")):
        (found,) = rows(imported, f"SELECT count(*) AS n FROM {table} WHERE starts_with({key}, '{study}/')")
        counts.append(found["n"])
    assert tuple(counts) == COUNTS[study]


@pytest.mark.parametrize("study", LICENCES)
def test_licence_and_source_stay_with_every_run(imported: Results, study: str) -> None:
    (found,) = rows(imported, f"SELECT DISTINCT licence, source_url, source IS NOT NULL AS known FROM runs WHERE study = '{study}'")
    assert found["licence"] == LICENCES[study] and found["known"] and found["source_url"].startswith("https://github.com/")


def test_what_is_left_out_adds_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All 193,187 rows of Pythia: used, or counted by reason."""
    import_results("pythia", PUBLISHED / "pythia", tmp_path)
    left = [int(line.split()[2].rstrip(":")) for line in capsys.readouterr().err.splitlines() if line.startswith("left out")]
    assert sum(left) + 160_352 + 150 == 193_187


def test_mmlu_of_the_7b_jumps_where_it_is_known_to(imported: Results) -> None:
    found = rows(
        imported,
        "SELECT step, tokens, value, loss FROM curve WHERE run_id = 'olmo-ladder/peteish7' AND loss_dataset = 'c4_en'"
        " AND task = 'mmlu_test' AND format = 'letter' AND step IN (55000, 60000) ORDER BY step",
    )
    assert [row["tokens"] for row in found] == [55_000 * 2**22, 60_000 * 2**22]
    assert [round(row["loss"], 3) for row in found] == [2.705, 2.695]
    assert [round(row["value"], 3) for row in found] == [0.273, 0.368]


def test_flops_of_the_ladder_are_its_own(imported: Results) -> None:
    """The table states training FLOPs for the ladder; for 7B and 13B they follow from the FLOPs per token."""
    found = rows(
        imported,
        "SELECT r.size, min(c.flops / c.tokens) AS low, max(c.flops / c.tokens) AS high FROM checkpoints AS c JOIN runs AS r USING (run_id)"
        " WHERE r.study = 'olmo-ladder' AND c.tokens > 0 GROUP BY 1",
    )
    assert {row["size"] for row in found} == {"190M", "370M", "760M", "1B", "3B", "7B", "13B"}
    for row in found:
        assert row["low"] == pytest.approx(row["high"])
    low = {row["size"]: row["low"] for row in found}
    assert low["190M"] == pytest.approx(1903391232) and low["7B"] == pytest.approx(49412071424)


def test_pythia_ends_at_its_published_tokens_and_scores(imported: Results) -> None:
    ends = rows(imported, "SELECT DISTINCT max(tokens) AS tokens FROM checkpoints WHERE starts_with(run_id, 'pythia/') GROUP BY run_id")
    assert {row["tokens"] for row in ends} == {143_000 * 2**21}
    (found,) = rows(
        imported,
        "SELECT value, n, chance, stderr FROM scores WHERE checkpoint_id = 'pythia/pythia-v1/pythia-12b@step143000' AND shots = 0"
        " AND task = 'lambada_openai' AND metric = 'acc'",
    )
    assert found["n"] == 5153 and found["chance"] == 0 and found["value"] * 5153 == pytest.approx(round(found["value"] * 5153))
    assert 0.70 < found["value"] < 0.72


def test_items_follow_from_the_standard_errors(imported: Results) -> None:
    found = rows(imported, "SELECT task, min(n) AS low, max(n) AS high FROM scores WHERE starts_with(task, 'hendrycksTest') GROUP BY 1")
    assert len(found) == 57 and all(row["low"] == row["high"] for row in found)
    assert sum(row["low"] for row in found) == 14_042


def test_gadre_joins_its_two_files(imported: Results) -> None:
    (found,) = rows(
        imported,
        "SELECT loss, params, tokens, value, n, chance, shots FROM curve WHERE run_id = 'gadre/c4_original-d=1024_l=24_h=8-0.25'"
        " AND loss_dataset = 'c4_val' AND task = 'agi_eval_lsat_rc'",
    )
    assert found == {
        "loss": 3.5279492850157737,
        "params": 411_616_256,
        "tokens": 2_058_081_280,
        "value": 0.302238792181015,
        "n": 268,
        "chance": 0.25,
        "shots": 3,
    }


def test_the_analyses_take_imported_rows(imported: Results) -> None:
    found = thresholds(imported.root, Filters(task="mmlu_test", format="letter", loss_dataset="c4_en")).to_pylist()
    assert [(row["verdict"], row["n_checkpoints"], row["n_runs"]) for row in found] == [("emergent", 379, 4)]
    assert 2.66 < found[0]["eta"] < 2.72  # between the brackets of 7B and 13B


PAPERS_CHECK = """study = 'olmo-ladder' AND loss_dataset = 'c4_en' AND metric IN ('acc', 'acc_norm') AND step >= 1000
    AND run_id NOT IN ('olmo-ladder/peteish7_medlr', 'olmo-ladder/peteish7_eval_anneal')"""
"""The selection behind the published correlations: the ladder, 7B and 13B, without the 7B at another learning rate, the
annealed 7B and each run's first 1,000 steps: 3,662 checkpoints, of which 278 of 7B and 13B were also asked for letters."""


def curves_of(results: Results, where: str) -> pa.Table:
    return results.query(f"SELECT * FROM curve WHERE {where}")


def mean_of_subjects(results: Results, where: str) -> pa.Table:
    """MMLU as a plain mean over its groups or subjects, as in the figures below."""
    kept = "study, run_id, step, tokens, loss, loss_dataset, loss_unit, format, shots, metric"
    return results.query(
        f"SELECT {kept}, 'mmlu' AS task, avg(value) AS value, sqrt(sum(stderr ** 2)) / count(*) AS stderr, sum(n)::BIGINT AS n,"
        f" avg(chance) AS chance, true AS higher_is_better FROM curve WHERE {where} GROUP BY ALL"
    )


FOUR = "task IN ('mmlu_stem_test', 'mmlu_humanities_test', 'mmlu_social_sciences_test', 'mmlu_other_test')"


@pytest.mark.parametrize(
    ("task", "form", "n", "spearman", "pearson"),
    [
        ("hellaswag_val", "text", 3662, -0.999, -0.964),
        ("piqa_val", "text", 3662, -0.996, -0.987),
        ("mmlu", "text", 3662, -0.997, -0.895),
        ("arc_challenge_test", "text", 3662, -0.989, -0.896),
        ("winogrande_val", "text", 3662, -0.921, -0.828),
        ("boolq_val", "text", 3662, -0.622, -0.651),
        ("mmlu", "letter", 278, -0.972, -0.921),
    ],
)
def test_correlations_of_the_ladder(imported: Results, task: str, form: str, n: int, spearman: float, pearson: float) -> None:
    where = f"{PAPERS_CHECK} AND format = '{form}'"
    points = mean_of_subjects(imported, f"{where} AND {FOUR}") if task == "mmlu" else curves_of(imported, f"{where} AND task = '{task}'")
    (row,) = correlations(points).to_pylist()
    assert row["n_checkpoints"] == n
    assert (round(row["spearman"], 3), round(row["pearson"], 3)) == (spearman, pearson)


@pytest.mark.parametrize(
    ("task", "spearman"),
    [("lambada_openai", -0.991), ("piqa", -0.987), ("arc_easy", -0.991), ("sciq", -0.982), ("mmlu", -0.888), ("logiqa", -0.001)],
)
def test_correlations_of_pythia(imported: Results, task: str, spearman: float) -> None:
    where = "study = 'pythia' AND loss_unit = 'bits/byte' AND metric = 'acc' AND shots = 0"
    points = (
        mean_of_subjects(imported, f"{where} AND starts_with(task, 'hendrycksTest')")
        if task == "mmlu"
        else curves_of(imported, f"{where} AND task = '{task}'")
    )
    (row,) = correlations(points).to_pylist()
    assert row["n_checkpoints"] == 150 and row["spearman"] == pytest.approx(spearman, abs=1e-3)
    if task in ("mmlu", "logiqa"):
        (found,) = thresholds_of(points).to_pylist()
        assert found["verdict"] == {"mmlu": "not_reached", "logiqa": "no_trend"}[task]


BRACKETS = {"peteish7": (2.695, 2.705), "peteish7_medlr": (2.707, 2.718), "peteish13": (2.665, 2.692)}
"""Losses of the first checkpoint clearly above and of the last at chance, MMLU with letters, read off by eye."""


def olmo(results: Results, task: str, form: str, runs: list[str]) -> dict[str, Any]:
    names = ", ".join(f"'olmo-ladder/{run}'" for run in runs)
    where = f"loss_dataset = 'c4_en' AND metric IN ('acc', 'acc_norm') AND task = '{task}' AND format = '{form}' AND run_id IN ({names})"
    row: dict[str, Any] = thresholds_of(curves_of(results, where)).to_pylist()[0]
    return row


@pytest.mark.parametrize("task", ["mmlu_test", "arc_challenge_test", "hellaswag_val"])
@pytest.mark.parametrize("runs", [[run] for run in BRACKETS] + [list(BRACKETS)], ids=[*BRACKETS, "together"])
def test_letters_emerge_where_the_tables_jump_and_full_answers_grow(imported: Results, task: str, runs: list[str]) -> None:
    found = olmo(imported, task, "letter", runs)
    low, high = min(BRACKETS[run][0] for run in runs), max(BRACKETS[run][1] for run in runs)
    assert found["verdict"] == "emergent"
    assert low - 0.01 <= found["eta"] <= high + 0.01
    assert found["eta_low"] <= high and found["eta_high"] >= low, "the interval meets the bracket"
    assert olmo(imported, task, "text", runs)["verdict"] == "gradual"
