"""The pre-RMSNorm decoder (the paper's block and Llama) in plain torch, made for small kernels and few of them.

It computes what transformers' Phi3ForCausalLM (rotary positions on half a head) and LlamaForCausalLM compute, to float
rounding; tests compare them. One matrix product makes queries, keys and values, one makes gate and up: on small models
the number of kernels, not their size, is what limits speed.

Legend: B batch, T positions, D d_model, H query heads, K key-value heads, E head size, F d_ffn, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losslens.families import Shape
from losslens.models.config import NORM_EPS, ROTARY_FRACTION
from losslens.models.language_model import Cache, LanguageModel

# Queries that written-out attention takes at once. On a CPU it is twice as fast as the fused kernel, whose backward pass
# is slow, and a block computes no scores beyond its last query (tests/bench/bench_attention.py).
BLOCK = 128


class Matrix(nn.Linear):
    """One that draws no values, which `build` or a file overwrites."""

    def reset_parameters(self) -> None:
        """Nothing."""


class Embedding(nn.Embedding):
    """As `Matrix`."""

    def reset_parameters(self) -> None:
        """Nothing."""


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), NORM_EPS)


class Attention(nn.Module):
    """Causal attention with H query heads sharing K key-value heads, [B, T, D] -> [B, T, D]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, shape.head_dim
        self.qkv_proj = Matrix(shape.d_model, (shape.heads + 2 * shape.kv_heads) * shape.head_dim, bias=False)
        self.o_proj = Matrix(shape.heads * shape.head_dim, shape.d_model, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """`mask` (see `Decoder`) asks for the written-out product, None for the fused kernel."""
        B, T, _ = x.shape
        H, K, E = self.heads, self.kv_heads, self.head_dim
        qkv = self.qkv_proj(x).view(B, T, H + 2 * K, E)
        qk, v = torch.split(qkv, [H + K, K], dim=2)
        q, k = torch.split(_rotate(qk, cos, sin).transpose(1, 2), [H, K], dim=1)
        v = v.transpose(1, 2)
        if mask is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != K)
        else:
            y = _written_out(q * E**-0.5, k, v, mask)
        projected: Tensor = self.o_proj(y.transpose(1, 2).reshape(B, T, H * E))
        return projected

    def branched(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, before: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """See `LanguageModel.branched`; `cos`, `sin` [B, T, R] of each token's position."""
        B, T, _ = x.shape
        H, K, E = self.heads, self.kv_heads, self.head_dim
        qkv = self.qkv_proj(x).view(B, T, H + 2 * K, E)
        qk, v = torch.split(qkv, [H + K, K], dim=2)
        q, k = torch.split(_rotate(qk, cos, sin).transpose(1, 2), [H, K], dim=1)
        own = (k, v.transpose(1, 2))
        if before is not None and mask.shape[-1] == T:
            y = _behind_one_stem(q, before, own, mask)
        else:
            keys, values = own if before is None else (torch.cat(pair, dim=2) for pair in zip(before, own, strict=True))
            y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=H != K)
        projected: Tensor = self.o_proj(y.transpose(1, 2).reshape(B, T, H * E))
        return projected, own


def _written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Causal attention of scaled q [B, H, T, E] to k, v [B, K, T, E], a block of queries at a time; `mask` [BLOCK, BLOCK]."""
    B, H, T, E = q.shape
    K = k.shape[1]
    made = []
    for first in range(0, T, BLOCK):
        stop = min(first + BLOCK, T)
        C = stop - first
        # The H/K query heads of a group are stacked along time, so that one product serves the group.
        block = q[:, :, first:stop].reshape(B, K, H // K * C, E)
        visible = F.pad(mask[:C, :C].to(q.dtype), (first, 0)) if first else mask[:C, :C].to(q.dtype)
        weights = (block @ k[:, :, :stop].transpose(-1, -2)).view(B, K, H // K, C, stop) + visible
        made.append((weights.softmax(-1).view(B, K, H // K * C, stop) @ v[:, :, :stop]).view(B, H, C, E))
    return made[0] if len(made) == 1 else torch.cat(made, 2)


def _behind_one_stem(q: Tensor, stem: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
    """Attention of q [B, H, T, E] to P tokens that every row sees whole, keys and values [1, K, P, E], and to T of its own, [B, K, T, E].

    On a CPU two softmaxes are joined by their sums (arXiv 2205.14135, section 3.1), so that the stem's keys are neither
    copied nor masked for each row.
    """
    B, H, T, E = q.shape
    K, P = stem[0].shape[1:3]
    if q.device.type != "cpu":
        keys, values = (torch.cat([whole.expand(B, -1, -1, -1), part], 2) for whole, part in zip(stem, own, strict=True))
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=F.pad(mask, (P, 0)), enable_gqa=H != K)
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # the one kernel that also tells the sums
    far, far_sum = attend(q.transpose(0, 1).reshape(1, K, H // K * B * T, E), *stem)  # the heads of a group along time
    near, near_sum = attend(q, *(part.repeat_interleave(H // K, 1) for part in own), attn_mask=mask)
    far, far_sum = (part.reshape(H, B, T, -1).transpose(0, 1) for part in (far, far_sum))
    share = (far_sum - near_sum[..., None]).sigmoid()
    return far * share + near * (1 - share)  # type: ignore[no-any-return]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on the first 2 R of E dimensions; x [B, T, heads, E], cos and sin [T, R] or [B, T, R]."""
    R = cos.shape[-1]
    T = x.shape[1]
    c, s = cos[..., :T, None, :].to(x.dtype), sin[..., :T, None, :].to(x.dtype)
    first, second, rest = x[..., :R], x[..., R : 2 * R], x[..., 2 * R :]
    return torch.cat((first * c - second * s, second * c + first * s, rest), dim=-1)


class MLP(nn.Module):
    """SwiGLU, [B, T, D] -> [B, T, D]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_up_proj = Matrix(shape.d_model, 2 * shape.d_ffn, bias=False)
        self.down_proj = Matrix(shape.d_ffn, shape.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        projected: Tensor = self.down_proj(F.silu(gate) * up)
        return projected


class Block(nn.Module):
    """Attention and MLP, each behind its norm and added to the residual stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.d_model)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.d_model)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x


class Body(nn.Module):
    """Everything before the head, under the name that transformers gives it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = Embedding(shape.vocab_size, shape.d_model)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.d_model)


class Decoder(LanguageModel):
    """Token ids [B, T] -> final hidden states [B, T, D]; parameter names are those of Phi3ForCausalLM.

    Parameters on `device` have no values yet: `build` or a file has them. Tables are on the host.
    """

    def __init__(self, shape: Shape, *, device: str = "cpu") -> None:
        super().__init__()
        self.shape = shape
        with torch.device(device):
            self.model = Body(shape)
            self.lm_head = Matrix(shape.d_model, shape.vocab_size, bias=False)
        if shape.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        cos, sin = _rotary_table(shape)
        self.cos: Tensor
        self.sin: Tensor
        self.mask: Tensor
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        # -inf above the diagonal, made once: building it costs as much as a small layer.
        self.register_buffer("mask", torch.full((BLOCK, BLOCK), float("-inf")).triu(1), persistent=False)

    def features(self, tokens: Tensor) -> Tensor:
        """Hidden states after the final norm, [B, T] -> [B, T, D]."""
        T = tokens.shape[1]
        written_out = tokens.device.type == "cpu" and (T <= BLOCK or torch.is_grad_enabled())
        x = self.model.embed_tokens(tokens)
        for block in self.model.layers:
            x = block(x, self.cos, self.sin, self.mask if written_out else None)
        final: Tensor = self.model.norm(x)
        return final

    def branched(self, tokens: Tensor, position: Tensor, mask: Tensor, before: Cache | None = None) -> tuple[Tensor, Cache]:
        """See `LanguageModel.branched`."""
        cos, sin = self.cos[position], self.sin[position]
        x = self.model.embed_tokens(tokens)
        kept: Cache = []
        for i, block in enumerate(self.model.layers):
            assert isinstance(block, Block)
            attended, own = block.self_attn.branched(block.input_layernorm(x), cos, sin, mask, before[i] if before else None)
            x = x + attended
            x = x + block.mlp(block.post_attention_layernorm(x))
            kept.append(own)
        return self.model.norm(x), kept

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states, [..., D] -> [..., V]."""
        logits: Tensor = self.lm_head(hidden)
        return logits

    def head_weight(self) -> Tensor:
        """See `LanguageModel`."""
        return self.lm_head.weight


def _rotary_table(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, R] with R = half of the rotated dimensions (Su et al. 2021, arXiv 2104.09864, eq. 15)."""
    rotated = int(shape.head_dim * ROTARY_FRACTION[shape.architecture])
    frequencies = shape.rope_base ** (-torch.arange(0, rotated, 2, dtype=torch.float64) / rotated)
    angles = torch.arange(shape.seq_len, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().float(), angles.sin().float()
