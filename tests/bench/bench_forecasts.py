"""How far forecasts miss and how long they take: OLMo 2 7B and 13B from the ladder of 190M to 3B.

    python -m tests.bench.bench_forecasts PUBLISHED [--all]

PUBLISHED holds `olmo-ladder/`. The eight tasks of Bhagia et al. 2024, or with --all every task and metric of the tables.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from jobs.filters import Filters
from jobs.forecast import points, summary, told
from jobs.import_results import import_results
from losslens.analysis.forecasts import forecasts
from losslens.results import Results

EIGHT = "mmlu_test,hellaswag_val,arc_challenge_test,arc_easy_test,piqa_val,csqa_val,socialiqa_val,openbookqa_test"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("published", type=Path)
    parser.add_argument("--all", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        import_results("olmo-ladder", given.published / "olmo-ladder", Path(folder))
        eight = Filters(task=EIGHT, format="text", metric="acc_norm", study="olmo-ladder")
        filters = Filters(format="text", study="olmo-ladder") if given.all else eight
        started, worked = time.perf_counter(), time.process_time()
        found, choices = forecasts(points(Results(folder), filters), hold_out=("7B", "13B"), metrics=None if given.all else ["acc_norm"])
    print("\n".join([*told(choices), *summary(found)]))
    took, core = time.perf_counter() - started, time.process_time() - worked
    scores = set(zip(found["task"].to_pylist(), found["metric"].to_pylist(), strict=True))
    print(f"{len(scores)} scores of 3,948 checkpoints forecast in {took:.1f} s ({core:.1f} s of one core)")


if __name__ == "__main__":
    main()
