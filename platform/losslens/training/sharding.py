"""A model whose matrices lie spread over all ranks (FSDP2), so that no rank needs memory for all of them.

A rank holds some rows of every matrix, of its gradient, its average and its moments; a block is gathered when it computes and
forgotten afterwards. Gains and biases are too small to spread: every rank has them. What the optimizer, the average and the saved
states see are plain tensors, this rank's rows (`Shards.owned`), so all of them work as they do on whole matrices.

Blocks are gathered in the precision of matrix products, embedding and head in float32, so that all is computed as `loop.py` does it
with whole matrices: the same passes give the same gradients to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from losslens.corpus.order import rank_slice
from losslens.families import PlannedRun
from losslens.models import LanguageModel, initialise, roles
from losslens.specs import StudySpec
from losslens.training.blocks import blocks
from losslens.training.passes import Passes
from losslens.training.shard_sums import ExactShards, PlainShards, ShardSums
from losslens.training.sharded_state import Rows


def spread(model: LanguageModel, planned: PlannedRun, spec: StudySpec, device: torch.device) -> Shards:
    """The model of a planned run, spread over the ranks of the process group. A hollow one gets its first values: each rank its rows."""
    world = dist.get_world_size()
    shares = [rank_slice(planned.global_batch, rank, world, planned.micro_batch or 1) for rank in range(world)]
    largest = max(last - first for first, last in shares)
    shards = Shards(model, device, precision=spec.training.precision, exact=planned.micro_batch is not None, largest=largest)
    if shards.hollow:
        initialise(shards.owned, planned.shape, spec.family.initialisation, planned.seed, shards.part)
    return shards


class Shards:
    """Spreads `model` over the ranks of the process group. `precision` as in a study; `exact` where gradients are summed exactly;
    `largest` sequences are the largest rank's share of a global batch."""

    def __init__(self, model: LanguageModel, device: torch.device, *, precision: str, exact: bool, largest: int) -> None:
        self.rank, self.world, self.largest = dist.get_rank(), dist.get_world_size(), largest
        mesh = init_device_mesh(device.type, (self.world,))
        by_role = roles(model)
        everywhere = {parameter for _, parameter in by_role["gain"]}
        low = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if precision == "bf16" else None, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        whole = MixedPrecisionPolicy(cast_forward_inputs=False)
        self.entry = Entry(model)
        embedding = [] if not by_role["head"] else [_module_of(model, name) for name, _ in by_role["embedding"]]
        # Autocast does not reach what stacks of experts take part in, so they stay float32.
        parts = [(module, whole) for module in embedding] + [(block, whole if _has_stacks(block) else low) for block in blocks(model)]
        parts.append((self.entry, whole))
        for module, policy in parts:
            # Also after the last module: weights change under a whole copy that is kept, at an update or for the average.
            fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=everywhere, reshard_after_forward=True)
        for module in embedding:
            cast(FSDPModule, module).set_unshard_in_backward(False)  # its gradient needs the tokens only
        self.hollow = any(parameter.is_meta for parameter in model.parameters())  # rows have no values yet
        if self.hollow:
            self.entry._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor)  # type: ignore[no-untyped-call]
        for _, gain in roles(model)["gain"]:  # the rest is on the device by now, a group at a time
            gain.data = gain.data.to(device)
        self.owned = Owned(model)
        groups = [cast(FSDPModule, module) for module, _ in parts]
        self.sums: ShardSums = (ExactShards if exact else PlainShards)(self.owned, groups)

    def part(self, parameter: Tensor) -> tuple[int, int]:
        """The number of the first row that this rank has of one of `owned`'s parameters, and how many rows the whole has."""
        whole = self.owned.whole(parameter)
        return Rows(whole, 0).of(self.rank, self.world).start if self.owned.spreads(parameter) else 0, whole[0]

    @cached_property
    def host(self) -> DeviceMesh:
        """The ranks as a thread reaches them while they train; to be asked for first by all at once."""
        return DeviceMesh.from_group(dist.new_group(backend="gloo"), "cpu")

    def go(self, rows: Tensor, passes: Passes, one_pass: Callable[[int, Tensor, float], Tensor]) -> None:
        """Call `one_pass` with each piece of this rank's share [b, ...] and a weight. Every rank makes as many passes as the largest
        share needs, since all gather each block together: those beyond its own count nothing.

        Raises:
            EnvironmentFailure, PassTooLarge: see `Passes.alone`.
        """
        most = min(passes.most or self.largest, self.largest)
        pieces = torch.split(rows, most)
        with passes.alone(most):
            for number in range(-(-self.largest // most)):
                own = number < len(pieces)
                self.sums.add(one_pass(0, pieces[number] if own else rows[:1], 1.0 if own else 0.0))


class Entry(nn.Module):
    """The way in: within `forward` the weights outside of blocks are whole, and blocks become so when they are called."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """What `function` returns."""
        return function(*args)


class Owned(nn.Module):
    """This rank's rows of every matrix, and every gain, under the model's names and in its order, sharing its memory.

    `parts` maps each name to the model's own parameter.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.parts = dict(model.named_parameters())
        self._rows: dict[str, nn.Parameter] = {}
        for name, parameter in self.parts.items():
            own = parameter.detach()
            self._rows[name] = nn.Parameter(own.to_local()) if isinstance(own, DTensor) else parameter
            self._rows[name].whole = parameter.shape  # type: ignore[attr-defined]
        self._spread = {id(self._rows[name]) for name, part in self.parts.items() if isinstance(part, DTensor)}

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """As the model's, without what it spreads."""
        yield from self._rows.items()

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """As the model's."""
        yield from self._rows.values()

    def spreads(self, parameter: Tensor) -> bool:
        """Whether one of `parameters` is but some rows."""
        return id(parameter) in self._spread

    def whole(self, parameter: Tensor) -> torch.Size:
        """The shape of the matrix that one of `parameters` has some rows of."""
        shape: torch.Size = parameter.whole  # type: ignore[attr-defined]
        return shape

    def spread(self) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """Name -> (the model's, this rank's rows) of what is not everywhere."""
        return {name: (part, self._rows[name]) for name, part in self.parts.items() if isinstance(part, DTensor)}


def _has_stacks(block: nn.Module) -> bool:
    return any(parameter.dim() > 2 for _, parameter in roles(block)["hidden"])


def _module_of(model: nn.Module, parameter: str) -> nn.Module:
    return model.get_submodule(parameter.rpartition(".")[0])
