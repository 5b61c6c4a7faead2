"""Benchmarks as requests: records of tasks, their data, their prompts, and the metrics of what engines answer.

`build` turns a task's name into items an engine can be asked; `losslens.tasks.metrics.score_items` turns the answers into
scores. Nothing here knows an engine, a tokenizer or a checkpoint.
"""

from losslens.tasks.declared import DeclaredTask
from losslens.tasks.registry import build, names, resolve

__all__ = ["DeclaredTask", "build", "names", "resolve"]
