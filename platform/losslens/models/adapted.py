"""Any transformers causal model behind the interface of `Decoder`: features, head, names of its own checkpoints."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PretrainedConfig

from losslens.models.language_model import Cache, LanguageModel


class AdaptedModel(LanguageModel):
    """A transformers model whose body and head are called apart, so that only needed rows reach the head."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self.inner = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]

    def features(self, tokens: Tensor) -> Tensor:
        """Final hidden states, [B, T] -> [B, T, D]. Right padding is harmless: attention is causal."""
        hidden: Tensor = self.inner.base_model(tokens, use_cache=False).last_hidden_state
        return hidden

    def branched(self, tokens: Tensor, position: Tensor, mask: Tensor, before: Cache | None = None) -> tuple[Tensor, Cache]:
        """See `LanguageModel.branched`. Not every transformers class honours mask and positions: prove it by a probe."""
        past = DynamicCache()
        B = len(tokens)
        for layer, (keys, values) in enumerate(before or ()):
            past.update(keys.expand(B, -1, -1, -1), values.expand(B, -1, -1, -1), layer)
        mask = F.pad(mask, (past.get_seq_length() + tokens.shape[1] - mask.shape[-1], 0))
        out = self.inner.base_model(tokens, attention_mask=mask, position_ids=position, past_key_values=past, use_cache=True)
        T = tokens.shape[1]
        return out.last_hidden_state, [(layer.keys[:, :, -T:], layer.values[:, :, -T:]) for layer in out.past_key_values.layers]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states, [..., D] -> [..., V]."""
        logits: Tensor = self.inner.get_output_embeddings()(hidden)
        return logits
