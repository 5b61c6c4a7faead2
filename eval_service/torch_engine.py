"""The torch engine: any causal model in a Hugging Face directory, on the CPU or one GPU, float32.

What several requests share is computed once (`forest`, `forward`), the output head sees only the rows that are scored, and
answers are generated in batches (`greedy`). Every load is proven against plain transformers.

Legend: T sequence length, V vocabulary, K picks (see `forest`).
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from eval_service.checkpoints import shape_key, verify_files, verify_tensors
from eval_service.encoder import HubEncoder, encoder_of
from eval_service.forest import Grove, forest
from eval_service.forward import scored
from eval_service.greedy import generated
from eval_service.planner import Floats, Ints, Piece, Plan, Prompt, assemble, by_owner, pack, plan, require_known
from eval_service.plans import Plans, blocks
from losslens.errors import DataMismatch, LosslensError
from losslens.models.scoring import ScoringModel, plain_transformers, read_config
from losslens.tasks.requests import GenerateResult, Request, Result

logger = logging.getLogger(__name__)

MAX_WINDOW = 8192  # tokens: longer prompts do not occur in any task, and a key-value cache must hold one
PROBE_TOLERANCE = 1e-3  # nats per token between an engine and a plain transformers forward
# Padded tokens of a forward pass. On a CPU what stays in its cache is half as fast again (tests/bench/bench_scoring.py); on a
# GPU few large kernels are.
_BATCH_TOKENS = {"cpu": 1024, "cuda": 65536}


class TorchEngine:
    """One model at a time; equal configs are reloaded in place."""

    name = "torch/float32"

    def __init__(self, batch_tokens: int | None = None) -> None:
        silence: Any = transformers.logging.disable_progress_bar  # one bar per load of a tenth of a second
        silence()
        self._device = best_device()
        self._budget = batch_tokens or _BATCH_TOKENS[self._device]
        self._threads = 1 if self._device != "cpu" else torch.get_num_threads()
        self._crew: list[ScoringModel] = []  # the model and its twins, one for each thread
        self._shape = ""
        self._directory: Path | None = None
        self._encoder: HubEncoder | None = None
        self._plain: PreTrainedModel | None = None
        self._shares = False
        self._plans: Plans[tuple[Plan, tuple[Grove, ...]]] = Plans()

    def load(self, checkpoint: Path) -> None:
        """Hold this directory; see `Engine.load`."""
        self._directory = None  # a failed load leaves nothing that could be scored
        self._plain = None
        verify_files(checkpoint)
        self._encoder = encoder_of(checkpoint)
        shape = shape_key(checkpoint)
        known = bool(self._crew) and shape == self._shape
        if not known:
            self._crew = []
            gc.collect()
            model = ScoringModel(read_config(checkpoint))
            model.module.to(self._device)
            self._crew = [model, *(model.twin() for _ in range(self._threads - 1))]
            self._shape = shape
        model = self._crew[0]
        model.load(checkpoint)
        verify_tensors(checkpoint, model.checksums())
        self._prove(checkpoint, model, branches=not known)
        self._directory = checkpoint

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in order."""
        return [result for block in blocks(requests) for result in self._block(block)]

    def _block(self, requests: tuple[Request, ...]) -> list[Result]:
        model = self._loaded()
        terms = (self.encoder, self.window, model.vocab_size, self._budget, self._shares)
        made, groves = self._plans.of(requests, *terms, make=lambda: _planned(requests, *terms))
        results: dict[int, Result] = {}
        results.update(assemble(made.truncated, *scored(self._crew, groves, self._device)))
        for owner, text in self._generate(made.prompts).items():
            results[owner] = GenerateResult(text, made.truncated[owner])
        return [results[i] for i in range(len(requests))]

    @property
    def encoder(self) -> HubEncoder:
        """The tokenizer of the loaded checkpoint."""
        self._loaded()
        assert self._encoder is not None
        return self._encoder

    @property
    def window(self) -> int:
        """Input tokens that the loaded checkpoint takes at most."""
        return window_of(self._loaded().max_len)

    def logprobs(self, sequences: Sequence[Sequence[int] | Ints], first: Sequence[int]) -> list[Floats]:
        """See `Engine.logprobs`."""
        self._loaded()
        return self._computed(sequences, first, share=False)

    def close(self) -> None:
        """Drop the model."""
        self._plain = self._directory = None
        self._crew = []
        gc.collect()

    def _loaded(self) -> ScoringModel:
        if self._directory is None:
            raise LosslensError("no checkpoint is loaded", "load one first")
        return self._crew[0]

    def _prove(self, checkpoint: Path, model: ScoringModel, *, branches: bool) -> None:
        """Compare with plain transformers; a new shape also with all shared that can be, which decides whether it shares."""
        plain = plain_transformers(checkpoint).to(self._device)
        longest = window_of(model.max_len)
        probe = probe_tokens(model.vocab_size, longest)
        require_agreement(checkpoint, self.name, self._computed(probe, [1] * len(probe), share=False), plain_logprobs(plain, probe))
        if branches:
            probe = branching_probe(model.vocab_size, longest)
            try:
                shared = self._computed(probe, [1] * len(probe), share=True)
                require_agreement(checkpoint, self.name, shared, plain_logprobs(plain, probe))
                self._shares = True
            except (DataMismatch, RuntimeError, TypeError, ValueError, AttributeError) as error:  # what transformers' classes raise
                self._shares = False
                logger.info("%s computes each option by itself: %s", checkpoint, error)

    def _computed(self, sequences: Sequence[Sequence[int] | Ints], first: Sequence[int], *, share: bool) -> list[Floats]:
        pieces = [Piece(i, pack(s[:-1]), pack(s[at:])) for i, (s, at) in enumerate(zip(sequences, first, strict=True))]
        owner, logprob, _ = scored(self._crew, forest(pieces, self._budget, share=share), self._device, greedy=False)
        return by_owner(owner, logprob, len(pieces))

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[Prompt]) -> dict[int, str]:
        """Text by owner."""
        if not prompts:
            return {}
        assert self._encoder is not None
        assert self._directory is not None
        if self._plain is None:
            self._plain = plain_transformers(self._directory).to(self._device)
        return generated(self._plain, self._encoder, prompts, self._device)


def best_device() -> str:
    """`cuda` where a GPU is there, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def window_of(max_len: int) -> int:
    """Tokens a model is given at most."""
    return min(max_len, MAX_WINDOW)


@torch.inference_mode()
def plain_logprobs(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> list[Floats]:
    """Per sequence the log-probability of each token after the first, by one plain forward each, without padding."""
    scored = []
    for sequence in sequences:
        tokens = torch.tensor([list(sequence)], device=model.device)
        scored.append(_actual(model(tokens[:, :-1], use_cache=False).logits[0], tokens[0, 1:]))
    return scored


def probe_tokens(vocab_size: int, max_len: int) -> list[list[int]]:
    """Two fixed sequences that reach over the vocabulary and, up to 512 tokens, to the end of the model's window."""
    draw = np.random.default_rng(20)
    return [draw.integers(0, vocab_size, n).tolist() for n in (min(17, max_len), min(512, max_len) + 1)]


def branching_probe(vocab_size: int, max_len: int) -> list[list[int]]:
    """Sequences that share a long beginning, as after few-shot examples, and options behind short contexts."""
    draw = np.random.default_rng(21)

    def tokens(count: int) -> list[int]:
        drawn: list[int] = draw.integers(0, vocab_size, max(1, count)).tolist()
        return drawn

    stem, trunk = tokens(min(48, max_len // 2)), tokens(min(20, max_len // 3))
    behind = [[*stem, *item, *tokens(2)] for item in (tokens(max_len // 16) for _ in range(5)) for _ in range(3)]
    return [*behind, *([*trunk, *tokens(max_len // 16)] for _ in range(4))]


def require_agreement(checkpoint: Path, engine: str, found: Sequence[Floats], expected: Sequence[Floats]) -> None:
    """Refuse a model whose log-probabilities differ from the reference by more than PROBE_TOLERANCE at any token."""
    for ours, theirs in zip(found, expected, strict=True):
        worst = float(np.abs(ours - theirs).max())
        if not worst <= PROBE_TOLERANCE:  # also when it is not a number
            raise DataMismatch(
                f"{engine} and plain transformers differ by {worst:.3g} nats a token on the checkpoint {checkpoint}",
                "it is not scored: choose the other engine (--engine), and look at the weights if they are not finite",
            )


def _actual(logits: Tensor, tokens: Tensor) -> Floats:
    """Log-probability of tokens [T] under logits [T, V]."""
    logprob: Floats = logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0].double().cpu().numpy()
    return logprob


def _planned(
    requests: tuple[Request, ...], encoder: HubEncoder, max_len: int, vocab_size: int, budget: int, share: bool
) -> tuple[Plan, tuple[Grove, ...]]:
    made = plan(requests, encoder, max_len)
    require_known(made, vocab_size)
    groves = forest(made.pieces, budget, share=share)
    return replace(made, pieces=()), groves  # a plan is kept for long, its pieces are not needed again
