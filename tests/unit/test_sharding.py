"""What sharded training decides and writes, piece by piece, without other processes."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from losslens.errors import UserError
from losslens.families import Shape, planned_runs
from losslens.models import build
from losslens.models.streamed import StreamedSafetensors
from losslens.specs import StudySpec, load_study
from losslens.training.blocks import recompute_blocks
from losslens.training.loop import STATE
from losslens.training.reduction import Agreement, exact_norm
from losslens.training.resizing import MOST_HALVED, Fault, PassTooLarge, try_again
from losslens.training.sharded_state import Rows


def test_a_streamed_file_is_the_one_that_safetensors_writes(tmp_path: Path) -> None:
    tensors = {"b.weight": torch.randn(3, 5), "a": torch.randn(7), "ä": torch.randn(2, 2, 2), "b": torch.zeros(4)}
    save_file(tensors, tmp_path / "whole", metadata={"format": "pt"})
    with StreamedSafetensors(tmp_path / "streamed", {name: tensor.shape for name, tensor in tensors.items()}) as file:
        for name in ("b", "ä", "a", "b.weight"):
            file.write(name, tensors[name])
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_streamed_file_is_complete_or_an_error(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not written"), StreamedSafetensors(tmp_path / "file", {"a": (2,), "b": (2,)}) as file:
        file.write("a", torch.zeros(2))


@given(st.integers(1, 200), st.integers(1, 9), st.integers(0, 1))
def test_the_parts_of_all_ranks_tile_a_matrix_as_torch_chunks_it(size: int, world: int, dim: int) -> None:
    whole = torch.arange(3 * size).reshape((size, 3) if dim == 0 else (3, size))
    parts = [whole[(slice(None),) * dim + (Rows(whole.shape, dim).of(rank, world),)] for rank in range(world)]
    assert torch.equal(torch.cat(parts, dim), whole)
    assert [p.shape for p in parts if p.numel()] == [p.shape for p in torch.chunk(whole, world, dim)]


@given(st.integers(0, 2**31), st.floats(-30, 30), st.integers(1, 400), st.lists(st.integers(0, 400), max_size=4))
def test_the_norm_of_a_gradient_does_not_depend_on_how_it_is_cut(seed: int, size: float, elements: int, cuts: list[int]) -> None:
    gradient = torch.randn(elements, generator=torch.Generator().manual_seed(seed)) * 10.0**size
    whole = exact_norm([gradient], [], elements)
    assert whole == pytest.approx(float(gradient.double().norm()), rel=1e-6)
    places = [0, *sorted(min(cut, elements) for cut in cuts), elements]
    assert exact_norm([gradient[a:b] for a, b in itertools.pairwise(places)], [], elements) == whole


def test_the_norm_of_many_elements_keeps_what_is_small() -> None:
    elements = 2**24
    gradient = torch.full((elements,), 2.0**-30)
    gradient[0] = 1.0
    assert float(exact_norm([gradient], [], elements)) == pytest.approx(float(gradient.double().norm()), rel=1e-7)


@pytest.mark.parametrize(("values", "expected"), [([0.0, 0.0], 0.0), ([1.0, float("nan")], None), ([float("inf"), 1.0], None)])
def test_the_norm_of_nothing_is_nothing_and_of_no_number_none(values: list[float], expected: float | None) -> None:
    norm = float(exact_norm([torch.tensor(values)], [], 2))
    assert norm == expected if expected is not None else norm != norm


def test_ranks_agree_on_leaving_and_on_a_state_by_one_sum() -> None:
    agreement = Agreement(torch.device("cpu"))
    for leaving, states in ((0, 0), (3, 0), (0, 1), (2, 1)):
        asked = agreement.reached(torch.tensor(leaving + STATE * states, dtype=torch.float32))
        assert (asked % STATE, asked // STATE) == (leaving, states)


def test_passes_that_were_too_large_are_halved_until_they_fit() -> None:
    assert pickle.loads(pickle.dumps(PassTooLarge(3))).fewer == 3
    assert try_again(Fault.MEMORY, MOST_HALVED)
    assert not try_again(Fault.MEMORY, MOST_HALVED + 1)


def study(settings: list[str]) -> StudySpec:
    return load_study("demo", [*settings, "evaluation.cross_check=null"])


ADAMW = "training.optimizer.name=adamw"  # demo's is muon
SIZE = "family.sizes=[{{name: s, d_model: {}, d_ffn: {}, heads: 2, layers: 2, tokens: 1M{}}}]"


def test_sharding_and_recomputing_are_settings_of_a_study_or_of_a_size_and_of_no_runs_identity() -> None:
    plain = planned_runs(study([SIZE.format(32, 96, ""), ADAMW]))[0]
    everywhere = planned_runs(study([SIZE.format(32, 96, ""), ADAMW, "cluster.sharded=true", "cluster.recompute=true"]))[0]
    but_one = planned_runs(study([SIZE.format(32, 96, ", sharded: false, recompute: true"), ADAMW, "cluster.sharded=true"]))[0]
    assert [(run.sharded, run.recompute) for run in (plain, everywhere, but_one)] == [(False, False), (True, True), (False, True)]
    assert len({run.run_id for run in (plain, everywhere, but_one)}) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([SIZE.format(40, 96, ""), ADAMW], "d_model that is a multiple of 16, not 40"),
        ([SIZE.format(32, 88, ""), ADAMW], "d_ffn that is a multiple of 16, not 88"),
        ([SIZE.format(32, 96, ""), "training.optimizer.name=muon"], "muon moves whole matrices"),
    ],
)
def test_what_cannot_be_sharded_is_refused(settings: list[str], message: str) -> None:
    study(settings)
    with pytest.raises(UserError, match=message):
        study([*settings, "cluster.sharded=true"])


def test_a_twin_of_a_model_that_computes_again_computes_with_its_own_weights() -> None:
    model = build(Shape("paper", 61, 32, 96, 2, 1, 2, 24, 100.0, tie_embeddings=False), seed=0)
    tokens = torch.arange(24)[None]
    plain = model(tokens)
    recompute_blocks(model)
    twin = model.twin()
    assert torch.equal(model(tokens), plain)
    for parameter in twin.parameters():
        parameter.data = torch.zeros_like(parameter)
    assert torch.equal(twin(tokens), torch.zeros_like(plain))
    twin(tokens).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in twin.parameters())
