"""One task's curve as a figure for a paper: what the report draws on screen, in vectors or pixels, by matplotlib."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from losslens.errors import EnvironmentFailure, UserError
from losslens.report.palette import LIGHT, colours
from losslens.report.study import Curve, Group, LossAxis, Panel, Row, Study
from losslens.report.words import number, span, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Against = Literal["loss", "tokens", "flops"]

KINDS = (".pdf", ".svg", ".png")
_INCHES = (5.2, 3.4)
_MARKERS = ("o", "s", "^", "D", "v", "P")
_BLUE = "#1f5fc4"
_STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#eceff3", "legend.frameon": False, "pdf.fonttype": 42, "svg.fonttype": "none", "savefig.dpi": 300,
}  # fmt: skip


def draw_figure(study: Study, panel: Panel, curve: Curve, axis: LossAxis, against: Against, group: Group, out: Path) -> Path:
    """Write the curve of one metric to `out`, whose name ends with one of `KINDS`, a colour for each name of `group`, which is one of
    `study.groups`; a loss axis is reversed.

    Raises:
        UserError: `out` is of another kind.
        EnvironmentFailure: there is no matplotlib, or `out` cannot be written.
    """
    if out.suffix not in KINDS:
        raise UserError(f"{out} is no figure that can be drawn", f"end its name with {', '.join(KINDS)}")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EnvironmentFailure("figures are drawn by matplotlib, which is not installed", "pip install 'losslens[notebooks]'") from error
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_INCHES, layout="constrained")
        axes = figure.add_subplot()
        x = _values(study, axis, against)
        if against == "loss":
            row = study.threshold(panel, curve, axis)
            x = _fitted(study, row, x)
            _draw_runs(axes, study, curve, x, group)
            axes.invert_xaxis()
            _draw_threshold(axes, row)
        else:
            _draw_runs(axes, study, curve, x, group)
            axes.set_xscale("log")
        if curve.chance and _in_sight(curve.chance[1], axes.get_ylim()):
            axes.axhline(curve.chance[1], color="#7d8693", linestyle=(0, (5, 4)), linewidth=1, zorder=1, label="chance")
        axes.set_title(title(panel, study.panels), loc="left", fontweight="bold", fontsize=10)
        axes.set_xlabel({"loss": f"{axis.label} (reversed)", "tokens": "training tokens", "flops": "training FLOPs"}[against])
        axes.set_ylabel(curve.metric.replace("_", " ") + ("" if curve.higher_is_better else " (lower is better)"))
        handles, labels = axes.get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda i: group.names.index(labels[i]) if labels[i] in group.names else len(labels))
        axes.legend([handles[i] for i in order], [labels[i] for i in order], fontsize=8)
        temporary = out.with_name(f".tmp-{os.getpid()}-{out.name}")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(temporary, format=out.suffix[1:])
            temporary.replace(out)
        except OSError as error:
            raise EnvironmentFailure(
                f"the figure cannot be written to {out}: {error.strerror}", "check the disk and permissions"
            ) from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    return out


def _in_sight(level: float, drawn: tuple[float, float]) -> bool:
    """Whether a level can be drawn without dwarfing the curve: 8 bits/byte cannot; chance of a share of items always is."""
    low, high = drawn
    share = low > -0.2 and high < 1.2
    return share or 2 * low - high < level < 2 * high - low


def _values(study: Study, axis: LossAxis, against: Against) -> list[float | None]:
    """Where each checkpoint stands; a log axis has no place for untrained models."""
    if against == "loss":
        return list(axis.values)
    found = (checkpoint.tokens if against == "tokens" else checkpoint.flops for checkpoint in study.checkpoints)
    return [value if value else None for value in found]


def _draw_runs(axes: Axes, study: Study, curve: Curve, x: list[float | None], group: Group) -> None:
    shades = colours(len(group.names), LIGHT)
    named: set[int] = set()
    for index, slot in enumerate(group.of):
        points = [
            (at, value, curve.stderr[i] or 0.0)
            for i, (checkpoint, at, value) in enumerate(zip(study.checkpoints, x, curve.values, strict=True))
            if checkpoint.run == index and at is not None and value is not None
        ]
        if not points:
            continue
        label = None if slot in named else group.names[slot]
        named.add(slot)
        xs, ys, errors = zip(*points, strict=True)
        shade, mark = shades[slot], _MARKERS[slot % len(_MARKERS)]
        axes.errorbar(xs, ys, errors, color=shade, marker=mark, markersize=3, linewidth=0.8, elinewidth=0.6, label=label)


def _fitted(study: Study, row: Row | None, x: list[float | None]) -> list[float | None]:
    """Without untrained models, whose losses lie far above all others, and what comes long before a threshold."""
    tuned = study.parents is not None  # so all of them were trained before
    trained = [at for at, one in zip(x, study.checkpoints, strict=True) if at is not None and (tuned or one.tokens != 0)]
    if not trained:
        return x
    first, last = max(trained), min(trained)
    if row is not None and row["verdict"] == "emergent":
        first = min(first, last + 2.2 * ((row["eta_high"] or row["eta"]) - last))  # most happens after the threshold
    return [None if at is None or at > first else at for at in x]


def _draw_threshold(axes: Axes, row: Row | None) -> None:
    if row is None or row["verdict"] != "emergent":
        return
    eta, low, high = row["eta"], row["eta_low"], row["eta_high"]
    axes.axvspan(high or eta, low or eta, color=_BLUE, alpha=0.15, linewidth=0, zorder=0)
    axes.axvline(eta, color=_BLUE, linewidth=1.2, zorder=1, label=f"η {number(eta, 2)} {span(low, high, 2)}")
