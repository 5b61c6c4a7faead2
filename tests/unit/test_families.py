"""The paper's tables, and the laws of plans."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.plan import Hardware, memory_rows, plan
from losslens.errors import UserError
from losslens.families import PlannedRun, Shape, checkpoint_steps, planned_runs
from losslens.families.fit import GPUS, USABLE, fits, layout_on, memory_of, smallest, tokens_per_second
from losslens.families.memory import Layout, sharded
from losslens.specs import CheckpointsSpec, TrainingSpec, load_study

# Tables 4 and 5 of arXiv 2403.15796: size, d_model, d_ffn, heads, layers, sequences a batch, peak rate, budgets in B tokens.
PAPER = [
    ("1.5B", 2048, 6912, 16, 24, 1344, 5e-4, [3000]),
    ("6B", 4096, 13696, 32, 28, 4224, 4e-4, [3000]),
    ("32B", 6656, 22272, 52, 58, 8832, 3e-4, [2500]),
    ("300M", 1152, 3840, 9, 12, 1152, 2.8e-3, [67, 125, 250, 500]),
    ("540M", 1536, 5120, 12, 12, 1152, 2e-3, [33, 66, 125, 250, 500]),
    ("1B", 2048, 6912, 16, 16, 1152, 1.5e-3, [33, 67, 125, 250, 500]),
    ("1.5B", 2048, 6912, 16, 24, 1152, 1e-3, [67, 100, 125, 250, 375, 500]),
    ("3B", 3072, 10240, 24, 24, 1152, 7e-4, [67, 125, 250, 500]),
    ("6B", 4096, 13696, 32, 28, 1152, 4e-4, [33, 67, 125, 250]),
]
BILLIONS = {"300M": 0.35, "540M": 0.55, "1B": 1.10, "1.5B": 1.51, "3B": 3.16, "6B": 6.24, "32B": 32.0}


@pytest.fixture(scope="module")
def paper() -> tuple[PlannedRun, ...]:
    """The paper's runs."""
    return planned_runs(load_study("paper"))


def test_the_papers_tables(paper: tuple[PlannedRun, ...]) -> None:
    expected = [(*row[:-1], budget) for row in PAPER for budget in row[-1]]
    planned = [
        (r.size, r.shape.d_model, r.shape.d_ffn, r.shape.heads, r.shape.layers, r.global_batch, r.peak_lr, round(r.tokens / 1e9))
        for r in paper
    ]
    assert len(planned) == 31
    assert planned == expected


def test_the_papers_parameters(paper: tuple[PlannedRun, ...]) -> None:
    for run in paper:
        assert run.shape.params / 1e9 == pytest.approx(BILLIONS[run.size], abs=0.0055)


def test_parameters_by_counting_matrices(paper: tuple[PlannedRun, ...]) -> None:
    """32B, matrix by matrix: head size 128, two key-value heads, 65,024 rows, untied."""
    shape = next(run.shape for run in paper if run.size == "32B")
    attention = 6656 * 52 * 128 + 2 * 6656 * 2 * 128 + 52 * 128 * 6656
    block = attention + 3 * 6656 * 22272 + 6656 + 6656
    assert shape.params_non_embedding == 58 * block + 6656
    assert shape.params == shape.params_non_embedding + 2 * 65024 * 6656


def test_flops_by_matrix_products(paper: tuple[PlannedRun, ...]) -> None:
    """2 FLOPs per multiply-accumulate forward and twice that backward; gains are counted as if they multiplied too."""
    for run in paper:
        s = run.shape
        matrices = s.layers * (2 * s.d_model**2 + 2 * s.d_model * s.kv_heads * 128 + 3 * s.d_model * s.d_ffn) + 65024 * s.d_model
        gains = (2 * s.layers + 1) * s.d_model
        mean_context = s.seq_len / 2  # causal: a token sees half the sequence on average
        attention = s.layers * 2 * mean_context * s.d_model  # scores and values
        assert s.flops_per_token == pytest.approx(3 * 2 * (matrices + gains + attention))
        assert run.flops == pytest.approx(s.flops_per_token * run.steps * run.global_batch * 2048)


def test_main_runs_take_the_papers_days(paper: tuple[PlannedRun, ...]) -> None:
    """8, 8 and 20 days on 256, 1,024 and 2,048 A100s, within what the reported days round to."""
    reported = {"1.5B": 8 * 24 * 256, "6B": 8 * 24 * 1024, "32B": 20 * 24 * 2048}
    for run in paper[:3]:
        assert run.accelerator_hours() == pytest.approx(reported[run.size], rel=0.15)


def test_identities(paper: tuple[PlannedRun, ...]) -> None:
    assert len({run.run_id for run in paper}) == 31
    same = planned_runs(load_study("paper", ["evaluation.limit=5", "cluster.train_slots=1", "results=elsewhere"]))
    assert [run.run_id for run in same] == [run.run_id for run in paper]
    other = planned_runs(load_study("paper", ["training.optimizer.weight_decay=0.2"]))
    assert not {run.run_id for run in other} & {run.run_id for run in paper}


def test_seeds_multiply_runs_and_equal_runs_are_refused() -> None:
    assert len(planned_runs(load_study("paper", ["seeds=2"]))) == 62
    with pytest.raises(UserError, match="is planned twice"):
        planned_runs(load_study("paper", ["family.sizes.300M.tokens=[67B, 67B]"]))


def test_rates_move_with_width() -> None:
    wide = ["training.optimizer={lr: 8e-3, reference_width: 2048, width_exponent: 0.5}", "family.sizes.0.peak_lr=null"]
    first = planned_runs(load_study("paper", [*wide, "family.sizes.0.d_model=8192"]))[0]
    assert first.peak_lr == pytest.approx(8e-3 / 2)


def test_budgets_are_whole_batches(paper: tuple[PlannedRun, ...]) -> None:
    for run in paper:
        assert run.tokens == run.steps * run.batch_tokens
        assert run.checkpoints[-1] == run.steps


@given(
    spacing=st.sampled_from(["even", "log"]),
    count=st.integers(1, 200),
    first_step=st.integers(1, 1000),
    initial=st.booleans(),
    steps=st.integers(1, 10**7),
)
def test_checkpoint_steps(spacing: str, count: int, first_step: int, initial: bool, steps: int) -> None:
    spec = CheckpointsSpec(spacing=spacing, count=count, first_step=first_step, initial=initial)  # type: ignore[arg-type]
    saved = checkpoint_steps(spec, steps)
    trained = saved[1:] if initial else saved
    assert list(saved) == sorted(set(saved))
    assert (saved[0] == 0) == initial
    assert saved[-1] == steps
    assert 1 <= len(trained) <= count
    assert trained[0] >= 1
    if spacing == "even":
        gaps = [b - a for a, b in zip((0, *trained), trained, strict=False)]
        assert len(trained) == min(count, steps)
        assert max(gaps) - min(gaps) <= 1 + (count > steps)
    elif count > 1:
        assert trained[0] == min(first_step, steps)


TRAINING = load_study("paper").training
AVERAGED = load_study("paper", ["training.schedule.average=0.99", "training.optimizer.name=muon"]).training
EXACT = load_study("paper", ["training.micro_batch=4", "cluster.workers=[1, 8]"]).training
shapes = st.builds(
    lambda head, kv, group, f, layers, t, v, tie: Shape("paper", v, head * kv * group, 8 * f, kv * group, kv, layers, t, 1e4, tie),
    head=st.sampled_from([8, 64, 128]), kv=st.integers(1, 8), group=st.integers(1, 8), f=st.integers(1, 4000),
    layers=st.integers(1, 100), t=st.integers(1, 10**5), v=st.integers(1, 2 * 10**5), tie=st.booleans(),
)  # fmt: skip
layouts = st.builds(
    Layout, gpus=st.integers(1, 4096), tensor=st.sampled_from([1, 2, 4, 8]), micro_batch=st.integers(1, 64), recompute=st.booleans()
)
trainings = st.sampled_from([TRAINING, AVERAGED, EXACT])


@given(shape=shapes, training=trainings, layout=layouts, more=st.integers(1, 4096))
def test_more_gpus_never_need_more_memory_each(shape: Shape, training: TrainingSpec, layout: Layout, more: int) -> None:
    few, many = sharded(shape, training, layout), sharded(shape, training, replace(layout, gpus=layout.gpus + more))
    assert many.total <= few.total
    assert many.gathered == few.gathered  # whole layers do not shrink with GPUs, unless these share layers


@given(shape=shapes, training=trainings, layout=layouts, longer=st.integers(1, 10**5))
def test_longer_sequences_never_need_less(shape: Shape, training: TrainingSpec, layout: Layout, longer: int) -> None:
    stretched = replace(shape, seq_len=shape.seq_len + longer)
    assert sharded(stretched, training, layout).total >= sharded(shape, training, layout).total  # equal where no activations are left


@given(shape=shapes, training=trainings, layout=layouts)
def test_sharing_layers_and_computing_again_never_need_more(shape: Shape, training: TrainingSpec, layout: Layout) -> None:
    whole = sharded(shape, training, replace(layout, tensor=1, recompute=False))
    assert sharded(shape, training, replace(layout, recompute=False)).activations <= whole.activations
    stored, again = (sharded(shape, training, replace(layout, recompute=r)).activations for r in (False, True))
    inputs = layout.micro_batch * shape.seq_len * 4 * shape.d_model  # of the one block whose input is kept and computed from
    assert again <= stored + inputs


def test_states_by_counting_bytes(paper: tuple[PlannedRun, ...]) -> None:
    """16 bytes a parameter under AdamW (4 weights, 4 gradients, 8 moments); Muon keeps one moment of matrices; averages and sums add."""
    shape = paper[0].shape
    states = [sharded(shape, training, Layout(1)) for training in (TRAINING, AVERAGED, EXACT)]
    kept = [part.weights + part.gradients + part.optimizer + part.average + part.sums for part in states]
    assert kept == [16 * shape.params, 20 * shape.params - 4 * shape.params_non_embedding, 24 * shape.params]
    lion = load_study("paper", ["training.optimizer.name=lion"]).training
    assert sharded(shape, lion, Layout(1)).optimizer == 4 * shape.params


def test_activations_of_the_papers_block_by_counting_tensors(paper: tuple[PlannedRun, ...]) -> None:
    """1.5B, a token in a block: two norms, q k v with two key-value heads, rotated q k, output, gate, up, silu(gate), their product."""
    norms = 2 * (4 * 2048 + 4 + 2 * 2048)
    attention = 2 * (2048 + 2 * 256) + 2 * (2048 + 256) + 2 * 2048 + 4 * 16
    block = norms + attention + 2 * 4 * 6912
    assert sharded(paper[0].shape, TRAINING, Layout(1)).activations == 2048 * (24 * block + 6 * 2048 + 4)
    again = sharded(paper[0].shape, TRAINING, Layout(1, recompute=True)).activations
    assert again == 2048 * (24 * 4 * 2048 + block + 6 * 2048 + 4)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_one_gpu_fewer_does_not_fit(paper: tuple[PlannedRun, ...], gpu: object) -> None:
    for run in paper:
        for recompute in (False, True):
            layout = smallest(run, TRAINING, gpu, recompute=recompute)  # type: ignore[arg-type]
            assert layout is not None
            assert layout.tensor == 1
            assert fits(run, TRAINING, layout, gpu)  # type: ignore[arg-type]
            assert layout.gpus == 1 or not fits(run, TRAINING, replace(layout, gpus=layout.gpus - 1), gpu)  # type: ignore[arg-type]


def test_layers_are_shared_where_they_must_be(paper: tuple[PlannedRun, ...]) -> None:
    h100 = GPUS["h100"]
    large, small = paper[1], next(run for run in paper if run.size == "300M")
    too_many = 2 * large.global_batch
    assert layout_on(large, TRAINING, h100, too_many) == Layout(too_many, tensor=2, micro_batch=1)
    assert layout_on(small, TRAINING, h100, 2 * small.global_batch) is None  # nine heads are not halved
    deep = replace(large, shape=replace(large.shape, d_model=2 * 12288, d_ffn=4 * 24576, heads=192, kv_heads=8, layers=96))
    shared = smallest(deep, TRAINING, h100)
    assert shared is not None
    assert shared.tensor > 1
    assert memory_of(deep, TRAINING, shared).total <= USABLE * h100.memory
    endless = replace(large, shape=replace(large.shape, seq_len=10**8))
    assert smallest(endless, TRAINING, h100) is None
    one = "family.sizes=[{name: x, tokens: [3T], d_model: 2048, d_ffn: 6912, heads: 16, layers: 24, global_batch: 8}]"
    (row,) = plan(load_study("paper", [one, "corpus.seq_len=20000000", "cluster.workers=[1, 1]"]))
    assert (row["gpus"], row["min_h200"], row["memory_gb"]) == (None, None, None)


def test_rate_time_and_cost(paper: tuple[PlannedRun, ...]) -> None:
    run, h100 = paper[0], GPUS["h100"]
    assert tokens_per_second(run, h100, Layout(8), 0.5) == pytest.approx(8 * 989e12 * 0.5 / run.shape.flops_per_token)
    again = tokens_per_second(run, h100, Layout(8, recompute=True), 0.5) / tokens_per_second(run, h100, Layout(8), 0.5)
    assert 3 / 4 < again < 0.82  # a fourth forward pass of three, without the head
    row = plan(load_study("paper"), Hardware("h200", 64, 0.5, 3.0))[0]
    assert row["days"] == pytest.approx(run.tokens / tokens_per_second(run, GPUS["h200"], Layout(64), 0.5) / 86400)
    assert row["cost_usd"] == pytest.approx(row["days"] * 24 * 64 * 3.0)  # type: ignore[operator]
    assert plan(load_study("paper"))[0]["cost_usd"] is None


def test_the_parts_are_the_whole() -> None:
    rows = plan(load_study("paper", ["training.schedule.average=0.999"]))
    parts = ("weights", "gradients", "optimizer", "average", "sums", "gathered", "activations", "workspace")
    for row in rows:
        assert row["memory_gb"] == pytest.approx(sum(row[f"{part}_gb"] for part in parts))  # type: ignore[misc]
        assert row["activations_gb"] == row[f"activations_{'recomputed' if row['recompute'] else 'stored'}_gb"]
        assert row["average_gb"] == row["weights_gb"]
    assert [(row["size"], row["global_batch"]) for row in memory_rows(rows)][:4] == [
        ("1.5B", 1344),
        ("6B", 4224),
        ("32B", 8832),
        ("300M", 1152),
    ]


def test_more_gpus_than_sequences_are_refused() -> None:
    with pytest.raises(UserError, match="keep 1,000,000 GPUs busy"):
        plan(load_study("paper"), Hardware(gpus=1_000_000))
    rows = plan(load_study("paper"), Hardware(gpus=8832))
    assert {row["size"] for row in rows if row["gpus"]} == {"6B", "32B", "1B", "1.5B", "3B"}  # by halves, fourths, eighths of layers
