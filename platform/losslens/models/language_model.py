"""What training and scoring need of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import deepcopy
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor, nn

from losslens.models.cross_entropy import linear_cross_entropy

# Keys and values of every layer, each [B, heads, P, E]: what tokens that come later read of P tokens computed before.
Cache = list[tuple[Tensor, Tensor]]


class LanguageModel(nn.Module, ABC):
    """A causal model in two halves, so that only the rows that are needed reach the output head."""

    @abstractmethod
    def features(self, tokens: Tensor) -> Tensor:
        """Final hidden states, token ids [B, T] -> [B, T, D]. Right padding is harmless: attention is causal."""

    @abstractmethod
    def branched(self, tokens: Tensor, position: Tensor, mask: Tensor, before: Cache | None = None) -> tuple[Tensor, Cache]:
        """Final hidden states [B, T, D] where a token sees what a mask says, and the keys and values of these tokens.

        `position` [B, T]; `mask` [B, 1, T, P + T], 0 or -inf, is added to attention's scores; `before` holds P tokens of each
        row, or of one for all: those are seen whole, and `mask` is [B, 1, T, T].
        """

    def penalty(self) -> Tensor | None:
        """What the newest `features` with gradients costs beside the loss of its tokens, a scalar for each token; asked for once.
        None: nothing. Training lowers it with the loss, and reports the loss alone."""
        return None

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states, [..., D] -> [..., V]."""

    def head_weight(self) -> Tensor | None:
        """The matrix [V, D] that alone is the head; None where a head is more than that."""
        return None

    def nll_sum(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Summed loss in nats of rows [N, D] against token ids [N], float32."""
        weight = self.head_weight()
        if weight is None:
            return F.cross_entropy(self.head(hidden).float(), targets, reduction="sum")
        return linear_cross_entropy(hidden, weight, targets)

    def twin(self) -> Self:
        """A model around the same weights, now and later, with parameters of its own, which have their own gradients. What a class
        keeps between calls is its own too, so that two threads can compute at once."""
        shared: dict[int, Any] = {id(buffer): buffer for buffer in self.buffers()}
        shared |= {id(parameter): nn.Parameter(parameter.detach(), parameter.requires_grad) for parameter in self.parameters()}
        return deepcopy(self, shared)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, [B, T] -> [B, T, V]."""
        return self.head(self.features(tokens))
