"""Held-out loss of the model in hand, per source and for the mixture, in nats/token and bits/byte."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from losslens.training.loop import Trainer

TOKENS_AT_ONCE = 16_384


@dataclass(frozen=True, slots=True)
class Loss:
    """One row of `losses`, without its checkpoint. `stderr` over sequences; NULL where one sequence is all there is."""

    dataset: str
    unit: str
    value: float
    stderr: float | None
    tokens: int
    bytes: int | None


@torch.no_grad()
def heldout_losses(trainer: Trainer, sources: Mapping[str, tuple[np.ndarray, np.ndarray]], weights: Mapping[str, float]) -> list[Loss]:
    """Losses on `heldout/<source>` and `heldout`, the mixture of the sources by their training weights.

    Args:
        sources: name -> (tokens [rows, T + 1], UTF-8 bytes of the predicted tokens of each row [rows]).
        weights: name -> share in the training mixture; any scale.
    """
    losses: list[Loss] = []
    share = {name: weights[name] / sum(weights[n] for n in sources) for name in sources}
    nats = variance = bytes_per_token = 0.0
    for name, (rows, row_bytes) in sources.items():
        row_nats = _row_nats(trainer, rows)
        tokens, size = rows.shape[0] * (rows.shape[1] - 1), int(row_bytes.sum())
        units = _both_units(f"heldout/{name}", row_nats, tokens, size)
        losses += units
        nats += share[name] * units[0].value
        variance += (share[name] * (units[0].stderr or 0.0)) ** 2
        bytes_per_token += share[name] * size / tokens
    all_tokens = sum(rows.shape[0] * (rows.shape[1] - 1) for rows, _ in sources.values())
    all_bytes = sum(int(b.sum()) for _, b in sources.values())
    losses.append(Loss("heldout", "nats/token", nats, math.sqrt(variance), all_tokens, all_bytes))
    if bytes_per_token:
        scale = 1 / math.log(2) / bytes_per_token
        losses.append(Loss("heldout", "bits/byte", nats * scale, math.sqrt(variance) * scale, all_tokens, all_bytes))
    return losses


def window_loss(trainer: Trainer) -> list[Loss]:
    """The mean training loss of the last twentieth of the updates so far, at least ten."""
    width = min(trainer.step, max(10, trainer.step // 20))
    if not width:
        return []
    window = trainer.losses[trainer.step - width : trainer.step].cpu().double()  # synchronises: only at checkpoints
    window = window[torch.isfinite(window)]  # without updates that were skipped
    width = len(window)
    if not width:
        return []
    stderr = float(window.std() / math.sqrt(width)) if width > 1 else None
    return [Loss("train", "nats/token", float(window.mean()), stderr, width * trainer.global_batch * trainer.seq_len, None)]


def _row_nats(trainer: Trainer, rows: np.ndarray) -> np.ndarray:
    """Summed loss of each row, [rows] float64."""
    batch = max(1, TOKENS_AT_ONCE // rows.shape[1])
    sums = []
    for start in range(0, len(rows), batch):
        tokens = torch.from_numpy(rows[start : start + batch].astype(np.int64)).to(trainer.device)
        with trainer.autocast():
            logits = trainer.model(tokens[:, :-1])
        nll = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), tokens[:, 1:], reduction="none")
        sums.append(nll.double().sum(1).cpu().numpy())
    return np.concatenate(sums)


def _both_units(dataset: str, row_nats: np.ndarray, tokens: int, size: int) -> list[Loss]:
    rows = len(row_nats)
    value = float(row_nats.sum() / tokens)
    stderr = float(row_nats.std(ddof=1) * math.sqrt(rows) / tokens) if rows > 1 else None
    in_nats = Loss(dataset, "nats/token", value, stderr, tokens, size)
    if not size:
        return [in_nats]
    scale = tokens / size / math.log(2)
    return [in_nats, Loss(dataset, "bits/byte", value * scale, None if stderr is None else stderr * scale, tokens, size)]
