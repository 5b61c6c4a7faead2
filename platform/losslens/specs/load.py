"""YAML study (or the name of a bundled one) < `--set a.b=c` -> StudySpec, or one sentence that says what is wrong."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import yaml

from losslens.errors import UserError
from losslens.specs import dialect
from losslens.specs.study import TASK_FILES, Part, StudySpec, task_and_format
from losslens.specs.validate import validate

_SUFFIX = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
_QUANTITY = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([kKMBGT])\s*$")
_QUANTITY_KEYS = {"tokens", "training_bytes", "at", "decay"}  # where "67B" means a number; a size may be *named* 1.5B
_UNKNOWN = re.compile(r"unknown field `([^`]+)`(?: - at `\$([^`]*)`)?")
_CHOICE = re.compile(r"Invalid enum value '(.*)'$")
_UNQUOTED = re.compile(r"Expected `str`, got `(int|float|bool)`")


def bundled() -> list[str]:
    """Names of the studies that ship with the package."""
    folder = resources.files("losslens.specs") / "studies"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_study(study: str, overrides: Iterable[str] = ()) -> StudySpec:
    """A bundled study's name or the path of a YAML file, with `a.b=c` overrides applied.

    Raises:
        UserError: no such study, malformed YAML, an unknown key (named with its nearest neighbour), a value of the
            wrong type or out of bounds, or shapes that cannot be.
    """
    raw = _with_task_files(_parse(_text(study), study), Path() if study in bundled() else Path(study).parent)
    for override in overrides:
        _override(raw, override)
    return validate(converted(_with_task_files(raw, Path())))


def _text(study: str) -> str:
    if study in bundled():
        return (resources.files("losslens.specs") / "studies" / f"{study}.yaml").read_text(encoding="utf-8")
    path = Path(study)
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the study file {study} cannot be read: {error}", "give a readable UTF-8 YAML file") from error
    raise UserError(f"there is no study called {study!r}", f"give a YAML file or a bundled study: {_nearest(study, bundled())}")


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        raw = dialect.read(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "malformed"
        raise UserError(f"{where}{line} is not valid YAML: {problem}", "mend that line") from error
    if not isinstance(raw, dict):
        raise UserError(f"{where} does not hold a mapping of study keys", "see `losslens plan demo` for an example")
    return raw


def _with_task_files(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths of task files made absolute, so that the resolved study can lie anywhere: those in a study file are relative to it."""
    evaluation = raw.get("evaluation")
    tasks = evaluation.get("tasks") if isinstance(evaluation, dict) else None
    if isinstance(evaluation, dict) and isinstance(tasks, list):
        evaluation["tasks"] = [str((folder / t).absolute()) if isinstance(t, str) and _is_task_file(t) else t for t in tasks]
    return raw


def _is_task_file(entry: str) -> bool:
    return task_and_format(entry)[0].endswith(TASK_FILES)


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override!r} is not of the form key=value", "write for example --set training.global_batch=16")
    try:
        value = dialect.read(text)
    except yaml.YAMLError as error:
        raise UserError(f"the value of --set {override!r} is not valid YAML", "quote it") from error
    put(raw, key, value, f"--set {override!r}")


def put(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set `a.b.c` in nested mappings and lists. `where` names the place in an error.

    Raises:
        UserError: a step of the key is a plain value, or no entry of its list.
    """
    *path, last = key.split(".")
    node: Any = raw
    for step in path:
        node = _descend(node, step, where)
    if isinstance(node, list):
        node[_index(node, last, where)] = value
    else:
        node[last] = value


def _descend(node: Any, step: str, where: str) -> Any:
    child = node[_index(node, step, where)] if isinstance(node, list) else node.setdefault(step, {})
    if not isinstance(child, dict | list):
        raise UserError(f"{where}: {step} holds a plain value, not further keys", "set it directly")
    return child


def _index(node: list[Any], step: str, where: str) -> int:
    """A list entry by position or by its `name`: `family.sizes.d64.tokens=1M`."""
    for i, item in enumerate(node):
        if str(i) == step or (isinstance(item, dict) and step in (item.get("name"), item.get("generated"))):
            return i
    names = [str(item["name"]) for item in node if isinstance(item, dict) and "name" in item]
    raise UserError(f"{where}: there is no entry {step!r} in that list", f"give its position or name: {_nearest(step, names)}")


def _quantities(value: Any, key: str = "") -> Any:
    """`67B`, `2.5M` and whole floats such as 6.7e10 become integers where a count is meant."""
    if isinstance(value, dict):
        return {k: _quantities(v, str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_quantities(v, key) for v in value]
    if key in _QUANTITY_KEYS and isinstance(value, str) and (match := _QUANTITY.match(value)):
        return round(float(match[1]) * _SUFFIX[match[2]])
    if key in _QUANTITY_KEYS and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def converted(raw: dict[str, Any]) -> StudySpec:
    """Plain values as a study.

    Raises:
        UserError: an unknown key (named with its nearest neighbour), or a value of the wrong type or out of bounds.
    """
    raw = _quantities(raw)
    sizes = raw.get("family", {}).get("sizes") if isinstance(raw.get("family"), dict) else None
    for size in sizes if isinstance(sizes, list) else ():
        if isinstance(size, dict) and isinstance(size.get("tokens"), int):
            size["tokens"] = [size["tokens"]]  # one budget may be written without brackets
    try:
        return msgspec.convert(raw, StudySpec, strict=True)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from error


def _explain(message: str) -> UserError:
    """msgspec's complaint as one sentence; for an unknown key or choice, the nearest known one at that place."""
    if match := _UNKNOWN.search(message):
        key, path = match[1], (match[2] or "").lstrip(".")
        known = [field.name for field in msgspec.structs.fields(_part_at(path))]
        return UserError(f"unknown key {key!r} in {path or 'the study'}", _nearest(key, known))
    sentence, _, where = message.partition(" - at `$.")
    path = where.rstrip("`")
    if match := _CHOICE.match(sentence):
        return UserError(f"{path}: {match[1]!r} is not one of its values", f"choose from {', '.join(_choices_at(path))}")
    remedy = "put that value in quotes" if _UNQUOTED.match(sentence) else "correct that value"
    if sentence.startswith("Expected `str`, got `object`"):
        remedy = "`a: b` is a mapping: leave out the space, or put it in quotes"
    return UserError(f"{path or 'the study'}: {sentence[0].lower()}{sentence[1:]}", remedy)


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"


def _part_at(path: str) -> type[Part]:
    """The class of the part at `family.sizes[0]`."""
    part: type[Part] = StudySpec
    for step in re.findall(r"[A-Za-z_]+", path):
        part = _part_in(_field(part, step)) or part
    return part


def _choices_at(path: str) -> Sequence[str]:
    """The literals that the setting at `training.optimizer.name` may hold, as YAML has them."""
    parent, _, last = path.rpartition(".")
    return list(_literals(_field(_part_at(parent), last)))


def _literals(annotation: Any) -> Iterator[str]:
    if annotation is bool:
        yield from ("true", "false")
    elif get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    else:
        for part in get_args(annotation):
            yield from _literals(part)


def _field(part: type[Part], name: str) -> Any:
    return next(field.type for field in msgspec.structs.fields(part) if field.name == name)


def _part_in(annotation: Any) -> type[Part] | None:
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _part_in(arg))), None)
