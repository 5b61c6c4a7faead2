"""Take over what others have measured: their files become runs, checkpoints, scores and samples of a results directory."""

from __future__ import annotations

if __name__ == "__main__":
    import here  # noqa: F401

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from losslens.errors import UserError
from losslens.results import Results
from losslens.results.importers import Imported, lm_eval
from losslens.results.parts import conform

_READERS = {"lm-eval": lm_eval.read}
_ORDER = ("samples", "runs", "checkpoints", "losses", "scores")  # scores last: whoever sees one finds all that belongs to it


def import_results(source: str, path: Path, results: Path) -> list[dict[str, Any]]:
    """Write everything that `path` holds into `results` and return its scores; what is left out is said on stderr.

    `source`: whose files they are, a key of `_READERS`.

    All files are read before anything is written, and importing the same files again adds nothing.

    Raises:
        UserError: nothing to read there, a file that is damaged or not of that source, or nothing in it that can be used.
    """
    found = _READERS[source](path)
    tables = [{table: conform(table, part.rows[table]) for table in _ORDER if part.rows.get(table)} for part in found]
    unused = Counter(entry.reason for part in found for entry in part.unused)
    scores = [row for part in found for row in part.rows.get("scores", ())]
    if not scores and not any(part.rows.get("losses") for part in found):
        reasons = "; ".join(unused) or "it is empty"
        raise UserError(f"nothing in {path} can be used: {reasons}", "see docs/LM_EVAL.md for what a score needs")
    stored = Results(results)
    for part in tables:
        for table, rows in part.items():
            stored.write(table, rows)
    _say(found, len(scores), unused)
    shown = ("checkpoint_id", "task", "format", "shots", "metric", "value", "stderr", "n", "chance", "engine")
    return [{name: row[name] for name in shown} for row in scores]


def _say(found: Sequence[Imported], scores: int, unused: Counter[str]) -> None:
    print(f"{len(found)} file{'s'[: len(found) != 1]}, {scores} scores", file=sys.stderr)
    for reason, count in unused.most_common():
        names = sorted({f"{e.task} {e.metric}".strip() for part in found for e in part.unused if e.reason == reason})
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        print(f"left out {count}: {reason} ({', '.join(names[:3])}{more})", file=sys.stderr)


if __name__ == "__main__":
    from jobs.cli import run_verb

    run_verb("import")
