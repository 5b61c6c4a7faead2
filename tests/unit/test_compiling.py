"""Compiled passes: when, the same numbers, and what becomes of files that a kill left half written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from losslens.errors import EnvironmentFailure
from losslens.training import compiling
from losslens.training.compiling import WORTH, compiled, compiles

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_auto_compiles_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiles("auto", 1.0, GPU)
    assert compiles("auto", WORTH, CPU)
    assert not compiles("auto", WORTH, CPU, routed=True)
    assert compiles(True, WORTH, CPU, routed=True)
    assert not compiles("auto", WORTH / 2, CPU)
    assert compiles(True, 1.0, CPU)
    assert not compiles(False, 1e30, GPU)
    monkeypatch.setattr(compiling, "_has_compiler", lambda: False)
    assert not compiles("auto", WORTH, CPU)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(directory))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    torch.compiler.reset()
    return directory


def doubled_sine(x: Tensor) -> Tensor:
    return (x.sin() * 2).cumsum(0)


def in_a_process_of_its_own(kept: Path) -> str:
    """What a process says that compiles and compares; its compiled code stays in `kept`."""
    program = """
import torch
from torch._inductor import config
from losslens.training.compiling import compiled
from tests.unit.test_compiling import CPU, doubled_sine
config.cpp_cache_precompile_headers = False  # headers made once for many compilations
x = torch.linspace(0, 3, 64)
torch.testing.assert_close(compiled(doubled_sine, CPU)(x), doubled_sine(x))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


def test_damaged_code_is_compiled_again(kept: Path) -> None:
    assert "compiling again" not in in_a_process_of_its_own(kept)
    libraries = list(kept.rglob("*.so"))
    assert libraries
    for path in libraries:
        path.write_bytes(b"")  # as a kill leaves them
    assert "compiling again" in in_a_process_of_its_own(kept)
    assert all(path.stat().st_size for path in kept.rglob("*.so"))
    assert not list(kept.parent.glob("*.damaged-*"))


def test_without_a_compiler_the_error_says_what_to_do(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(EnvironmentFailure, match="No working C\\+\\+ compiler") as raised:
        compiled(doubled_sine, CPU)(torch.ones(8))
    assert "training.compile=false" in raised.value.remedy


def test_an_error_of_the_function_is_its_own(kept: Path) -> None:
    def wrong(x: Tensor) -> Tensor:
        return x @ torch.ones(3)

    with pytest.raises(Exception, match=r"size|shape|mat") as raised:
        compiled(wrong, CPU)(torch.ones(2, 2))
    assert not isinstance(raised.value, EnvironmentFailure)
