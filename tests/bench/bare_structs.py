"""What study values are made of where msgspec is not installed: values of the same names that check nothing.

A GPU machine's image has torch and transformers and may have no way to install more; tests/bench/train_gpu.py needs no more of
losslens.specs than its defaults.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any


class Struct:
    """Fields are annotations; a field that is not given has its class's value."""

    def __init_subclass__(cls, **_: Any) -> None:
        super().__init_subclass__()

    def __init__(self, **given: Any) -> None:
        fields = {name for each in type(self).__mro__ for name in inspect.get_annotations(each)}
        missing = [name for name in fields if name not in given and not hasattr(type(self), name)]
        if missing or not given.keys() <= fields:
            raise TypeError(f"{type(self).__name__}: missing {missing}, unknown {sorted(given.keys() - fields)}")
        self.__dict__.update(given)


class Meta:
    """Bounds of an annotation."""

    def __init__(self, **_: Any) -> None: ...


def stand_in() -> None:
    """Let `import msgspec` find these. Before the first import of losslens."""
    module: Any = ModuleType("msgspec")
    module.Struct, module.Meta = Struct, Meta
    sys.modules["msgspec"] = module
