"""A study over architectures, optimizers, tokenizers, ...: each combination of levels is a study of its own within it.

    variants:
      architecture:
        llama: {family.architecture: llama}
        mixtral: {family.architecture: mixtral, family.sizes.d48.d_ffn: 64}
      optimizer:
        adamw: {training.optimizer: {name: adamw, lr: 3e-3}}
        muon: {training.optimizer: {name: muon, lr: 1.4e-2}}

Four variants. A key is what `--set` takes; a mapping replaces a whole part. Runs of all variants share the study's results, tasks
and tables, where `runs.variant` says `architecture=llama,optimizer=muon`.
"""

from __future__ import annotations

from itertools import product

import msgspec

from losslens.errors import UserError
from losslens.specs.load import converted, put
from losslens.specs.study import StudySpec
from losslens.specs.validate import validate

_VARY = ("corpus", "family", "training")


def variants(spec: StudySpec) -> dict[str, StudySpec]:
    """The study of each variant by its name, `factor=level,factor=level`; a study without variants is its own, under no name.

    Raises:
        UserError: a key that variants cannot set or the study lacks, a value it cannot take, or rows of different length.
    """
    if not spec.variants:
        return {"": spec}
    for factor, levels in spec.variants.items():
        if not levels:
            raise UserError(f"the variants {factor!r} have no levels", f"give it at least one: variants.{factor}.NAME={{KEY: VALUE}}")
    chosen = product(*([(factor, level) for level in levels] for factor, levels in spec.variants.items()))
    return {",".join(f"{factor}={level}" for factor, level in levels): _variant(spec, levels) for levels in chosen}


def levels_of(variant: str | None) -> dict[str, str]:
    """Level by factor of a variant's name."""
    return dict(part.split("=", 1) for part in variant.split(",")) if variant else {}


def _variant(spec: StudySpec, levels: tuple[tuple[str, str], ...]) -> StudySpec:
    raw = msgspec.json.decode(msgspec.json.encode(msgspec.structs.replace(spec, variants={})))  # lists, which can be written to
    for factor, level in levels:
        for key, value in spec.variants[factor][level].items():
            where = f"variants.{factor}.{level}: {key}"
            if key.partition(".")[0] not in _VARY:
                raise UserError(f"{where} cannot vary within a study", f"set a key of {', '.join(_VARY)}")
            put(raw, key, value, where)
    made = validate(converted(raw))
    if made.corpus.seq_len != spec.corpus.seq_len:
        raise UserError("variants differ in corpus.seq_len, and tasks are made for rows of one length", "give all variants the same")
    return made
