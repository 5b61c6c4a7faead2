"""Whether a run's passes are compiled, and how a compiled pass survives what happens to the files it is kept in.

torch.compile makes a pass 1.2 to 1.4 times as fast on a CPU and costs half a minute or more when nothing of that shape was compiled
before, two or three seconds when it was: compiled code is kept on disk, by torch, under the user's cache directory. A process killed
while it writes there leaves a file that cannot be loaded; then the directory is given up and made again.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from losslens.errors import EnvironmentFailure

logger = logging.getLogger(__name__)

# FLOPs of a run from which on compiling pays on a CPU: at 200 GFLOP/s about eight minutes, of which it saves some two.
WORTH = 1e14
_DIRECTORY = "TORCHINDUCTOR_CACHE_DIR"


def compiles(choice: bool | Literal["auto"], flops: float, device: torch.device, *, routed: bool = False) -> bool:
    """Whether a run of so many FLOPs compiles its passes: the same on all workers, since it decides about the last bits. A pass that is
    `routed` through experts depends on its data, so that nothing but pieces of it can be compiled: left as it is, unless asked for."""
    if choice != "auto":
        return choice
    return not routed and (device.type == "cuda" or (flops >= WORTH and _has_compiler()))


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`function` compiled for the shapes it is called with. On a CPU a pass becomes one call into C++, which spares a small model a tenth
    of its time and lets other threads run meanwhile.

    Raises, when called:
        EnvironmentFailure: it cannot be compiled here.
    """
    os.environ.setdefault(_DIRECTORY, str(default_directory()))
    inner = torch.compile(function, dynamic=False, options={"cpp_wrapper": device.type == "cpu"})

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return inner(*args, **kwargs)
        except Exception as error:
            if not _is_of_compiling(error):
                raise
            kept = Path(os.environ[_DIRECTORY])
            logger.warning("compiled code in %s is of no use (%s); compiling again", kept, _said(error))
            _give_up(kept)
            torch.compiler.reset()
        try:
            return inner(*args, **kwargs)
        except Exception as error:
            if not _is_of_compiling(error):
                raise
            raise EnvironmentFailure(
                f"a training pass cannot be compiled here: {_said(error)}", "install g++, or set training.compile=false"
            ) from error

    return call


def _is_of_compiling(error: Exception) -> bool:
    from torch._dynamo.exc import BackendCompilerFailed  # a second of importing that a run which does not compile is spared
    from torch._inductor.exc import InductorError

    return isinstance(error, InductorError | BackendCompilerFailed | ImportError)


def _said(error: Exception) -> str:
    """The first line of what went wrong, below the wrapping that says only that something did."""
    return str(getattr(error, "inner_exception", error)).partition("\n")[0]


def default_directory() -> Path:
    """Where compiled code is kept unless TORCHINDUCTOR_CACHE_DIR says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "losslens" / "compiled"


def _give_up(directory: Path) -> None:
    """Take the directory out of everybody's way at once, then delete it."""
    aside = directory.with_name(f"{directory.name}.damaged-{os.getpid()}")
    try:
        directory.rename(aside)
    except OSError:  # gone already: another worker met the same file
        return
    shutil.rmtree(aside, ignore_errors=True)


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name)
