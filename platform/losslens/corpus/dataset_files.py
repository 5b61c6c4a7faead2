"""Which files of a Hugging Face dataset directory belong to a split, by the rules of the library `datasets`, which is not imported.

README.md may declare configurations and their files; otherwise names of folders and files tell, and without any hint all is `train`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from losslens.errors import UserError

_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_WORDS = {split: re.compile(rf"(?:^|[-._ 0-9])(?:{'|'.join(words)})(?:[-._ 0-9]|$)") for split, words in _KEYWORDS.items()}
_SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
_WILD = re.compile(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]")
_FRONT = re.compile(r"\A---[ \t]*\n(.*?)\n---[ \t]*$", re.M | re.S)


class _SplitFiles(msgspec.Struct):
    """The files of one split, as a configuration declares them."""

    split: str
    path: str | list[str]


class _Configuration(msgspec.Struct):
    """An entry of `configs`, as far as it concerns us."""

    config_name: str
    data_files: str | list[str | _SplitFiles] | None = None
    data_dir: str | None = None
    default: bool = False

    def patterns(self) -> dict[str, list[str]]:
        """Patterns of each split; empty where names of files tell."""
        if self.data_files is None:
            return {}
        listed = [self.data_files] if isinstance(self.data_files, str) else self.data_files
        found: dict[str, list[str]] = {}
        for entry in listed:
            split, paths = ("train", entry) if isinstance(entry, str) else (entry.split, entry.path)
            found.setdefault(split, []).extend([paths] if isinstance(paths, str) else paths)
        return found


class _Front(msgspec.Struct):
    """What README.md begins with."""

    configs: list[_Configuration] = []


def of_split(folder: Path, found: Iterable[Path], wanted: str) -> list[Path]:
    """Those of `found`, the data files below `folder`, that belong to `wanted`: a split, or CONFIGURATION/SPLIT.

    Raises:
        UserError: no such configuration or split, several to choose from, or a README.md that cannot be read.
    """
    names = {path.relative_to(folder).as_posix(): path for path in found}
    name, _, split = wanted.rpartition("/")
    chosen = _configuration(folder, name or None, split)
    inside = f"{chosen.data_dir.strip('/').removeprefix('./')}/" if chosen and chosen.data_dir else ""
    below = [file.removeprefix(inside) for file in names if file.startswith(inside)]
    if chosen and chosen.data_files is not None:
        splits = {split: [file for file in below if _matches(file, patterns)] for split, patterns in chosen.patterns().items()}
    else:
        splits = by_name(below)
    if split not in splits:
        raise UserError(f"{folder} has no split {wanted!r}", f"choose split from {', '.join(sorted(splits))}")
    if not splits[split]:
        raise UserError(f"{folder} holds no file of split {wanted!r} that can be read", "download it; Parquet, Arrow and jsonl are read")
    return [names[inside + file] for file in sorted(splits[split])]


def by_name(files: Iterable[str]) -> dict[str, list[str]]:
    """Files by split: by names such as `data/train-00000-of-00004.parquet` if any are, else by folders, else by names; else all `train`."""
    rules: list[Callable[[str], str | None]] = [
        lambda file: found[1] if (found := _SHARD.fullmatch(file)) else None,
        lambda file: next((split for part in file.split("/")[:-1] if (split := _keyword(part))), None),
        lambda file: _keyword(file.rsplit("/", 1)[-1]),
    ]
    listed = list(files)
    for rule in rules:
        splits: dict[str, list[str]] = {}
        for file in listed:
            if split := rule(file):
                splits.setdefault(split, []).append(file)
        if splits:
            return splits
    return {"train": listed}


def _keyword(name: str) -> str | None:
    return next((split for split, words in _WORDS.items() if words.search(name)), None)


def _configuration(folder: Path, name: str | None, split: str) -> _Configuration | None:
    """The configuration of that name, or the one that is meant without a name; None where README.md declares none."""
    configs = {config.config_name: config for config in _declared(folder / "README.md")}
    if name is not None:
        if name not in configs:
            there = f"there are {', '.join(configs)}" if configs else "its README.md declares none: write the split alone"
            raise UserError(f"{folder} has no configuration {name!r}", there)
        return configs[name]
    meant = [config for config in configs.values() if config.default or config.config_name == "default"]
    if not configs or len(meant) == 1 or len(configs) == 1:
        return next(iter([*meant, *configs.values()]), None)
    choices = ", ".join(f"{each}/{split}" for each in configs)
    raise UserError(f"{folder} has {len(configs)} configurations, none of which is the default", f"choose split from {choices}")


def _declared(readme: Path) -> list[_Configuration]:
    import yaml  # here: workers that read documents do without it

    try:
        text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
        front = _FRONT.match(text.replace("\r\n", "\n"))
        return msgspec.convert(yaml.safe_load(front[1]) or {}, _Front).configs if front else []
    except (OSError, ValueError, yaml.YAMLError, msgspec.ValidationError) as error:
        said = f"the configurations in {readme} cannot be read: {' '.join(str(error).split())}"
        raise UserError(said, "mend its first lines, or give the files as a path") from error


def _matches(file: str, patterns: Iterable[str]) -> bool:
    return any(_expression(pattern).fullmatch(file) for pattern in patterns)


def _expression(pattern: str) -> re.Pattern[str]:
    """A pattern of file names in the dialect of `datasets`; that of a folder means all in it."""
    plain, found, at = pattern.removeprefix("./").rstrip("/"), "", 0
    for wild in _WILD.finditer(plain):
        found += re.escape(plain[at : wild.start()]) + _wildcard(wild[0])
        at = wild.end()
    return re.compile(found + re.escape(plain[at:]) + ("" if at else "(?:/.*)?"))


def _wildcard(wild: str) -> str:
    if wild.startswith("["):
        return "[^" + wild[2:] if wild.startswith("[!") else wild
    return {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}[wild]
