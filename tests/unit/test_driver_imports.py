"""What the driver and the controller of a run import: seconds of the way to the first step."""

from __future__ import annotations

import pickle
import subprocess
import sys

from losslens.training.rendezvous import TorchGroup

# A controller imports what the trainer hands to it is made of: this module, and the group's settings.
LOADED = """
import pickle, sys
import jobs.pretrain, losslens.training.elastic, losslens.training.leaving
group = pickle.loads(bytes.fromhex(sys.argv[1]))
group.backend_cls(), group.train_func_context
print(*(name for name in ("torch", "transformers", "duckdb") if name in sys.modules))
"""


def test_neither_the_driver_nor_the_controller_imports_torch(environment: dict[str, str]) -> None:
    group = pickle.dumps(TorchGroup("gloo", 60)).hex()
    done = subprocess.run([sys.executable, "-c", LOADED, group], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
