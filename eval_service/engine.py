"""The protocol of an engine: what turns requests into results for one loaded checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from eval_service.planner import Encoder, Floats, Ints
from losslens.errors import EnvironmentFailure
from losslens.tasks.requests import Request, Result


class EngineDied(EnvironmentFailure):
    """A process of the engine died; another try gets a new one."""


class Engine(Protocol):
    """One engine at a time holds one checkpoint. `name` says library and number format and is stored with each score."""

    @property
    def name(self) -> str:
        """For example `torch/float32`."""
        ...

    def load(self, checkpoint: Path) -> None:
        """Hold this Hugging Face directory from now on, proven to be what its files say; warm where the shape is known.

        Raises:
            DataMismatch: a hash, a tensor or a probe of the loaded model does not agree with the files.
            UserError: the directory is not a model, or cannot be read.
        """
        ...

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in order. Requests asked before of the same tokenizer are not planned again."""
        ...

    @property
    def encoder(self) -> Encoder:
        """The tokenizer of the loaded checkpoint."""
        ...

    @property
    def window(self) -> int:
        """Input tokens that the loaded checkpoint takes at most."""
        ...

    def logprobs(self, sequences: Sequence[Sequence[int] | Ints], first: Sequence[int]) -> list[Floats]:
        """Per sequence the log-probability in nats of each of its tokens from number `first` (at least 1) on, given all before it.

        A sequence has at most `window` + 1 tokens: its last is scored and not read.
        """
        ...

    def close(self) -> None:
        """Free processes and memory. The engine cannot be used afterwards."""
        ...
