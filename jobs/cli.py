"""The command line: `losslens VERB`. Verbs parse, hand over to one job each, and print what it returns.

Jobs are imported inside the verbs, so that `losslens --help` and `losslens plan` start without torch, ray, duckdb,
pyarrow and transformers. Whatever goes wrong is turned into an exit code in one place, `_Verbs.invoke`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from jobs.analysis_verbs import add_analyses
from jobs.console import Format, show
from jobs.interrupt import interruptible, leave
from jobs.look_verbs import add_looks
from jobs.options import AsFormat, Engine, Into, Overrides, Results, Study
from jobs.out_verbs import add_outs
from jobs.tuning_verb import add_tuning

if TYPE_CHECKING:
    from jobs.study import Summary
    from losslens.specs import StudySpec


class _Verbs(TyperGroup):
    """Runs a verb; a failure with a known cause becomes one sentence, a remedy and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with interruptible():
                return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            from jobs.failures import explain

            failure = explain(error)
            if failure is None:
                raise
            failure.print(error if ctx.params.get("debug") else None)
            if isinstance(error, KeyboardInterrupt):
                leave(failure.exit_code)  # not waiting for Ray: see `cluster.connect.connected`
            raise typer.Exit(failure.exit_code) from error


app = typer.Typer(cls=_Verbs, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def _losslens(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure too.")] = False) -> None:
    """At which pretraining loss does an ability appear?"""


@app.command("plan")
def _plan(
    study: Study,
    gpu: Annotated[Literal["h100", "h200"], typer.Option("--gpu", help="What it would run on.")] = "h100",
    gpus: Annotated[int | None, typer.Option("--gpus", metavar="N", min=1, help="How many (default: the fewest that fit).")] = None,
    mfu: Annotated[float, typer.Option("--mfu", min=0.001, max=1, help="Model FLOPs utilisation, best a measured one.")] = 0.45,
    price: Annotated[float | None, typer.Option("--price", metavar="USD", min=0, help="Of one GPU for an hour.")] = None,
    overrides: Overrides = None,
    format: AsFormat = Format.table,
) -> None:
    """Print every derived number of a study, memory and time on GPUs included; nothing is started."""
    from jobs.plan import NOTE, Hardware, columns, memory_columns, memory_note, memory_rows, plan

    hardware = Hardware(gpu, gpus, mfu, price)
    rows = plan(_spec(study, overrides), hardware)
    show(rows, format, columns=columns(hardware, rows))
    if format is Format.table:
        print(NOTE, file=sys.stderr)
        show(memory_rows(rows), columns=memory_columns(rows))
        print(memory_note(hardware), file=sys.stderr)


@app.command("run")
def _run(
    study: Study,
    overrides: Overrides = None,
    results: Into = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved study and its plan, then stop.")] = False,
) -> None:
    """The whole study: corpus, training, scoring, analysis, report. Running it again resumes."""
    spec = _spec(study, overrides)
    if dry_run:
        _print_resolved(spec)
        return
    from jobs.study import run_study

    _print_outcome(run_study(spec, _into(spec, results)))


@app.command("corpus")
def _corpus(study: Study, overrides: Overrides = None, results: Into = None) -> None:
    """Read, clean, tokenise and pack a study's corpus."""
    spec = _spec(study, overrides)
    from jobs.corpus import build_corpus

    build_corpus(spec, _into(spec, results))


@app.command("pretrain")
def _pretrain(
    study: Study,
    size: Annotated[str, typer.Option("--size", help="The size to train.")],
    seed: Annotated[int | None, typer.Option("--seed", help="Only the run with this seed (default: all of the study).")] = None,
    overrides: Overrides = None,
    results: Into = None,
) -> None:
    """Train one size of a study."""
    spec = _spec(study, overrides)
    from jobs.pretrain import pretrain

    pretrain(spec, _into(spec, results), size, seed)


@app.command("finetune")
def _finetune(
    study: Study,
    origins: Annotated[
        list[str],
        typer.Option("--from", metavar="DIR", help="A checkpoint, a run's directory, a study's results or a model; repeatable."),
    ],
    overrides: Overrides = None,
    results: Into = None,
    format: AsFormat = Format.table,
) -> None:
    """Tune checkpoints on the study's tuning data, and score every amount of it."""
    spec = _spec(study, overrides)
    from jobs.finetune import finetune

    show(finetune(spec, origins, _into(spec, results)), format)


@app.command("sweep")
def _sweep(
    study: Study,
    sizes: Annotated[list[str], typer.Option("--size", metavar="S", help="The size to tune; may be given again.")],
    params: Annotated[
        list[str] | None,
        typer.Option(
            "--param", metavar="KEY=SPACE", help="log:LOW:HIGH, uniform:LOW:HIGH, int:LOW:HIGH or choice:A,B (default: the learning rate)."
        ),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=2, help="Runs per size; more keep the first ones.")] = 8,
    grace: Annotated[float, typer.Option("--grace", help="No run stops before: a share of the budget, or steps from 1 on.")] = 0.25,
    reduction: Annotated[int, typer.Option("--reduction", min=2, help="One of so many goes on, at so many times the tokens.")] = 3,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the values that are tried; the runs have the study's.")] = 0,
    overrides: Overrides = None,
    results: Into = None,
    format: AsFormat = Format.table,
) -> None:
    """Tune the learning rate, or any key, of a size; poor runs are stopped early."""
    spec = _spec(study, overrides)
    from jobs.sweep import Halving, require_all_ended, sweep

    halving = Halving(grace, reduction)
    rows = sweep(study, overrides or (), _into(spec, results), sizes, params or (), samples=samples, seed=seed, halving=halving)
    show(rows, format)
    require_all_ended(rows)


@app.command("evaluate")
def _evaluate(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A study's results, a directory of checkpoints, a Hugging Face model or hf:ORG/NAME.")
    ],
    tasks: Annotated[
        str, typer.Option("--tasks", metavar="A,B:FORMAT", help="Tasks by name, or YAML files that declare one; in one format or in all.")
    ] = "",
    losses: Annotated[
        list[str] | None, typer.Option("--loss", metavar="NAME=PATH", help="Measure the loss on this text or packed corpus; repeatable.")
    ] = None,
    stride: Annotated[int | None, typer.Option("--stride", min=1, help="Tokens a window moves on (default: half of it).")] = None,
    engine: Engine = "auto",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Items per task: a fixed pseudo-random subset.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on: score checkpoints as they appear.")] = False,
    until_idle: Annotated[
        float | None, typer.Option("--until-idle", metavar="SECONDS", min=0, help="Watch until nothing was new for so long.")
    ] = None,
    revisions: Annotated[
        str | None, typer.Option("--revisions", metavar="A,B", help="Branches, tags, commits or directories, by shell patterns: 'step*'.")
    ] = None,
    step_pattern: Annotated[
        str | None, typer.Option("--step-pattern", metavar="REGEX", help="Groups step and tokens in a name (default: Pythia's, OLMo's).")
    ] = None,
    tokens_per_step: Annotated[int | None, typer.Option("--tokens-per-step", min=1, help="Tokens are so many times the step.")] = None,
    cache: Annotated[Path | None, typer.Option("--cache", metavar="DIR", help="Downloads (default: ~/.cache/losslens/hub).")] = None,
    cache_size: Annotated[str, typer.Option("--cache-size", metavar="SIZE", help="At most; what is scored goes first.")] = "50GB",
    results: Annotated[Path, typer.Option("--results", metavar="DIR", help="Where scores go.")] = Path("results"),
    data: Annotated[Path | None, typer.Option("--data", metavar="DIR", help="Task files: DIR/TASK/test.jsonl[.gz].")] = None,
    format: AsFormat = Format.table,
) -> None:
    """Score checkpoints on tasks, and measure their held-out losses."""
    from eval_service.loss_corpus import loss_corpora
    from eval_service.position import DEFAULT_PATTERN
    from jobs.evaluate import Choice, evaluate

    choice = Choice(tuple(_listed(revisions or "")), step_pattern or DEFAULT_PATTERN, tokens_per_step, cache, cache_size)
    scores = evaluate(
        target,
        _listed(tasks),
        engine,
        limit,
        watch,
        results,
        data,
        losses=loss_corpora(losses or (), stride),
        choice=choice,
        until_idle=until_idle,
        present=lambda scores: show(scores, format),
    )
    show(scores, format)


@app.command("import")
def _import(
    source: Annotated[
        Literal["gadre", "lm-eval", "olmo-ladder", "pythia", "table"],
        typer.Argument(metavar="FORMAT", help="Who wrote it: lm-eval, gadre, olmo-ladder, pythia; table: a mapping tells."),
    ],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A results file or table, or a directory that holds some.")],
    mapping: Annotated[Path | None, typer.Option("--mapping", metavar="FILE", help="What the columns of a table mean (YAML).")] = None,
    results: Annotated[Path, typer.Option("--results", metavar="DIR", help="Where the rows go.")] = Path("results"),
    format: AsFormat = Format.table,
) -> None:
    """Take over losses and scores that others have measured."""
    from jobs.import_results import import_results

    show(import_results(source, path, results, mapping), format)


@app.command("sql")
def _sql(
    statement: Annotated[str, typer.Argument(metavar='"SELECT ..."', help="A read-only statement.")],
    results: Results = Path("results"),
    format: AsFormat = Format.table,
) -> None:
    """Read-only SQL over the results."""
    from jobs.query import sql

    show(sql(results, statement), format)


add_analyses(app)
add_tuning(app)
add_looks(app)
add_outs(app)


@app.command("compact")
def _compact(
    results: Results = Path("results"),
    grace: Annotated[
        float, typer.Option("--grace", metavar="SECONDS", min=0, help="What was merged stays so long for readers that have begun.")
    ] = 3600.0,
    format: AsFormat = Format.table,
) -> None:
    """Merge the many small files of the results into few large ones."""
    from jobs.compact import compact

    show(compact(results, grace), format)


@app.command("doctor")
def _doctor(format: AsFormat = Format.table) -> None:
    """What is missing on this machine, and how to mend it."""
    from dataclasses import asdict

    from jobs.doctor import check, examine
    from losslens.errors import EnvironmentFailure

    findings = check(examine(Path.cwd()))
    show([asdict(finding) for finding in findings], format)
    if missing := [finding.what for finding in findings if finding.required and not finding.ok]:
        raise EnvironmentFailure(f"this machine lacks what losslens needs: {', '.join(missing)}", "see the remedies above")


@app.command("serve")
def _serve(
    host: Annotated[str, typer.Option("--host", help="Where to listen; beyond this machine only with a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 8117,
    roots: Annotated[
        list[Path] | None,
        typer.Option("--root", metavar="DIR", help="Checkpoints lie under it (default: the results); repeatable."),
    ] = None,
    results: Annotated[Path, typer.Option("--results", metavar="DIR", help="Where scores and the queue go.")] = Path("results"),
    data: Annotated[Path | None, typer.Option("--data", metavar="DIR", help="Task files: DIR/TASK/test.jsonl[.gz].")] = None,
    engine: Annotated[
        Literal["auto", "vllm", "torch", "fake"], typer.Option("--engine", help="What scores; fake makes numbers up, to try the service.")
    ] = "auto",
    min_scorers: Annotated[int, typer.Option("--min-scorers", min=0, help="Scorers that stay when nothing is queued.")] = 0,
    max_scorers: Annotated[int, typer.Option("--max-scorers", min=1, help="Scorers at most.")] = 1,
    gpus: Annotated[float, typer.Option("--gpus-per-scorer", min=0, help="GPUs, or a part of one, that a scorer gets.")] = 0,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="The token that requests must bear (or LOSSLENS_TOKEN).")
    ] = None,
    drain: Annotated[float, typer.Option("--drain", metavar="SECONDS", min=0, help="What runs may take after SIGTERM.")] = 60.0,
) -> None:
    """Score checkpoints that are submitted over HTTP."""
    from jobs.serve import Settings, serve

    serve(Settings(host, port, tuple(roots or ()), results, data, engine, min_scorers, max_scorers, gpus, token_file, drain))


@app.command("drain-watcher")
def _drain_watcher(
    source: Annotated[str, typer.Option("--source", metavar="aws|gcp|file:PATH", help="Who gives notice: a cloud or a file.")],
    endpoint: Annotated[str | None, typer.Option("--endpoint", metavar="URL", help="Where the metadata service is, if elsewhere.")] = None,
    address: Annotated[str | None, typer.Option("--address", metavar="HOST:PORT", help="The cluster (default: the node's).")] = None,
    node_id: Annotated[str | None, typer.Option("--node-id", metavar="HEX", help="The node (default: this machine's).")] = None,
    every: Annotated[float, typer.Option("--every", metavar="SECONDS", min=0.1, help="How often to ask.")] = 2.0,
) -> None:
    """Drain this machine's node of Ray when a cloud is about to take the machine back."""
    from jobs.watch_drain import watch_drain

    watch_drain(source, endpoint, address, node_id, every)


def _listed(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _spec(study: str, overrides: list[str] | None) -> StudySpec:
    from losslens.specs import load_study

    return load_study(study, overrides or ())


def _into(spec: StudySpec, results: Path | None) -> Path:
    return results or Path(spec.results)


def _print_resolved(spec: StudySpec) -> None:
    from jobs.plan import SHOWN, plan
    from losslens.specs import to_yaml

    print(to_yaml(spec))
    show(plan(spec), columns=SHOWN)


def _print_outcome(summary: Summary) -> None:
    show(summary.thresholds)
    if summary.agreement:
        show(summary.agreement)
    print(summary.report)


def main() -> None:
    """`losslens VERB ...`; `--debug` is understood after the verb too."""
    app(args=sorted(sys.argv[1:], key=lambda argument: argument != "--debug"), prog_name="losslens")


def run_verb(verb: str) -> None:
    """`python jobs/JOB.py ...` does what `losslens VERB ...` does."""
    sys.argv[1:1] = [verb]
    main()


if __name__ == "__main__":
    main()
