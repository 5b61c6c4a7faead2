"""A saved checkpoint as a module for scoring: the fast decoder where it is exact, transformers' own class otherwise.

Loads are strict: a tensor that is missing, unknown or of another shape is an error that names it, never a log line.
"""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from losslens.errors import DataMismatch, UserError
from losslens.families import Shape
from losslens.models.adapted import AdaptedModel, expected_names, saved_names
from losslens.models.config import shape_from_config
from losslens.models.decoder import Decoder
from losslens.models.export import hugging_face_state, module_state
from losslens.models.language_model import Cache, LanguageModel

UNLIMITED = 1 << 20  # tokens: a model without positions says nothing of how many it takes
_PROBLEMS = (("missing_keys", "lacks the"), ("unexpected_keys", "holds the unknown"), ("mismatched_keys", "has a wrong shape for the"))


class ScoringModel:
    """A causal model in evaluation mode whose weights can be replaced in place.

    `features`: token ids [B, T], right-padded, -> final hidden states [B, T, D]; `head`: [N, D] -> logits [N, V].
    """

    def __init__(self, config: PretrainedConfig) -> None:
        self.config = config
        self.shape = shape_from_config(config)
        self.max_len = int(getattr(config, "max_position_embeddings", None) or UNLIMITED)
        self.vocab_size = int(config.vocab_size)
        self.module: LanguageModel = Decoder(self.shape) if self.shape else AdaptedModel(config)
        self.module.float().eval().requires_grad_(False)

    def features(self, tokens: Tensor) -> Tensor:
        """Final hidden states, [B, T] -> [B, T, D]."""
        return self.module.features(tokens)

    def branched(self, tokens: Tensor, position: Tensor, mask: Tensor, before: Cache | None = None) -> tuple[Tensor, Cache]:
        """See `LanguageModel.branched`."""
        return self.module.branched(tokens, position, mask, before)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits, [..., D] -> [..., V]."""
        return self.module.head(hidden)

    def twin(self) -> ScoringModel:
        """Another model around the same tensors, now and after every `load`, for another thread."""
        twin = copy(self)
        twin.module = self.module.twin()
        return twin

    def load(self, directory: Path) -> None:
        """Put the weights of `directory` in place; the model's config must be that of the directory.

        Raises:
            DataMismatch: a tensor is missing, unknown or of the wrong shape.
            UserError: the file cannot be read.
        """
        try:
            state = self._saved_state(directory, self.shape) if self.shape else _adapted_state(directory)
        except KeyError as missing:
            raise _mismatch(directory, f"lacks the tensor {missing.args[0]}") from missing
        expected = {**dict(self.module.named_parameters(remove_duplicate=False)), **_persistent_buffers(self.module)}
        for name in sorted(expected.keys() - state.keys()):
            raise _mismatch(directory, f"lacks the tensor {name.removeprefix('inner.')}")
        for name in sorted(state.keys() - expected.keys()):
            raise _mismatch(directory, f"holds the unknown tensor {name.removeprefix('inner.')}")
        with torch.no_grad():
            for name, target in expected.items():
                if target.shape != state[name].shape:
                    raise _mismatch(directory, f"has {name} of shape {tuple(state[name].shape)}, not {tuple(target.shape)}")
                target.copy_(state[name])

    @staticmethod
    def _saved_state(directory: Path, shape: Shape) -> dict[str, Tensor]:
        saved = read_weights(directory)
        head = saved.get("lm_head.weight")
        if shape.tie_embeddings and head is not None and not torch.equal(head, saved["model.embed_tokens.weight"]):
            raise _mismatch(directory, "has a tensor lm_head.weight of its own, although its config ties it to the embedding")
        return module_state(saved, shape)

    def checksums(self) -> dict[str, int]:
        """Of every tensor, by the name it has in a saved model: the sum of its float32 bit patterns, modulo 2^64."""
        state = dict(self.module.state_dict())
        saved = hugging_face_state(state, self.shape) if self.shape else saved_names(state, self.config)
        return {name: bit_sum(tensor) for name, tensor in saved.items()}


def bit_sum(tensor: Tensor) -> int:
    """The sum of a tensor's float32 bit patterns, modulo 2^64: the same however the tensor is cut or joined."""
    bits = tensor.detach().float().contiguous().view(torch.int32).long() & 0xFFFFFFFF
    return int(bits.sum()) % 2**64


def load_for_scoring(directory: Path) -> ScoringModel:
    """Build the model of a Hugging Face directory and load its weights, float32, on the CPU."""
    model = ScoringModel(read_config(directory))
    model.load(directory)
    return model


def read_config(directory: Path) -> PretrainedConfig:
    """The directory's transformers config.

    Raises:
        UserError: there is none, or transformers does not know it.
    """
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory} holds no config.json", "give a Hugging Face model directory")
    try:
        return AutoConfig.from_pretrained(directory)  # type: ignore[no-any-return]
    except (ValueError, OSError) as error:
        raise UserError(f"{directory}/config.json cannot be read: {error}", "save the model again") from error


def read_weights(directory: Path) -> dict[str, Tensor]:
    """Every tensor of the directory's safetensors files (one file or shards); pickled weights are refused."""
    files = sorted(directory.glob("model*.safetensors"))
    if not files:
        raise UserError(f"{directory} holds no model.safetensors", "save the weights as safetensors; pickles are not read")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors.update(load_file(file))
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"the weights {file} cannot be read: {error}", "the file is cut short or damaged: copy or train it again"
            ) from error
    return tensors


def plain_transformers(directory: Path) -> Any:
    """The directory as plain transformers loads it: float32, evaluation mode, nothing missing and nothing left over.

    Raises:
        DataMismatch: naming a tensor that the files lack, have too many or have in another shape.
        UserError: transformers cannot read the directory.
    """
    load: Any = AutoModelForCausalLM.from_pretrained
    try:
        model, info = load(directory, dtype=torch.float32, output_loading_info=True, use_safetensors=True)
    except Exception as error:  # safetensors, OSError, ValueError, KeyError for an unknown architecture, ...
        if lacking := _lacking(directory):
            raise _mismatch(directory, f"lacks the tensor {lacking}") from error
        raise UserError(f"the model in {directory} cannot be loaded: {error}", "copy it or train it again") from error
    for kind, problem in _PROBLEMS:
        for key in sorted(map(str, info[kind])):
            raise _mismatch(directory, f"{problem} tensor {key}")
    return model.eval()


def _lacking(directory: Path) -> str | None:
    """The first tensor that the files lack of those that transformers saves, such as one expert's; asked where a load has failed."""
    try:
        there = {name for file in directory.glob("model*.safetensors") for name in load_file(file)}
        missing = min((names - there for names in expected_names(read_config(directory))), key=len)
    except Exception:  # whatever made the load fail, which is told instead
        return None
    return min(missing, default=None) if there else None


def _adapted_state(directory: Path) -> dict[str, Tensor]:
    """transformers itself reads the files: it renames the tensors of older formats and shares tied ones."""
    state: dict[str, Tensor] = plain_transformers(directory).state_dict(prefix="inner.")
    return state


def _persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    kept = module.state_dict(keep_vars=True).keys() - dict(module.named_parameters(remove_duplicate=False)).keys()
    return {name: buffer for name, buffer in module.named_buffers() if name in kept}


def _mismatch(directory: Path, what: str) -> DataMismatch:
    return DataMismatch(f"the checkpoint {directory} {what}", "it is not scored; save the checkpoint again")
