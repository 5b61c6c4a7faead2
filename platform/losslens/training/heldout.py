"""Held-out loss of a model, per source and for the mixture, in nats/token and bits/byte: measured on the model's device, where nothing
waits for it, and made into rows wherever the numbers have arrived.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from losslens.training.checkpoint import Loss

TOKENS_AT_ONCE = 16_384


class Heldout:
    """The held-out rows of every source on one device.

    `sources`: name -> (tokens [rows, T + 1], UTF-8 bytes of the predicted tokens of each row [rows]); `weights`: name -> share in
    the training mixture, any scale.
    """

    def __init__(
        self, sources: Mapping[str, tuple[np.ndarray, np.ndarray]], weights: Mapping[str, float], device: torch.device | str = "cpu"
    ) -> None:
        self._rows = {name: torch.from_numpy(rows.astype(np.int64)).to(device) for name, (rows, _) in sources.items()}
        self._bytes = {name: int(sizes.sum()) for name, (_, sizes) in sources.items()}
        self._share = {name: weights[name] / sum(weights[n] for n in sources) for name in sources}

    @torch.no_grad()
    def nats(self, model: Callable[[Tensor], Tensor], autocast: Callable[[], AbstractContextManager[object]]) -> dict[str, Tensor]:
        """Summed loss of each row by source, [rows] float64 on the device. `model` gives logits, [B, T] -> [B, T, V]."""
        return {name: torch.cat([_row_nats(model, piece, autocast) for piece in self._pieces(rows)]) for name, rows in self._rows.items()}

    def losses(self, nats: Mapping[str, Tensor]) -> list[Loss]:
        """Losses on `heldout/<source>` and `heldout`, the mixture of the sources by their training weights; synchronises."""
        losses: list[Loss] = []
        mean = variance = bytes_per_token = 0.0
        tokens = {name: rows.shape[0] * (rows.shape[1] - 1) for name, rows in self._rows.items()}
        for name, share in self._share.items():
            units = _both_units(f"heldout/{name}", nats[name].cpu().numpy(), tokens[name], self._bytes[name])
            losses += units
            mean += share * units[0].value
            variance += (share * (units[0].stderr or 0.0)) ** 2
            bytes_per_token += share * self._bytes[name] / tokens[name]
        all_tokens, all_bytes, stderr = sum(tokens.values()), sum(self._bytes.values()), math.sqrt(variance)
        losses.append(Loss("heldout", "nats/token", mean, stderr, all_tokens, all_bytes))
        if bytes_per_token:
            scale = 1 / math.log(2) / bytes_per_token
            losses.append(Loss("heldout", "bits/byte", mean * scale, stderr * scale, all_tokens, all_bytes))
        return losses

    @staticmethod
    def _pieces(rows: Tensor) -> tuple[Tensor, ...]:
        return torch.split(rows, max(1, TOKENS_AT_ONCE // rows.shape[1]))


def window_loss(losses: Tensor, step: int, batch_tokens: int) -> list[Loss]:
    """The mean training loss of the last twentieth of the `step` updates so far, at least ten; `losses` lie on the host."""
    width = min(step, max(10, step // 20))
    window = losses[step - width : step].double()
    window = window[torch.isfinite(window)]  # without updates that were skipped
    width = len(window)
    if not width:
        return []
    stderr = float(window.std() / math.sqrt(width)) if width > 1 else None
    return [Loss("train", "nats/token", float(window.mean()), stderr, width * batch_tokens, None)]


def _row_nats(model: Callable[[Tensor], Tensor], tokens: Tensor, autocast: Callable[[], AbstractContextManager[object]]) -> Tensor:
    with autocast():
        logits = model(tokens[:, :-1])
    nll = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), tokens[:, 1:], reduction="none")
    return nll.double().sum(1)


def _both_units(dataset: str, row_nats: np.ndarray, tokens: int, size: int) -> list[Loss]:
    rows = len(row_nats)
    value = float(row_nats.sum() / tokens)
    stderr = float(row_nats.std(ddof=1) * math.sqrt(rows) / tokens) if rows > 1 else None
    in_nats = Loss(dataset, "nats/token", value, stderr, tokens, size)
    if not size:
        return [in_nats]
    scale = tokens / size / math.log(2)
    return [in_nats, Loss(dataset, "bits/byte", value * scale, None if stderr is None else stderr * scale, tokens, size)]
