"""What `losslens plan` says of memory and FLOPs against the model and the training loop, run on tensors without storage.

What a GPU does is simulated on the CPU: attention takes its fused kernel, which training on a CPU does not; RMSNorm, which
the CPU writes out, is replaced by one that keeps what the GPU's fused kernel keeps.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, UntypedStorage
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from losslens.families import PlannedRun, Shape, planned_runs
from losslens.families.memory import Layout, activations, replicated, sharded
from losslens.models import cross_entropy
from losslens.models.adapted import AdaptedModel
from losslens.models.config import transformers_config
from losslens.models.decoder import Block, Decoder
from losslens.models.language_model import LanguageModel
from losslens.specs import TrainingSpec, load_study
from losslens.training import sharding
from losslens.training.blocks import recompute_blocks
from losslens.training.loop import Trainer
from losslens.training.optimizers import Optimizers
from losslens.training.sharding import Shards

EAGER = ("training.compile=false", "training.schedule={name: constant}")
SIZES = ("300M", "540M", "1B", "1.5B", "3B", "6B", "32B")


class _FusedNorm(torch.autograd.Function):
    """Keeps what aten::_fused_rms_norm_backward takes: input, one number a row, gains."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        inverse = x.square().mean(-1, keepdim=True).rsqrt()
        ctx.save_for_backward(x, weight, inverse)
        return x * inverse * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


@pytest.fixture(autouse=True)
def gpu_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention and norms as on a GPU; weights without values are not filled."""
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda block, x, cos, sin, mask: forward(block, x, cos, sin, None))
    monkeypatch.setattr(F, "rms_norm", lambda x, width, weight, eps: _FusedNorm.apply(x, weight))  # type: ignore[no-untyped-call]
    for name in ("kaiming_uniform_", "normal_", "uniform_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    """Tensors with shapes and kinds but no storage."""
    with FakeTensorMode() as mode:
        yield mode


def runs(*overrides: str) -> dict[str, PlannedRun]:
    """The paper's runs by size, one of each."""
    return {run.size: run for run in reversed(planned_runs(load_study("paper", [*EAGER, *overrides])))}


def training(*overrides: str) -> TrainingSpec:
    """How the paper's runs are trained, eagerly."""
    return load_study("paper", [*EAGER, *overrides]).training


def trainer(shape: Shape, spec: TrainingSpec, model: LanguageModel, sequences: int) -> Trainer:
    """The training loop's own trainer around `model`."""
    optimizers = Optimizers(model, spec.optimizer, peak_lr=1e-3, width=shape.d_model)
    return Trainer(
        model=model,
        optimizers=optimizers,
        spec=spec,
        steps=4,
        global_batch=sequences,
        seq_len=shape.seq_len,
        device=torch.device("cpu"),
        micro_batch=spec.micro_batch,
    )


def saved_by(model: LanguageModel, spec: TrainingSpec, shape: Shape) -> int:
    """Bytes that autograd keeps of one sequence's forward pass, without the loss and without autocast's copies of matrices."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tuple(tensor.shape[-2:]) != (shape.seq_len, shape.seq_len) or tensor.dim() < 4:  # a mask, which is left out on a GPU
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    train = trainer(shape, spec, model, 1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), train.autocast():
        model.head(model.features(torch.zeros(1, shape.seq_len, dtype=torch.long)))
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2) - shape.vocab_size * shape.d_model  # not the input embedding
    copies = 2 * matrices if spec.precision == "bf16" else 0
    return sum(tensor.untyped_storage().nbytes() for storage, tensor in kept.items() if storage not in own) - copies


def flops_of(model: LanguageModel, spec: TrainingSpec, shape: Shape) -> float:
    """Training FLOPs a token: matrix products counted; attention three times its forward pass, half of it for the causal mask."""
    train = trainer(shape, spec, model, 1)
    attention: list[int] = []

    def attended(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], *_: Any, **__: Any) -> int:
        attention.append(2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3]))
        return 0

    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={fused: attended}) as counter:
        train.nll_sum(torch.zeros(1, shape.seq_len + 1, dtype=torch.long)).backward()  # type: ignore[no-untyped-call]
    products: int = counter.get_total_flops()
    return (products + 3 * sum(attention) / 2) / shape.seq_len


class Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes that living storages had after any operation; FSDP empties storages, so sizes are read each time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.living: dict[int, weakref.ref[UntypedStorage]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and not isinstance(tensor, DTensor):
                self.living[tensor.untyped_storage()._cdata] = weakref.ref(tensor.untyped_storage())
        self.living = {key: one for key, one in self.living.items() if one() is not None}
        self.peak = max(self.peak, sum(storage.nbytes() for one in self.living.values() if (storage := one()) is not None))
        return result


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Sixteen ranks that exchange nothing, this being one of them."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=16)
    yield init_device_mesh("cpu", (16,))
    dist.destroy_process_group()


@pytest.mark.parametrize("size", SIZES)
def test_parameters_are_the_models(size: str) -> None:
    shape = runs()[size].shape
    with torch.device("meta"):
        model = Decoder(shape)
    assert sum(p.numel() for p in model.parameters()) == shape.params


@pytest.mark.parametrize("size", SIZES)
def test_activations_and_flops_of_every_size(size: str, fake: FakeTensorMode) -> None:
    """One block is the difference of two models; the rest of a model is what is left of one."""
    shape, spec = runs()[size].shape, training()
    found: dict[int, tuple[int, float]] = {}
    for layers in (1, 2):
        cut = replace(shape, layers=layers)
        model = Decoder(cut)
        found[layers] = (saved_by(model, spec, cut), flops_of(model, spec, cut))
    (one, flops_one), (two, flops_two) = found[1], found[2]
    kept = one + (shape.layers - 1) * (two - one)
    planned = shape.seq_len * activations(shape, spec)
    flops = flops_one + (shape.layers - 1) * (flops_two - flops_one)
    print(f"{size}: activations GB a sequence {planned / 1e9:.3f} planned, {kept / 1e9:.3f} kept; GFLOPs a token", end=" ")
    print(f"{shape.flops_per_token / 1e9:.4f} planned, {flops / 1e9:.4f} counted")
    assert planned == pytest.approx(kept, rel=0.02)
    assert shape.flops_per_token == pytest.approx(flops, rel=0.001)


def test_a_whole_model_is_the_sum_of_its_blocks(fake: FakeTensorMode) -> None:
    shape, spec = runs()["300M"].shape, training()
    kept = saved_by(Decoder(shape), spec, shape)
    assert shape.seq_len * activations(shape, spec) == pytest.approx(kept, rel=0.02)


@pytest.mark.parametrize(
    "overrides",
    [("family.architecture=llama",), ("family.architecture=gpt_neox",), ("training.precision=float32", "cluster.workers=[1, 4]")],
)
def test_activations_of_other_blocks(overrides: tuple[str, ...], fake: FakeTensorMode) -> None:
    shape, spec = replace(runs(*overrides)["300M"].shape, layers=2), training(*overrides)
    model = AdaptedModel(transformers_config(shape, 0)) if shape.architecture == "gpt_neox" else Decoder(shape)
    kept = saved_by(model, spec, shape)
    print(f"{overrides[0]}: {shape.seq_len * activations(shape, spec) / 1e9:.3f} GB planned, {kept / 1e9:.3f} kept")
    assert shape.seq_len * activations(shape, spec) == pytest.approx(kept, rel=0.1)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("training.micro_batch=1",),
        ("training.schedule.average=0.99",),
        ("training.optimizer.name=muon",),
        ("training.optimizer.name=lion",),
    ],
)
@pytest.mark.parametrize("vocabulary", [65024, 257])
def test_the_loop_holds_what_is_planned(
    vocabulary: int, overrides: tuple[str, ...], fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole update after a first one has made the optimizer's state, every storage counted; logits come in blocks as on a GPU."""
    monkeypatch.setattr(cross_entropy, "CPU_BLOCK", cross_entropy.GPU_BLOCK)
    shape, spec = replace(runs()["300M"].shape, layers=3, vocab_size=vocabulary), training(*overrides)
    held = Held()
    with held:
        train = trainer(shape, spec, Decoder(shape), 2)
        rows = torch.zeros(2, shape.seq_len + 1, dtype=torch.long)
        train.update(rows)
        held.peak = 0
        train.update(rows)
    planned = replicated(shape, spec, spec.micro_batch or 2, exact=spec.micro_batch is not None)
    print(f"V {vocabulary} {' '.join(overrides)}: {planned / 1e9:.3f} GB planned, {held.peak / 1e9:.3f} held")
    assert planned == pytest.approx(held.peak, rel=0.03)


@pytest.mark.parametrize("size", ["300M", "1B", "32B"])
@pytest.mark.parametrize("overrides", [(), ("training.micro_batch=1",)])
@pytest.mark.parametrize("recompute", [False, True])
def test_shards_hold_no_more_than_is_planned(
    size: str, overrides: tuple[str, ...], recompute: bool, mesh: DeviceMesh, fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole update of six blocks on one of 16 ranks, after a first one; logits come in blocks as on a GPU. With exact sums of two
    micro-batches: the second finds what the first has left."""
    monkeypatch.setattr(sharding, "init_device_mesh", lambda *_: mesh)
    monkeypatch.setattr(cross_entropy, "CPU_BLOCK", cross_entropy.GPU_BLOCK)
    shape, spec = replace(runs()[size].shape, layers=6), training(*overrides)
    passes = 2 if spec.micro_batch else 1
    held = Held()
    with held:
        model = Decoder(shape)
        if recompute:
            recompute_blocks(model)
        shards = Shards(model, torch.device("cpu"), precision="bf16", exact=spec.micro_batch is not None, largest=passes)
        optimizers = Optimizers(shards.owned, spec.optimizer, peak_lr=1e-3, width=shape.d_model)
        train = Trainer(model, optimizers, spec, 4, 16 * passes, shape.seq_len, torch.device("cpu"), spec.micro_batch, shards=shards)
        rows = torch.zeros(passes, shape.seq_len + 1, dtype=torch.long)
        train.update(rows)
        held.peak = 0
        train.update(rows)
    planned = sharded(shape, spec, Layout(16, recompute=recompute)).total
    print(f"{size}, six blocks{', exact' if overrides else ''}{', recomputed' if recompute else ''}: {planned / 1e9:.3f} GB", end=" ")
    print(f"planned, {held.peak / 1e9:.3f} held")
    assert held.peak <= 1.01 * planned
    assert planned <= 1.2 * held.peak
