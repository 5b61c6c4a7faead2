"""Tokens a second, MFU, memory and kernels of the training loop on one GPU, at the paper's sizes. No Ray.

    python tests/bench/train_gpu.py [--sizes 1B,1.5B] [--compile on|off|both] [--out DIR]
    python tests/bench/train_gpu.py --device cpu --sizes tiny --seq-len 64 --sequences 4 --steps 3 --warm-up 1

Needs torch (2.11 or newer), transformers and this checkout; nothing has to be installed. Each size runs in a process of its own,
so one that fails is a row and the others go on; `--limit` seconds are shared by all. bf16 under autocast, float32 weights,
AdamW (fused), clipping; a step is --sequences of --seq-len random tokens, through `training/loop.py`'s `run`.

MFU is model FLOPs over the peak: 6 (N + V D) + 6 L T D a token (`families/shape.py`: 6 for each parameter outside the input
embedding, causal attention counted half), without what is computed again; the dense bf16 peak is 989 TFLOP/s of H100 and H200, 312 of
A100, or --peak. `pass` is how many sequences go through at once: as many as fit, found by halving, unless --micro-batch
says. `planned` is what `families/memory.py` foretells for eager torch, `peak` what torch allocated at most. Kernels are parts of
a step: the profiler's kernel times over the time of a step without the profiler; `idle` is the rest. On a CPU they are times of
operations in all threads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path
from types import ModuleType

REPO = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(REPO / "platform"))  # a checkout is enough
    sys.modules["tests"] = ModuleType("tests")  # this one, even where something called `tests` is installed
    sys.modules["tests"].__path__ = [str(REPO / "tests")]
try:
    import msgspec  # noqa: F401 - losslens.specs does
except ModuleNotFoundError:
    from tests.bench import bare_structs

    bare_structs.stand_in()

import torch  # noqa: E402 - losslens has to be found first

from tests.bench.gpu_step import BACKENDS, Row, Setting, measured, peak_of, shapes  # noqa: E402
from tests.bench.kernel_classes import CLASSES  # noqa: E402

SIZES = "1B,1.5B,540M,300M,3B"  # those with an aim first, should time run out
OWN = frozenset(field.name for field in fields(Setting))


def main() -> None:
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    given = arguments()
    if given.one:
        print(json.dumps(asdict(one(Setting(**json.loads(given.one))))))
        return
    ends = time.monotonic() + given.limit
    about = machine(given)
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    print(head())
    rows = []
    for compiled in {"on": (True,), "off": (False,), "both": (True, False)}[given.compile]:
        for size in given.sizes:
            rows.append(alone(setting_of(given, size, compiled), ends))
            print(line(rows[-1]))
    if given.out:
        write(given.out, about, rows)
    if all(row.error for row in rows):
        sys.exit(3)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=SIZES, type=lambda text: text.split(","))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else None)
    parser.add_argument("--compile", choices=("on", "off", "both"), default="on")
    parser.add_argument("--sequences", type=positive, default=16, help="of a step")
    parser.add_argument("--micro-batch", type=positive, dest="most", help="sequences of a pass")
    parser.add_argument("--seq-len", type=positive, default=2048)
    parser.add_argument("--steps", type=positive, default=10)
    parser.add_argument("--warm-up", type=positive, default=4, help="steps; they compile, and find what fits")
    parser.add_argument("--sdpa", choices=("default", *BACKENDS), default="default", help="attention's kernel")
    parser.add_argument("--peak", type=float, help="TFLOP/s")
    parser.add_argument("--sync-check", action="store_true", help="name the lines that make the host wait for the device")
    parser.add_argument("--deterministic", action="store_true", help="torch.use_deterministic_algorithms")
    parser.add_argument("--bits", action="store_true", help="train four steps twice and compare them bit by bit")
    parser.add_argument("--limit", type=float, default=570.0, help="seconds for all sizes")
    parser.add_argument("--out", type=Path, help="folder for train_gpu.json and train_gpu.txt")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    unknown = [size for size in given.sizes if size not in shapes(given.seq_len)]
    if unknown:
        parser.error(f"there is no size {unknown[0]}: take {', '.join(shapes(given.seq_len))}")
    if not given.device:
        parser.error("torch sees no GPU: --device cpu --sizes tiny tries the path without one")
    return given


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return int(text)


def setting_of(given: argparse.Namespace, size: str, compiled: bool) -> Setting:
    name = torch.cuda.get_device_name(given.device) if given.device.startswith("cuda") else ""
    peak = given.peak * 1e12 if given.peak else peak_of(name)
    own = {name: value for name, value in vars(given).items() if name in OWN}
    return Setting(**own | {"size": size, "compiled": compiled, "peak": peak})


def machine(given: argparse.Namespace) -> dict[str, object]:
    cuda = given.device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(given.device) if cuda else f"CPU, {torch.get_num_threads()} threads",
        "memory": f"{torch.cuda.get_device_properties(given.device).total_memory / 1e9:.0f} GB" if cuda else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "flops": "6 (N + V D) + 6 L T D a token",
        "command": " ".join(sys.argv),
    }


def alone(setting: Setting, ends: float) -> Row:
    """One size in a process of its own, which may fail or run out of time."""
    left = ends - time.monotonic()
    if left <= 0:
        return Row(setting.size, setting.compiled, error="no time was left")
    environment = os.environ | ({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if setting.deterministic else {})
    command = [sys.executable, __file__, "--device", setting.device, "--one", json.dumps(asdict(setting))]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=left, check=False, env=environment)
    except subprocess.TimeoutExpired:
        return Row(setting.size, setting.compiled, error=f"not done in the {left:.0f} s that were left")
    try:
        return Row(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, json.JSONDecodeError):
        return Row(setting.size, setting.compiled, error=f"the process ended with status {done.returncode}")


def one(setting: Setting) -> Row:
    """One size in this process; whatever goes wrong is its row."""
    try:
        return measured(setting)
    except Exception as error:  # the other sizes are to run
        text = str(error).strip().splitlines() or [""]
        return Row(setting.size, setting.compiled, error=f"{type(error).__name__}: {text[0]}")


def head() -> str:
    kernels = "".join(f"{kind.split('/')[0][:9]:>10}" for kind in CLASSES)
    figures = f"{'pass':>6}{'step s':>8}{'tokens/s':>10}{'MFU %':>7}{'peak GB':>9}{'planned':>8}"
    return f"{'size':6}{'compile':>8}{figures}{kernels}  % of a step; attention"


def line(row: Row) -> str:
    start = f"{row.size:6}{'on' if row.compiled else 'off':>8}"
    if row.error or row.kernels is None:
        return f"{start}  {row.error}"
    mfu = f"{100 * row.mfu:.1f}" if row.mfu else "-"
    peak = f"{row.peak_memory / 1e9:.1f}" if row.peak_memory else "-"
    figures = f"{row.sequences_per_pass:6}{row.step_seconds:8.3f}{row.tokens_per_second:10,.0f}{mfu:>7}{peak:>9}"
    planned = f"{(row.predicted_memory or 0) / 1e9:8.1f}"
    kernels = "".join(f"{100 * row.kernels[kind]:10.1f}" for kind in CLASSES)
    more = [f"waits at {', '.join(f'{place} x {n}' for place, n in row.synchronisations.items())}"] if row.synchronisations else []
    more += [f"bits {'the same' if row.same_bits else 'differ'}"] if row.same_bits is not None else []
    return f"{start}{figures}{planned}{kernels}  {'; '.join([', '.join(row.sdpa), *more])}"


def write(folder: Path, about: dict[str, object], rows: list[Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found = {"machine": about, "rows": [asdict(row) for row in rows]}
    (folder / "train_gpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (folder / "train_gpu.txt").write_text("\n".join([head(), *map(line, rows)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
