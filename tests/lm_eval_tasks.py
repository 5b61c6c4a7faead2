"""lm-evaluation-harness's own tasks on the benchmark files at hand: its YAML and its code, our rows in the fields it reads.

Its task files are included as they are; only where the data lies is overridden, so prompts, choices, gold and metrics are
its own. `write` puts the same rows in both layouts: ours for `losslens.tasks.build`, its own for its task code.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

Row = dict[str, Any]
_LETTERS = "ABCDE"


def _hellaswag(row: Row) -> Row:
    """Our data has ctx_a and ctx_b joined: ctx_b is the lower-case fragment at the end, if there is one."""
    fragment = re.search(r"(?<=[.!?] )[a-z][^.!?]*$", row["context"])
    border = fragment.start() if fragment else len(row["context"])
    ctx_a, ctx_b = row["context"][:border].rstrip(" "), row["context"][border:]
    return {"activity_label": row["activity_label"], "ctx_a": ctx_a, "ctx_b": ctx_b, "endings": row["choices"], "label": str(row["label"])}


def _winogrande(row: Row) -> Row:
    one, two = row["choices"]
    return {"sentence": row["sentence"], "option1": one, "option2": two, "answer": str(row["label"] + 1)}


def _question(row: Row) -> str:
    return str(row["query"]).removeprefix("Question: ").removesuffix("\n")


def _arc(row: Row) -> Row:
    labels = list(_LETTERS[: len(row["choices"])])
    return {"question": _question(row), "choices": {"text": row["choices"], "label": labels}, "answerKey": labels[row["gold"]]}


def _piqa(row: Row) -> Row:
    one, two = row["choices"]
    return {"goal": _question(row), "sol1": one, "sol2": two, "label": row["gold"]}


def _mmlu(row: Row) -> Row:
    return {"question": row["question"], "subject": row["subject"], "choices": row["choices"], "answer": row["label"]}


def _gsm8k(row: Row) -> Row:
    return {"question": row["question"], "answer": row["answer"]}


def _lambada(row: Row) -> Row:
    return {"text": f"{row['context']} {row['continuation']}"}


@dataclass(frozen=True, slots=True)
class Theirs:
    """Where lm-eval describes a task, the split it scores, and how a row of ours reads there."""

    file: str
    split: str
    convert: Callable[[Row], Row]
    examples: str = ""  # the split its few-shot examples come from


_TASKS: Mapping[str, Theirs] = {
    "hellaswag": Theirs("hellaswag/hellaswag.yaml", "validation", _hellaswag),
    "winogrande": Theirs("winogrande/default.yaml", "validation", _winogrande),
    "arc_easy": Theirs("arc/arc_easy.yaml", "test", _arc),
    "arc_challenge": Theirs("arc/arc_challenge.yaml", "test", _arc),
    "piqa": Theirs("piqa/piqa.yaml", "validation", _piqa),
    "gsm8k": Theirs("gsm8k/gsm8k.yaml", "test", _gsm8k, examples="train"),
    "lambada": Theirs("lambada/lambada_openai.yaml", "test", _lambada),
}


def theirs(task: str, subject: str = "") -> Theirs:
    """How lm-eval describes a task of ours; MMLU is one of its tasks for each subject."""
    return Theirs(f"mmlu/default/mmlu_{subject}.yaml", "test", _mmlu, examples="dev") if task == "mmlu" else _TASKS[task]


def read(data: Path, task: str, split: str = "test") -> list[Row]:
    """Rows of our own layout."""
    with gzip.open(data / task / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(folder: Path, task: str, rows: Iterable[Row], examples: Iterable[Row] = (), subject: str = "") -> str:
    """Write both layouts below `folder` (ours under `data/`, lm-eval's under `lm_eval/`); the name lm-eval's task has there.

    lm-eval shows examples for MMLU alone: elsewhere its choice of them is not ours.
    """
    rows, examples, described = list(rows), list(examples), theirs(task, subject)
    name = f"our_{task}_{subject}".rstrip("_")
    files = {"test": (described.split, rows), "dev": (described.examples, examples)}
    splits = {}
    for ours, (split, kept) in files.items():
        if kept:
            _append(folder / "data" / task / f"{ours}.jsonl", kept)
            splits[split] = _append(folder / "lm_eval" / f"{name}-{split}.jsonl", map(described.convert, kept))
    config: Row = {"include": str(_installed() / described.file), "task": name, "dataset_path": "json", "dataset_name": None}
    config["num_fewshot"] = 5 if task == "mmlu" else 0
    config["dataset_kwargs"] = {"data_files": splits, "cache_dir": str(folder / "cache")}
    config |= {f"{split}_split": None for split in ("training", "validation", "test") if split != _role(described.split)}
    config[f"{_role(described.split)}_split"] = described.split
    (folder / "lm_eval" / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return name


def _role(split: str) -> str:
    return {"train": "training"}.get(split, split)


def _append(file: Path, rows: Iterable[Row]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return str(file)


def _installed() -> Path:
    """lm-eval's own tasks, found without importing it."""
    spec = find_spec("lm_eval")
    assert spec is not None and spec.origin, "lm_eval is not installed"
    return Path(spec.origin).parent / "tasks"
