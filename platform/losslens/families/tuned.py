"""The run that tunes a checkpoint: what follows from the study's part `tuning` and from the checkpoint.

One run gives the whole curve over amounts of tuning data: its checkpoints are the amounts, and its step 0, the checkpoint itself, is
the amount 0. It belongs to a study of its own, `<study>-tuned`, so that no analysis of the study takes it for a pretraining run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from losslens.errors import UserError
from losslens.families.plan import Origin, PlannedRun, checkpoint_steps, rate_at, short
from losslens.families.shape import Shape
from losslens.specs import SourceSpec, StudySpec, TokenizerSpec, fingerprint
from losslens.specs.validate import WHOLE_VECTORS


@dataclass(frozen=True, slots=True)
class Parent:
    """A checkpoint to be tuned. `label` names it among others, such as `d48-2M-s0-at120k`; `tokenizer` makes its own again, and
    `tokenizer_sha256` is that of its file; `sharded` and `recompute` say how its tuning is to be trained."""

    origin: Origin
    label: str
    size: str
    shape: Shape
    tokenizer: TokenizerSpec
    tokenizer_sha256: str
    variant: str = ""
    sharded: bool = False
    recompute: bool = False


def tuned_study(spec: StudySpec, tokenizer: TokenizerSpec) -> StudySpec:
    """The study that tuning runs are trained and scored by: that of their parents, with the corpus and the training of its part
    `tuning`. `keep` of the tokens come from the parents' sources, in their proportions; with 0 these are left out."""
    assert spec.tuning
    tuning = spec.tuning
    kept = _scaled(spec.corpus.sources, tuning.keep) if tuning.keep else ()
    return msgspec.structs.replace(
        spec,
        name=f"{spec.name}-tuned",
        corpus=msgspec.structs.replace(spec.corpus, sources=(*kept, *_scaled(tuning.sources, 1 - tuning.keep)), tokenizer=tokenizer),
        training=tuning.training,
        evaluation=msgspec.structs.replace(spec.evaluation, cross_check=None),
        tuning=None,
        variants={},
    )


def tuned_run(spec: StudySpec, parent: Parent) -> PlannedRun:
    """The run that tunes `parent`; `spec` is the study (variant) that it belongs to.

    Raises:
        UserError: the model takes rows of another length, or cannot be spread over workers as it should be.
    """
    assert spec.tuning and spec.tuning.training.tokens
    training, budget, shape = spec.tuning.training, spec.tuning.training.tokens, parent.shape
    if shape.seq_len != spec.corpus.seq_len:
        sentence = f"the checkpoint {parent.origin.checkpoint_id} takes sequences of {shape.seq_len:,} tokens, not {spec.corpus.seq_len:,}"
        raise UserError(sentence, f"set corpus.seq_len={shape.seq_len} in a study of its own")
    if parent.sharded:
        _spreads(parent, training.optimizer.name)
    batch_tokens = training.global_batch * shape.seq_len
    steps = budget // batch_tokens
    lr = rate_at(training.optimizer, shape.d_model)
    # Where the tokenizer lies says nothing; what it is does.
    corpus = tuned_study(spec, TokenizerSpec()).corpus
    identity = fingerprint(corpus, parent.tokenizer_sha256, training, repr(shape), parent.origin.weights_sha256, repr(lr), spec.seed)
    study = f"{spec.name}-tuned"
    return PlannedRun(
        study=study,
        run_id=f"{study}-{parent.label}-{short(budget)}-{identity[:8]}",
        size=parent.size,
        seed=spec.seed,
        shape=shape,
        tokens=steps * batch_tokens,
        steps=steps,
        global_batch=training.global_batch,
        peak_lr=lr,
        checkpoints=checkpoint_steps(training.checkpoints, steps),
        micro_batch=training.micro_batch_of(training.global_batch),
        variant=parent.variant,
        sharded=parent.sharded,
        recompute=parent.recompute,
        origin=parent.origin,
    )


def _scaled(sources: Sequence[SourceSpec], share: float) -> tuple[SourceSpec, ...]:
    """The sources with weights that sum to `share`."""
    total = sum(source.weight for source in sources)
    return tuple(msgspec.structs.replace(source, weight=source.weight / total * share) for source in sources)


def _spreads(parent: Parent, optimizer: str) -> None:
    what = f"the tuning of {parent.origin.checkpoint_id} cannot be sharded"
    if optimizer == "muon":
        raise UserError(f"{what}: muon moves whole matrices", "set tuning.training.optimizer.name to adamw, lion or sgd")
    for width in (parent.shape.d_model, parent.shape.d_ffn):
        if width % WHOLE_VECTORS:
            raise UserError(f"{what}: its width {width} is no multiple of {WHOLE_VECTORS}", "set cluster.sharded to false")
