"""Arguments and options that several verbs share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jobs.console import Format
from jobs.filters import Filters

Study = Annotated[str, typer.Argument(metavar="STUDY", help="A bundled study's name or a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: training.global_batch=16.")]
Into = Annotated[Path | None, typer.Option("--results", metavar="DIR", help="Where results go (default: the study's own setting).")]
Results = Annotated[Path, typer.Option("--results", metavar="DIR", help="The results directory to read.")]
AsFormat = Annotated[Format, typer.Option("--format", help="How to print: for eyes or for programs.")]
Task = Annotated[str | None, typer.Option("--task", help="Only this task.")]
FormatFilter = Annotated[str | None, typer.Option("--format-filter", help="Only this form of the task: letter, text, open, pair.")]
Metric = Annotated[str | None, typer.Option("--metric", help="Only this metric.")]
LossDataset = Annotated[str | None, typer.Option("--loss-dataset", help="Only this loss axis: train, heldout, heldout/SOURCE.")]
Engine = Annotated[Literal["auto", "vllm", "torch"], typer.Option("--engine", help="What scores: auto takes vLLM where it serves.")]
LossAxis = Annotated[
    str | None, typer.Option("--loss-axis", metavar="DATASET:UNIT|best", help="Only this loss; best: the one that tells scores best.")
]
OfStudy = Annotated[str | None, typer.Option("--study", help="Only this study.")]


def filtered(verb: Callable[..., None], *, loss_axis: bool = True) -> Callable[..., None]:
    """The verb with the options of every analysis, which reach it as `results`, `filters` (a `Filters`) and `format`."""
    own = [kind for name, kind in inspect.signature(verb, eval_str=True).parameters.items() if name not in ("results", "filters", "format")]
    shared = {name: kind for name, kind in _FILTERS.items() if loss_axis or kind is not LossAxis}

    def parsed(**given: Any) -> None:
        filters = Filters(**{name.removesuffix("_filter"): given[name] for name in shared})
        verb(given["results"], filters, given["format"], **{kind.name: given[kind.name] for kind in own})

    parameters = [kind.replace(kind=inspect.Parameter.KEYWORD_ONLY) for kind in own]
    parameters += [_option(name, kind, None) for name, kind in shared.items()]
    parameters += [_option("results", Results, Path("results")), _option("format", AsFormat, Format.table)]
    parsed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    parsed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    parsed.__doc__ = verb.__doc__
    return parsed


_FILTERS = {
    "task": Task,
    "format_filter": FormatFilter,
    "metric": Metric,
    "loss_dataset": LossDataset,
    "loss_axis": LossAxis,
    "study": OfStudy,
}


def _option(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
