"""A decoder's shape and what follows from it by counting: parameters and FLOPs.

Legend: V vocabulary, D d_model, F d_ffn, H heads, K key-value heads, L layers, T sequence length.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from losslens.specs import FamilySpec, SizeSpec

CONV_KERNEL = 4  # tokens that Mamba-2's convolution sees


@dataclass(frozen=True, slots=True, repr=False)
class Shape:
    """Everything that decides a model's tensors, but not their values. None: the architecture has no such thing."""

    architecture: str
    vocab_size: int
    d_model: int
    d_ffn: int
    heads: int
    kv_heads: int
    layers: int
    seq_len: int
    rope_base: float
    tie_embeddings: bool
    experts: int | None = None  # of a layer, each of width d_ffn
    active_experts: int | None = None  # that a token goes through
    state_size: int | None = None  # of each channel of a state-space layer, which has `inner_width` of them

    def __repr__(self) -> str:
        """What the architecture has; identities of runs are made of it."""
        had = ((field.name, getattr(self, field.name)) for field in fields(self))
        return f"Shape({', '.join(f'{name}={value!r}' for name, value in had if value is not None)})"

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.heads

    @property
    def params_embedding(self) -> int:
        """Parameters of the input embedding and, when untied, of the output head."""
        return self.vocab_size * self.d_model * (1 if self.tie_embeddings else 2)

    @property
    def params_non_embedding(self) -> int:
        """Parameters of the blocks and the final norm.

        paper and llama: q, k, v, o projections with grouped keys and values, gate, up and down, two RMSNorm gains.
        gpt_neox: full-width attention and a two-matrix MLP, all with biases, two LayerNorms.
        mixtral: the attention and norms of llama, a router, and gate, up and down of every expert.
        mamba2: one projection to gate, channels, B, C and time steps, a convolution with bias over channels, B and C; time-step bias,
        decay and skip of each head; a gated norm, a projection back, one RMSNorm gain.
        """
        return self._non_embedding(self.experts or 1)

    @property
    def params_active(self) -> int:
        """Parameters that a token meets: all but those of experts that it does not go through."""
        return self.params_embedding + self._non_embedding(self.active_experts or 1)

    def _non_embedding(self, experts: int) -> int:
        d, kv = self.d_model, self.kv_heads * self.head_dim
        if self.state_size is not None:
            return self.layers * self._state_space_block() + d
        if self.architecture == "gpt_neox":
            attention = 3 * d * d + 3 * d + d * d + d
            mlp = 2 * d * self.d_ffn + self.d_ffn + d
            return self.layers * (attention + mlp + 4 * d) + 2 * d
        attention = d * d + 2 * d * kv + d * d
        router = d * self.experts if self.experts else 0
        return self.layers * (attention + router + experts * 3 * d * self.d_ffn + 2 * d) + d

    @property
    def inner_width(self) -> int:
        """Channels of a state-space layer: twice the width (Dao and Gu 2024, arXiv 2405.21060)."""
        return 2 * self.d_model

    def _state_space_block(self) -> int:
        d, inner, state = self.d_model, self.inner_width, self.state_size or 0
        convolved = inner + 2 * state
        return d * (inner + convolved + self.heads) + convolved * (CONV_KERNEL + 1) + 3 * self.heads + inner + inner * d + d

    @property
    def params(self) -> int:
        """All parameters."""
        return self.params_embedding + self.params_non_embedding

    @property
    def flops_per_token(self) -> float:
        """Training FLOPs per token, forward and backward: 6 (N + V D) + 6 L T D; for mamba2 6 (N + V D) + 18 L I S.

        6 per parameter that multiplies and that a token meets (Kaplan et al. 2020, arXiv 2001.08361, section 2.1), the output head included
        and the input look-up not; attention scores and values 12 L T D (Chowdhery et al. 2022, arXiv 2204.02311,
        appendix B), halved because the mask is causal. A state-space layer decays, feeds and reads a state of I S numbers (I inner
        width, S state size): a multiplication and an addition each, as its recurrence has it (arXiv 2405.21060, section 2).
        """
        mixing = self.seq_len * self.d_model if self.state_size is None else 3 * self.inner_width * self.state_size
        multiplying = self._non_embedding(self.active_experts or 1) + self.vocab_size * self.d_model
        return 6.0 * multiplying + 6.0 * self.layers * mixing


def shape_of(size: SizeSpec, family: FamilySpec, vocab_size: int, seq_len: int) -> Shape:
    """The shape of one size of a family; GPT-NeoX has no grouped keys and values, Mamba-2 no keys and values at all."""
    heads = size.heads
    kv_heads = heads if family.architecture in ("gpt_neox", "mamba2") else (size.kv_heads or heads)
    sparse = family.architecture == "mixtral"
    return Shape(
        architecture=family.architecture,
        vocab_size=vocab_size,
        d_model=size.d_model,
        d_ffn=size.d_ffn,
        heads=heads,
        kv_heads=kv_heads,
        layers=size.layers,
        seq_len=seq_len,
        rope_base=family.rope_base,
        tie_embeddings=family.tie_embeddings,
        experts=family.experts if sparse else None,
        active_experts=family.active_experts if sparse else None,
        state_size=family.state_size if family.architecture == "mamba2" else None,
    )
