"""Take over what others have measured: their files become runs, checkpoints, scores and samples of a results directory."""

from __future__ import annotations

if __name__ == "__main__":
    import here  # noqa: F401

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from losslens.errors import UserError
from losslens.results import Results
from losslens.results.importers import Imported, lm_eval, mapping, table
from losslens.results.parts import conform

_SHOWN = ("checkpoint_id", "task", "format", "shots", "metric", "value", "stderr", "n", "chance", "engine")
_ORDER = ("samples", "runs", "checkpoints", "losses", "scores")  # scores last: whoever sees one finds all that belongs to it


def import_results(source: str, path: Path, results: Path, mapping_file: Path | None = None) -> list[dict[str, Any]]:
    """Write everything that `path` holds into `results` and return its scores, for a table what it has of each kind; what is
    left out is said on stderr.

    `source`: whose files they are: `lm-eval`, a bundled mapping, or `table`, which `mapping_file` describes.

    All files are read before anything is written, and importing the same files again adds nothing.

    Raises:
        UserError: nothing to read there, a file that is damaged or not of that source, or nothing in it that can be used.
    """
    if (source == "table") != (mapping_file is not None):
        need = "needs a mapping" if source == "table" else "takes no mapping: it has its own"
        raise UserError(f"import {source} {need}", "give --mapping FILE with `table`, and only there; see docs/IMPORT.md")
    found = lm_eval.read(path) if source == "lm-eval" else [table.read(path, _mapping(source, mapping_file))]
    tables = [{name: conform(name, part.rows[name]) for name in _ORDER if name in part.rows} for part in found]
    unused: Counter[str] = Counter()
    for entry in (entry for part in found for entry in part.unused):
        unused[entry.reason] += entry.count
    counts = {name: sum(part[name].num_rows for part in tables if name in part) for name in ("losses", "scores")}
    if not any(counts.values()):
        reasons = "; ".join(unused) or "it is empty"
        document = "docs/LM_EVAL.md" if source == "lm-eval" else "docs/IMPORT.md"
        raise UserError(f"nothing in {path} can be used: {reasons}", f"see {document} for what a score needs")
    stored = Results(results)
    for part in tables:
        for name, rows in part.items():
            stored.write(name, rows)
    _say(found, counts, unused)
    if source != "lm-eval":
        return table.summary(found[0])
    return [{name: row[name] for name in _SHOWN} for part in found for row in part.rows.get("scores", ())]


def _mapping(source: str, mapping_file: Path | None) -> mapping.Mapped:
    return mapping.read_bundled(source) if mapping_file is None else mapping.read_mapping(mapping_file)


def _say(found: Sequence[Imported], counts: Mapping[str, int], unused: Counter[str]) -> None:
    files = sum(part.files for part in found)
    print(f"{files} file{'s'[: files != 1]}, {counts['scores']} scores, {counts['losses']} losses", file=sys.stderr)
    for reason, count in unused.most_common():
        names = sorted({f"{e.task} {e.metric}".strip() for part in found for e in part.unused if e.reason == reason} - {""})
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        named = f" ({', '.join(names[:3])}{more})" if names else ""
        print(f"left out {count}: {reason}{named}", file=sys.stderr)


if __name__ == "__main__":
    from jobs.cli import run_verb

    run_verb("import")
