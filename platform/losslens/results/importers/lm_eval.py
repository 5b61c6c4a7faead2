"""lm-evaluation-harness's output directories: `results_*.json`, and `samples_*.jsonl` where it was told to log samples.

A score needs its chance level, which lm-eval does not write: it is one over the options of each item, counted in the
samples, or in the task's own list of options where that is the same for all items. Where neither tells, the score is left
out with its reason. Bits per byte of whole texts (wikitext and its like) are losses of the checkpoint.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from losslens.errors import UserError
from losslens.results.importers import Imported, Unused
from losslens.results.importers.lm_eval_samples import Samples, format_of_options, read_samples

ENGINE = "lm-eval/"  # before the name of lm-eval's model in `scores.engine`
_CARD = "losslens.json"
_OF_OPTIONS = ("acc", "acc_norm", "acc_bytes")
_REVISION = re.compile(r"(?:step|checkpoint)[-_]?(?P<step>\d+)(?:-tokens(?P<tokens>\d+)(?P<unit>[KMBT]))?")
_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_REMEDY = "give a file or directory that lm_eval wrote with --output_path"


class _Counted(msgspec.Struct):
    effective: int


class _Model(msgspec.Struct):
    model: str
    model_args: dict[str, Any] | str | None = None
    model_num_parameters: int | None = None


class _File(msgspec.Struct):
    """What is read of a results file; anything else in it is ignored."""

    results: dict[str, dict[str, Any]]
    configs: dict[str, dict[str, Any]]
    config: _Model
    shots: dict[str, int] = msgspec.field(name="n-shot")
    versions: dict[str, Any] = {}
    counts: dict[str, _Counted] = msgspec.field(name="n-samples", default_factory=dict)
    higher_is_better: dict[str, dict[str, bool | None]] = {}
    date: float | None = None
    model_name: str | None = None


def read(path: Path) -> list[Imported]:
    """Rows of `runs`, `checkpoints`, `scores`, `samples` and `losses` from one results file, or from each below a directory.

    Raises:
        UserError: no such file, one that lm-eval did not write or that is damaged, or samples that are not those of the scores.
    """
    files = [path] if path.is_file() else sorted(path.rglob("results_*.json"))
    if not files:
        raise UserError(f"{path} holds no results_*.json" if path.is_dir() else f"{path} does not exist", _REMEDY)
    return [_imported(file) for file in files]


def _imported(file: Path) -> Imported:
    found, imported = _parsed(file), Imported(file)
    run, checkpoint = _identity(found, file)
    imported.add("runs", run)
    imported.add("checkpoints", checkpoint)
    for task in sorted(found.results.keys() - found.configs.keys()):
        imported.unused.append(Unused(task, "", "it is a group, whose tasks are taken one by one"))
    for task in sorted(found.results.keys() & found.configs.keys()):
        _take(found, task, checkpoint["checkpoint_id"], imported)
    return imported


def _take(found: _File, task: str, checkpoint_id: str, imported: Imported) -> None:
    """Add the scores, samples and losses of one task."""
    config, counted, file = found.configs[task], found.counts.get(task), imported.file
    sample_file = file.with_name(f"samples_{task}_{file.stem.removeprefix('results_')}.jsonl")
    samples = read_samples(sample_file, str(config.get("target_delimiter", " "))) if sample_file.is_file() else None
    n = counted.effective if counted else samples.items if samples else None
    if samples and samples.items != n:
        raise UserError(f"{sample_file} holds {samples.items} items and the scores are of {n}", "copy both files again")
    format = _format(config, samples)
    about = {
        "checkpoint_id": checkpoint_id,
        "task": task,
        "task_version": _whole(found.versions.get(task)),
        "format": format,
        "shots": found.shots.get(task),
    }
    engine = ENGINE + found.config.model
    for metric, value, stderr in _numbers(found.results[task]):
        name = metric.removesuffix(",none")
        chance = _chance(config, samples, metric)
        if config.get("output_type") == "loglikelihood_rolling" and name == "bits_per_byte" and _finite(value):
            imported.add("losses", {"checkpoint_id": checkpoint_id, "dataset": task, "unit": "bits/byte", "value": value})
        elif reason := _against(value, stderr, n, chance, format):
            imported.unused.append(Unused(task, name, reason))
        else:
            better = found.higher_is_better.get(task, {}).get(metric.split(",")[0], True)
            measured = {"metric": name, "value": value, "stderr": stderr, "n": n, "chance": chance, "higher_is_better": better is not False}
            imported.add("scores", {**about, **measured, "engine": engine, "scored_at": _time(found.date)})
    if samples and format:
        imported.add("samples", *({**about, **row, "engine": engine} for row in samples.rows))


def _numbers(result: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(metric and filter as lm-eval writes them, value, standard error) of one task."""
    for key, value in result.items():
        metric, comma, chosen = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            yield key, value, result.get(f"{metric}_stderr,{chosen}")


def _chance(config: Mapping[str, Any], samples: Samples | None, metric: str) -> float | None:
    """The mean over items of each item's own chance; None where nothing says it."""
    name, kind = metric.split(",")[0], config.get("output_type")
    if name == "exact_match" and kind == "generate_until":
        return 0.0
    if config.get("process_results") or name not in _OF_OPTIONS:
        return None  # the task's own code decides what its metrics mean
    if kind == "loglikelihood":
        return 0.0
    if kind != "multiple_choice" or "acc_mutual_info" in _metric_names(config):
        return None
    if samples:
        return samples.chance
    options = config.get("doc_to_choice")
    return 1 / len(options) if isinstance(options, list) and options else None


def _format(config: Mapping[str, Any], samples: Samples | None) -> str | None:
    kind = config.get("output_type")
    if kind in ("generate_until", "loglikelihood"):
        return "open"
    if kind != "multiple_choice":
        return None
    if samples:
        return samples.format
    options = config.get("doc_to_choice")
    return format_of_options(options) if isinstance(options, list) else None


def _against(value: Any, stderr: Any, n: int | None, chance: float | None, format: str | None) -> str | None:
    """Why a score cannot be taken over; a score without n, chance and standard error is none."""
    if not _finite(value):
        return "its value is no finite number"
    if chance is None or format is None:
        return "its chance level is not known: lm_eval has to log samples (--log_samples), and some metrics have none"
    if not _finite(stderr):
        return "it has no standard error"
    return None if n else "it does not say of how many items it is the mean"


def _identity(found: _File, file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of `runs` and `checkpoints`: what `losslens.json` says of a directory of ours, else the model's name and revision."""
    arguments = _arguments(found.config.model_args)
    parts = [arguments.get("pretrained") or arguments.get("model") or found.model_name, arguments.get("peft"), arguments.get("delta")]
    name = "+".join(str(part) for part in parts if part)
    if not name:
        raise UserError(f"{file} does not say which model was scored", "add pretrained=NAME to its model_args")
    if (card := Path(name) / _CARD).is_file():
        return _own(card)
    run_id, checkpoint_id, revision = name, name, str(arguments.get("revision") or "")
    if revision or _on_hub(name):
        revision = revision or "main"
        checkpoint_id = f"{name}@{revision}"
    elif _REVISION.fullmatch(Path(name).name):
        run_id, revision = str(Path(name).parent), Path(name).name
    params = found.config.model_num_parameters
    run = {"run_id": run_id, "params": params if params and params > 0 else None, "source": "lm-eval"}
    match = _REVISION.search(revision)
    known: dict[str, Any] = {"step": int(match["step"])} if match else {}
    if match and match["tokens"]:
        known["tokens"] = int(match["tokens"]) * _UNITS[match["unit"]]
    return run, {"checkpoint_id": checkpoint_id, "run_id": run_id, **known, "path": None if _on_hub(name) else name}


def _own(card: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Without a time of creation, so that the rows its study wrote win over these."""
    said = _object(card)
    try:
        run = {"run_id": said["run_id"], "study": said["study"], "size": said["size"]}
        known = {name: said[name] for name in ("checkpoint_id", "run_id", "step", "tokens", "flops", "weights_sha256")}
    except KeyError as error:
        raise UserError(f"{card} has no {error}", "copy the checkpoint again") from error
    return run, {**known, "path": str(card.parent)}


def _on_hub(name: str) -> bool:
    """`ORG/NAME` or `NAME`, and no directory here."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) is not None and not Path(name).is_dir()


def _arguments(given: dict[str, Any] | str | None) -> dict[str, Any]:
    if isinstance(given, str):
        return {key: value for key, equals, value in (part.partition("=") for part in given.split(",")) if equals}
    return given or {}


def _metric_names(config: Mapping[str, Any]) -> set[str]:
    return {str(entry.get("metric")) for entry in config.get("metric_list") or () if isinstance(entry, dict)}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _whole(version: Any) -> int | None:
    """lm-eval writes 1.0; a version that is no whole number is not known here."""
    return int(version) if isinstance(version, int | float) and float(version).is_integer() else None


def _time(date: float | None) -> datetime | None:
    return None if date is None else datetime.fromtimestamp(date, UTC)


def _parsed(file: Path) -> _File:
    try:
        return msgspec.convert(_object(file), _File, strict=False)
    except msgspec.ValidationError as error:
        raise UserError(f"{file} is not a results file of lm-eval: {error}", _REMEDY) from error


def _object(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}", "the file is cut short or damaged: copy it again") from error
