"""A shape as a transformers config, and back: the saved form of each architecture.

paper     Phi3ForCausalLM with partial_rotary_factor 0.5: RMSNorm, SwiGLU, grouped keys and values, rotary positions on
          half of each head. Never Llama with that factor: transformers ignores it there while vLLM honours it.
llama     LlamaForCausalLM, rotary positions on the whole head.
gpt_neox  GPTNeoXForCausalLM: LayerNorm, biases, parallel attention and MLP, rotary positions on a quarter of the head.
mixtral   MixtralForCausalLM: Llama's attention, and experts of which each token goes through some.
mamba2    Mamba2ForCausalLM: state-space layers, one group of B and C, no attention and no positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from losslens.families import Shape
from losslens.families.shape import CONV_KERNEL

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NORM_EPS = 1e-5
ROTARY_FRACTION = {"paper": 0.5, "llama": 1.0, "gpt_neox": 0.25, "mixtral": 1.0}
SAVED_AS = {
    "paper": "Phi3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "mamba2": "Mamba2ForCausalLM",
}
# What a token that is spread unevenly over experts costs beside its loss: alpha of Fedus et al. 2021 (arXiv 2101.03961, eq. 4).
BALANCE = 0.01
_CHUNK = 64  # tokens that a state-space layer takes at once, at most: how it is computed, not what


def transformers_config(shape: Shape, eos_token_id: int) -> PretrainedConfig:
    """The transformers config whose model has exactly `shape`. Sequences longer than seq_len are outside the model."""
    shared: dict[str, Any] = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.d_model,
        "num_hidden_layers": shape.layers,
        "max_position_embeddings": shape.seq_len,
        "tie_word_embeddings": shape.tie_embeddings,
        "bos_token_id": eos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": eos_token_id,
        "dtype": "float32",
    }
    return _state_space(shape, shared) if shape.architecture == "mamba2" else _attending(shape, shared)


def _attending(shape: Shape, shared: dict[str, Any]) -> PretrainedConfig:
    from transformers import GPTNeoXConfig, LlamaConfig, MixtralConfig, Phi3Config  # here: seconds that a restarted worker does not have

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.rope_base}
    if ROTARY_FRACTION[shape.architecture] != 1:
        rope["partial_rotary_factor"] = ROTARY_FRACTION[shape.architecture]
    shared |= {"intermediate_size": shape.d_ffn, "num_attention_heads": shape.heads, "rope_parameters": rope}
    if shape.architecture == "gpt_neox":
        return GPTNeoXConfig(**shared, use_parallel_residual=True, layer_norm_eps=NORM_EPS)
    shared |= {"num_key_value_heads": shape.kv_heads, "hidden_act": "silu", "rms_norm_eps": NORM_EPS}
    if shape.architecture == "llama":
        return LlamaConfig(**shared)
    if shape.architecture == "mixtral":
        experts: dict[str, Any] = {"num_local_experts": shape.experts, "num_experts_per_tok": shape.active_experts}
        return MixtralConfig(**shared, **experts, router_aux_loss_coef=BALANCE)
    return Phi3Config(**shared, original_max_position_embeddings=shape.seq_len)


def _state_space(shape: Shape, shared: dict[str, Any]) -> PretrainedConfig:
    from transformers import Mamba2Config

    shared |= {"num_heads": shape.heads, "head_dim": shape.inner_width // shape.heads, "expand": shape.inner_width // shape.d_model}
    shared |= {"state_size": shape.state_size, "conv_kernel": CONV_KERNEL, "n_groups": 1, "chunk_size": min(_CHUNK, shape.seq_len)}
    return Mamba2Config(**shared, layer_norm_epsilon=NORM_EPS)


def shape_from_config(config: PretrainedConfig) -> Shape | None:
    """The shape of a config that `models.decoder` can run exactly; None when only transformers' own class can."""
    rope = dict(getattr(config, "rope_parameters", None) or {})
    fraction = rope.get("partial_rotary_factor", 1.0)
    plain = (
        config.model_type in ("phi3", "llama")
        and fraction == ROTARY_FRACTION["paper" if config.model_type == "phi3" else "llama"]
        and rope.get("rope_type", "default") == "default"
        and config.hidden_act == "silu"
        and config.rms_norm_eps == NORM_EPS
        and not getattr(config, "attention_bias", False)
        and not getattr(config, "mlp_bias", False)
        and getattr(config, "head_dim", None) in (None, config.hidden_size // config.num_attention_heads)
        and (getattr(config, "sliding_window", None) or config.max_position_embeddings) >= config.max_position_embeddings
    )
    if not plain:
        return None
    return Shape(
        architecture="paper" if config.model_type == "phi3" else "llama",
        vocab_size=config.vocab_size,
        d_model=config.hidden_size,
        d_ffn=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        layers=config.num_hidden_layers,
        seq_len=config.max_position_embeddings,
        rope_base=float(rope.get("rope_theta", 10_000.0)),
        tie_embeddings=bool(config.tie_word_embeddings),
    )
