"""The part of the vLLM engine that runs inside vLLM's processes: models that answer with log-probabilities of targets.

Every architecture that vLLM serves is registered a second time under `PREFIX` + its name, as a subclass whose pooler takes
only the rows to be scored, applies the output head to them, and returns one small tensor per request. No Python object per
token is made. vLLM finds `register` through the entry point `vllm.general_plugins` in each of its processes; `Proof` adds a
method to its workers by which the engine asks what they hold.

Legend: R rows of a step that are scored, K picks (a target at a row), V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm import ModelRegistry
from vllm.model_executor.layers.pooler import Pooler, PoolingParamsUpdate

from eval_service.forward import head_rows, is_argmax

PREFIX = "Scored"
PLUGIN = "losslens_scorer"


def register() -> None:
    """Tell vLLM of the scoring twin of every text model it knows; none is imported before it is used."""
    for architecture in [*ModelRegistry.models]:
        if architecture.endswith("ForCausalLM") and not architecture.startswith(PREFIX):
            ModelRegistry.register_model(PREFIX + architecture, f"{__name__}:{PREFIX}{architecture}")


def __getattr__(name: str) -> Any:
    """`ScoredPhi3ForCausalLM` and its like, made when vLLM asks for one."""
    base = name.removeprefix(PREFIX)
    if not name.startswith(PREFIX) or base not in ModelRegistry.models:
        raise AttributeError(name)
    return scored(ModelRegistry.models[base].load_model_cls(), name)


def scored(base: Any, name: str) -> Any:
    """A subclass of a vLLM model whose pooler is `TargetLogprobs`."""

    class Scored(base):  # type: ignore[misc]
        is_pooling_model = True
        default_tok_pooling_type = "ALL"

        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            self.pooler = TargetLogprobs(self)

    Scored.__name__ = Scored.__qualname__ = name
    return Scored


class TargetLogprobs(Pooler):
    """Per request a float32 tensor [K, 2]: log-probability, and 1 where the target is the likeliest token.

    A request names in `extra_kwargs` either `start`: each token after that one is a target of the row before it; or `ids`:
    these are the targets of its last row. Rows that the prefix cache has taken over are missing: the caller counts.
    """

    _model: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        object.__setattr__(self, "_model", model)  # not a submodule: it would be its own parent's

    def get_supported_tasks(self) -> set[Any]:
        """The task that hands over every token's row."""
        return {"token_classify"}

    def get_pooling_updates(self, task: str) -> Any:
        """Targets are the prompt's own tokens."""
        return PoolingParamsUpdate(requires_token_ids=True)

    def forward(self, hidden_states: Tensor, pooling_metadata: Any) -> list[Tensor | None]:
        """Score what this step has computed; requests that are cut into several steps keep their parts until the last."""
        rows, targets, sizes = self._asked(pooling_metadata)
        found = self._scored(hidden_states, rows, targets)
        finished = pooling_metadata.get_pooling_cursor().get_finished_mask()
        answers: list[Tensor | None] = []
        for state, part, done in zip(pooling_metadata.pooling_states, torch.split(found, sizes), finished, strict=True):
            state.hidden_states_cache.append(part)
            answers.append(torch.cat(state.hidden_states_cache) if done else None)
            if done:
                state.clean()
        return answers

    def _asked(self, metadata: Any) -> tuple[Tensor, Tensor, list[int]]:
        """(row of this step [K], target [K], picks of each request)."""
        cursor = metadata.get_pooling_cursor()
        ids = metadata.get_prompt_token_ids_cpu()
        scheduled, ends = cursor.num_scheduled_tokens_cpu.tolist(), cursor.seq_lens_cpu.tolist()
        rows, targets, sizes, first = [], [], [], 0
        for i, (count, end) in enumerate(zip(scheduled, ends, strict=True)):
            asked, before = metadata.pooling_params[i].extra_kwargs or {}, first - (end - count)
            if "ids" in asked:
                chosen = asked["ids"] if end == len(ids[i]) else []
                rows.append(torch.full((len(chosen),), first + count - 1))
                targets.append(torch.tensor(chosen, dtype=torch.int64))
            else:
                begin, stop = max(end - count, asked["start"]), min(end, len(ids[i]) - 1)
                rows.append(torch.arange(before + begin, before + max(begin, stop)))
                targets.append(ids[i][begin + 1 : max(begin, stop) + 1].long())
            sizes.append(len(rows[-1]))
            first += count
        return torch.cat(rows), torch.cat(targets), sizes

    def _scored(self, hidden: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        """[K, 2], with the head applied once to each distinct row."""
        distinct, at = torch.unique_consecutive(rows, return_inverse=True)
        found = torch.zeros(len(rows), 2)
        vocabulary = self._model.config.get_text_config().vocab_size
        at_once = head_rows(hidden.device.type, vocabulary)
        for first in range(0, len(distinct), at_once):
            here = (at >= first) & (at < first + at_once)
            chosen = distinct[first : first + at_once].to(hidden.device)
            logits = self._model.compute_logits(hidden[chosen]).float()
            row, target = (at[here] - first).to(hidden.device), targets[here].to(hidden.device)
            logprob = logits.log_softmax(-1)[row, target]
            found[here] = torch.stack([logprob, is_argmax(logits, row, target).float()], 1).cpu()
        return found


class Proof:
    """What the engine asks of a worker (`worker_extension_cls`)."""

    model_runner: Any

    def checksums(self) -> tuple[dict[str, str], dict[str, list[str]]]:
        """Of every parameter, by vLLM's name: the sum of its float32 bit patterns, modulo 2^64, in decimal; and which parts of a
        name vLLM fuses of which. Matrices that it has packed away for oneDNN (CPU) are empty and left to the probe."""
        from losslens.models.scoring import bit_sum

        model = self.model_runner.get_model()
        fused = getattr(model, "packed_modules_mapping", None) or {}
        held = {name: parameter for name, parameter in model.named_parameters() if parameter.numel()}
        return {name: str(bit_sum(parameter)) for name, parameter in held.items()}, dict(fused)
