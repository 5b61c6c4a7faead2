"""The checkpoints that `finetune --from` names: found, identified and described, each with what is known of its losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_service.checkpoints import read_card
from eval_service.targets import Found, identify, is_study
from losslens.corpus.shards import sha256
from losslens.errors import UserError
from losslens.families import PARENT, Origin, PlannedRun, Shape, planned_runs
from losslens.families.plan import short
from losslens.families.tuned import Parent
from losslens.results import Results
from losslens.specs import StudySpec
from losslens.training.checkpoint import RECORD

_FROM = "give a checkpoint, the directory of a run's checkpoints, a study's results or a Hugging Face model directory"
_LOSS = ("dataset", "unit", "value", "stderr", "tokens", "bytes")


@dataclass(frozen=True, slots=True)
class Chosen:
    """A checkpoint to be tuned, and the rows that describe it."""

    parent: Parent
    found: Found


def chosen(spec: StudySpec, targets: Sequence[str], results: Path) -> list[Chosen]:
    """The checkpoints that the targets name, in their order, each once. `results` is where further losses of them may lie.

    Raises:
        UserError: a target that holds no checkpoint, or one whose shape or tokenizer cannot be trained here.
    """
    planned = {run.run_id: run for run in planned_runs(spec)}
    directories = dict.fromkeys(directory for target in targets for directory in _directories(Path(target), planned))
    found = {of.checkpoint.checkpoint_id: of for of in (identify(directory, alone=True) for directory in directories)}
    stored = _stored(list(found), results)
    return [_described(of, planned.get(of.run["run_id"]), stored.get(checkpoint_id, [])) for checkpoint_id, of in found.items()]


def _directories(target: Path, planned: Mapping[str, PlannedRun]) -> list[Path]:
    """What a target stands for. Of many checkpoints untrained ones are left out: there is nothing yet that could be tuned."""
    target = target.resolve()
    if not target.is_dir():
        raise UserError(f"--from {target} is not a directory", _FROM)
    if is_study(target):
        found = [directory for run in planned for directory in _trained(target / "checkpoints" / run)]
        if not found:
            raise UserError(f"{target} holds no trained checkpoint of this study", "pretrain it into there first, with the same settings")
        return found
    if (target / "config.json").is_file():
        return [target]
    found = _trained(target)
    if not found:
        raise UserError(f"--from {target} holds no trained checkpoint", _FROM)
    return found


def _trained(run: Path) -> list[Path]:
    directories = sorted(record.parent for record in run.glob(f"step-*/{RECORD}"))
    return [directory for directory in directories if int(directory.name.removeprefix("step-")) > 0]


def _described(found: Found, run: PlannedRun | None, stored: Sequence[dict[str, Any]]) -> Chosen:
    from losslens.corpus.tokenizer import existing

    directory = Path(found.checkpoint.path)
    shape = run.shape if run else _shape(directory)
    tokenizer, ids = existing(directory)
    if ids > shape.vocab_size:
        sentence = f"the tokenizer in {directory} has {ids:,} entries, and its model {shape.vocab_size:,}"
        raise UserError(sentence, "put the tokenizer that the model was trained with beside it")
    origin = Origin(found.checkpoint.checkpoint_id, str(directory), found.row["weights_sha256"], tuple(_losses(found, directory, stored)))
    tokens = found.row.get("tokens")
    label = run.label if run else found.run["size"]
    parent = Parent(
        origin=origin,
        label=f"{label}-at{short(tokens)}" if tokens else label,
        size=run.size if run else found.run["size"],
        shape=shape,
        tokenizer=tokenizer,
        tokenizer_sha256=sha256(directory / "tokenizer.json"),
        variant=run.variant if run else "",
        sharded=run.sharded if run else False,
        recompute=run.recompute if run else False,
    )
    return Chosen(parent, found)


def _shape(directory: Path) -> Shape:
    from losslens.models.config import shape_from_config  # here: transformers takes seconds, and a study's own runs do without
    from losslens.models.scoring import read_config

    shape = shape_from_config(read_config(directory))
    if shape is None:
        sentence = f"the model in {directory} is of no shape that can be trained here"
        raise UserError(sentence, "tune a Llama, a Phi-3 whose rotary positions take half of each head, or a checkpoint of the study")
    return shape


def _losses(found: Found, directory: Path, stored: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of `losses` of a checkpoint, from the results and from its own card; those of a parent of its own are not its own."""
    card = read_card(directory) or {}
    known: dict[tuple[str, str], dict[str, Any]] = {}
    for row in (*stored, *found.losses, *card.get("losses", ())):
        known[row["dataset"], row["unit"]] = {name: row.get(name) for name in _LOSS}
    yield from (row for (dataset, _), row in sorted(known.items()) if not dataset.startswith(PARENT))


def _stored(checkpoint_ids: list[str], results: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of `losses` in the results, by checkpoint."""
    if not (results / "parts" / "losses").is_dir():
        return {}
    stored: dict[str, list[dict[str, Any]]] = {}
    for row in Results(results).query("SELECT * FROM losses WHERE list_contains($1, checkpoint_id)", [checkpoint_ids]).to_pylist():
        stored.setdefault(row["checkpoint_id"], []).append(row)
    return stored
