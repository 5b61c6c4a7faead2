"""Any transformers causal model behind the interface of `Decoder`: features, head, names of its own checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PretrainedConfig
from transformers.core_model_loading import revert_weight_conversion

from losslens.models.language_model import Cache, LanguageModel


class AdaptedModel(LanguageModel):
    """A transformers model whose body and head are called apart, so that only needed rows reach the head."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self.inner = _built(config)
        self._balance = float(getattr(config, "router_aux_loss_coef", None) or 0)
        self._active = int(getattr(config, "num_experts_per_tok", None) or 1)
        self._penalty: Tensor | None = None

    def features(self, tokens: Tensor) -> Tensor:
        """Final hidden states, [B, T] -> [B, T, D]. Right padding is harmless: attention is causal."""
        routed = bool(self._balance) and torch.is_grad_enabled()
        out = self.inner.base_model(tokens, use_cache=False, **({"output_router_logits": True} if routed else {}))
        self._penalty = self._balance * unevenness(out.router_logits, self._active) if routed else None
        hidden: Tensor = out.last_hidden_state
        return hidden

    def penalty(self) -> Tensor | None:
        """That tokens are spread unevenly over experts; see `LanguageModel.penalty`."""
        penalty, self._penalty = self._penalty, None
        return penalty

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

    def head_weight(self) -> Tensor | None:
        """See `LanguageModel`."""
        head = self.inner.get_output_embeddings()
        return head.weight if type(head) is nn.Linear and head.bias is None else None


def unevenness(router_logits: Sequence[Tensor], active: int) -> Tensor:
    """Mean over layers of E sum_i f_i P_i, f_i the share of expert i in what is sent to experts, P_i its mean probability: 1 where all E
    are used alike (Fedus et al. 2021, arXiv 2101.03961, eq. 4 to 6). `router_logits` [tokens, E] of each layer."""
    layers = []
    for logits in router_logits:
        probability = logits.float().softmax(-1)
        E = logits.shape[-1]
        sent = torch.bincount(probability.topk(active).indices.flatten(), minlength=E).float()
        layers.append(E * (sent / sent.sum() * probability.mean(0)).sum())
    return torch.stack(layers).mean()


def saved_names(state: Mapping[str, Tensor], config: PretrainedConfig) -> dict[str, Tensor]:
    """An `AdaptedModel`'s tensors, all or some, as they are saved: in the pieces in which transformers saves them, since it keeps experts
    in one tensor and files do not; under the class's own names where nothing but names would differ: every reader knows these, vLLM only
    these."""
    own = {name.removeprefix("inner."): tensor for name, tensor in state.items()}
    model, names, own_names = _hollow(_Alike(type(config), config.to_json_string(), config))
    if len(names) == len(own_names):
        return own
    saved: dict[str, Tensor] = revert_weight_conversion(model, own)
    return saved


def expected_names(config: PretrainedConfig) -> tuple[set[str], set[str]]:
    """What files of such a model hold: by the names that transformers saves, and by the class's own."""
    model, names, own_names = _hollow(_Alike(type(config), config.to_json_string(), config))
    tied = set(model.all_tied_weights_keys)
    return names - tied, own_names - tied


@dataclass(frozen=True, slots=True)
class _Alike:
    """A config, equal to others that say the same; itself it cannot be a key."""

    kind: type[PretrainedConfig]
    values: str
    config: PretrainedConfig = field(compare=False)


@lru_cache(maxsize=4)
def _hollow(of: _Alike) -> tuple[Any, set[str], set[str]]:
    """A config's model without values, and its tensors' names as `expected_names` has them."""
    with torch.device("meta"):
        model = _built(of.config)
    own = model.state_dict()
    return model, set(revert_weight_conversion(model, dict(own))), set(own)


def _built(config: PretrainedConfig) -> Any:
    # That the plain implementation of a state-space layer runs where no kernels are installed is said in docs/VARIANTS.md.
    logging.getLogger("transformers.integrations.hub_kernels").setLevel(logging.ERROR)
    return AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
