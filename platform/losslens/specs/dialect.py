"""The YAML of study files: PyYAML's, except that `1e-3` is a number and a key may not occur twice.

PyYAML follows YAML 1.1, where a float needs a dot and a signed exponent, and keeps the last of equal keys in silence.
The dumper knows the same numbers, so that a name such as '1e3' is written in quotes and read back as text.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_BREAKS = frozenset("\x85\u2028\u2029")  # line breaks to YAML, which folds them into spaces unless they are escaped
_EXPONENT = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)[eE][-+]?\d+$")


class Loader(yaml.SafeLoader):
    """Reads a study."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of `node`; a `yaml.constructor.ConstructorError` when a key occurs twice or is a list or a mapping."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a plain word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} occurs twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """Writes a study."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Text, in double quotes where only their escapes keep it."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if _BREAKS & set(data) else None)


Dumper.add_representer(str, Dumper.represent_str)

for _dialect in (Loader, Dumper):
    _dialect.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def read(text: str) -> Any:
    """The value that `text` denotes.

    Raises:
        yaml.YAMLError: malformed YAML, a key that occurs twice, or a date that no calendar has.
    """
    try:
        return yaml.load(text, Loader=Loader)
    except ValueError as error:
        raise yaml.MarkedYAMLError(problem=str(error)) from error


def write(value: Any) -> str:
    """`value` as YAML that `read` reads back, keys in the order given."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True)
