"""The layers of a model one by one: computed again in the backward pass, or compiled, each by itself.

What takes the place of a block's `forward` names the block as an argument, not in a closure, so that a copy of the model
(`LanguageModel.twin`) computes with its own weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from losslens.training.compiling import compiled


def blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of a model: the longest list of modules in it."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len)


def recompute_blocks(model: nn.Module) -> None:
    """Keep a block's input only, and compute the block again in the backward pass (Chen et al. 2016, arXiv 1604.06174)."""
    for block in blocks(model):
        block.forward = partial(_again, block.forward)


def compile_blocks(model: nn.Module, device: torch.device) -> None:
    """Compile every block by itself: what spreads and gathers its weights stays outside."""
    every = blocks(model)
    forward = compiled(type(every[0]).forward, device)
    for block in every:
        block.forward = partial(forward, block)


def _again(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)  # no model here draws numbers
