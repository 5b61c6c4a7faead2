"""README.md of a checkpoint: with it the directory is a model page of the Hugging Face Hub as it is.

Made of what the checkpoint is, so equal checkpoints have equal pages. `losslens.json` has no hash of it: whoever publishes a model
adds a licence and words of their own. A licence is not guessed from a corpus.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from losslens.families import Shape
from losslens.models.config import SAVED_AS


def readme(record: Mapping[str, Any], shape: Shape) -> str:
    """The page of a checkpoint of `shape`; `record` is what its `losslens.json` says of study, run, step, tokens, FLOPs and losses."""
    front = "\n".join(f"{name}: {json.dumps(value)}" for name, value in _metadata(record).items())  # JSON is YAML too
    return f"---\n{front}\n---\n\n{_text(record, shape)}"


def _metadata(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["losslens", "pretraining", f"study:{record['study']}"],
        "losslens": {name: record[name] for name in ("study", "run_id", "size", "step", "tokens", "flops")},
        "model-index": [{"name": record["checkpoint_id"], "results": [_result(loss) for loss in record["losses"]]}],
    }


def _result(loss: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "task": {"type": "text-generation"},
        "dataset": {"type": loss["dataset"], "name": loss["dataset"]},
        "metrics": [{"type": "loss", "name": loss["unit"], "value": loss["value"]}],
    }


def _text(record: Mapping[str, Any], shape: Shape) -> str:
    facts = {
        "study": record["study"],
        "run": record["run_id"],
        "class": SAVED_AS[shape.architecture],
        "parameters": f"{shape.params:,} ({shape.params_non_embedding:,} without embeddings)",
        "step": f"{record['step']:,}",
        "tokens trained on": f"{record['tokens']:,}",
        "training FLOPs": f"{record['flops']:.3g}",
        "tokens of a sequence": f"{shape.seq_len:,}",
    }
    losses = [f"| {loss['dataset']} | {loss['unit']} | {loss['value']:.4f} | {_error(loss['stderr'])} |" for loss in record["losses"]]
    return "\n".join(
        [
            f"# {record['run_id']}, step {record['step']}",
            "",
            "A checkpoint of a study with losslens, which asks at which pretraining loss an ability appears.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in facts.items()),
            "",
            *(["## Losses", "", "| dataset | unit | loss | standard error |", "|---|---|---|---|", *losses, ""] if losses else []),
            "## Use",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("ORG/NAME")  # this repository, or a directory that holds its files',
            'tokenizer = AutoTokenizer.from_pretrained("ORG/NAME")',
            "```",
            "",
            "`losslens.json` holds the hash of every file but this one. Before you publish it, add `license:` to the first lines.",
            "",
        ]
    )


def _error(stderr: float | None) -> str:
    return "" if stderr is None else f"{stderr:.4f}"
