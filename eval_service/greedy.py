"""Greedy generation with a key-value cache: padded batches, few-shot examples computed once, each row stopping for itself.

Legend: B sequences, T padded length.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer

from eval_service.encoder import HubEncoder
from eval_service.planner import Ints, Packed, Prompt, cut, length, unpack, window

SHORTEST_STEM = 32  # tokens that are worth a forward pass of their own
_GENERATE_ROWS = 64


def generated(model: PreTrainedModel, encoder: HubEncoder, prompts: Sequence[Prompt], device: str) -> dict[int, str]:
    """Text by owner, in batches of equal room and similar length; what all prompts of a room begin with is computed once."""
    texts: dict[int, str] = {}
    for _, same in groupby(sorted(prompts, key=lambda p: (p.room, length(p.tokens))), key=lambda p: p.room):
        equal = list(same)
        stem = _stem(model, common_beginning([p.tokens for p in equal]), device)
        for first in range(0, len(equal), _GENERATE_ROWS):
            group = equal[first : first + _GENERATE_ROWS]
            for prompt, ids in zip(group, _continue(model, encoder, group, stem, device), strict=True):
                texts[prompt.owner] = cut(encoder.decode(ids), prompt.stop)
    return texts


@dataclass(frozen=True, slots=True)
class _Stem:
    """Tokens that all prompts begin with, and their keys and values where the model keeps such."""

    length: int
    cache: DynamicCache | None

    def grown(self, B: int) -> DynamicCache | None:
        """A copy for B rows, which a generation may fill."""
        if self.cache is None:
            return None
        copy: DynamicCache = deepcopy(self.cache)
        copy.batch_repeat_interleave(B)
        return copy


def common_beginning(sequences: Sequence[Packed]) -> Packed:
    """Tokens that every sequence begins with, one short of the shortest at most: a last token is left to be read."""
    low, high = min(sequences), max(sequences)  # in lexicographic order all others lie between them
    most = min(map(length, sequences)) - 1
    differ = (unpack(low)[:most] != unpack(high)[:most]).nonzero()[0]
    return window(low, 0, int(differ[0]) if len(differ) else most)


def _stem(model: PreTrainedModel, tokens: Packed, device: str) -> _Stem:
    if length(tokens) < SHORTEST_STEM:
        return _Stem(0, None)
    out = model(torch.from_numpy(unpack(tokens))[None].to(device), use_cache=True, logits_to_keep=1)
    cache = getattr(out, "past_key_values", None)  # a state-space model keeps a state instead, which is not cut from its rows
    whole = isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)
    return _Stem(length(tokens), cache) if whole else _Stem(0, None)


class _Stop(StoppingCriteria):
    """Row by row: a stop string has just been completed.

    Only the last tokens are decoded: every token has at least one byte, so as many tokens as the longest stop string has
    bytes, and a few for a character begun before it, hold any stop string that the newest token completes.
    """

    def __init__(self, encoder: HubEncoder, prompts: Sequence[Prompt], prompt_len: int) -> None:
        self._encoder, self._prompts, self._from = encoder, prompts, prompt_len
        self._tail = max((len(s.encode()) for p in prompts for s in p.stop), default=0) + 4

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        tails = input_ids[:, self._from :][:, -self._tail :].tolist()
        done = [self._complete(prompt, tail) for prompt, tail in zip(self._prompts, tails, strict=True)]
        return torch.tensor(done, device=input_ids.device)

    def _complete(self, prompt: Prompt, tail: list[int]) -> bool:
        if not prompt.stop:
            return False
        text = self._encoder.decode(tail)
        return any(stop in text for stop in prompt.stop if stop)


def _continue(model: PreTrainedModel, encoder: HubEncoder, prompts: Sequence[Prompt], stem: _Stem, device: str) -> list[list[int]]:
    """Greedy ids after each prompt; what follows an end token or a stop string is to be cut by the caller.

    The prompts have equal room, so that padded length and room fit the model: beyond it, transformers' Phi-3 drops its cache.
    Padding stands between the stem and the rest of a prompt.
    """
    ids = [unpack(p.tokens) for p in prompts]
    T = max(map(len, ids))
    tokens, mask = _padded(ids, T, stem.length)
    ends = sorted(encoder.ends)
    settings: Any = GenerationConfig  # untyped in transformers
    config = settings(max_new_tokens=prompts[0].room, do_sample=False, eos_token_id=ends or None, pad_token_id=ends[0] if ends else 0)
    generate: Any = model.generate
    out = generate(
        tokens.to(device),
        attention_mask=mask.to(device),
        past_key_values=stem.grown(len(ids)),
        generation_config=config,
        stopping_criteria=StoppingCriteriaList([_Stop(encoder, prompts, T)]),
    )
    made: list[list[int]] = out[:, T:].tolist()
    return made


def _padded(ids: Sequence[Ints], T: int, stem: int) -> tuple[Tensor, Tensor]:
    """Tokens and mask [B, T], padded behind the first `stem` tokens."""
    tokens, mask = np.zeros((len(ids), T), np.int64), np.zeros((len(ids), T), np.int64)
    for b, sequence in enumerate(ids):
        rest = T - len(sequence) + stem
        tokens[b, :stem], tokens[b, rest:] = sequence[:stem], sequence[stem:]
        mask[b, :stem] = mask[b, rest:] = 1
    return torch.from_numpy(tokens), torch.from_numpy(mask)
