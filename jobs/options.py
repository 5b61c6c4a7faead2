"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.console import Format

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
