"""Laws between settings that no single type can state: each broken one is one sentence with a remedy."""

from __future__ import annotations

from collections import Counter

from losslens.errors import UserError
from losslens.specs.study import FamilySpec, SizeSpec, SourceSpec, StudySpec, TrainingSpec

# Kernels compute the elements beyond the last whole vector in another way, which rounds otherwise; rows of this width have none.
WHOLE_VECTORS = 16


def validate(spec: StudySpec) -> StudySpec:
    """The spec itself when every law holds.

    Raises:
        UserError: naming the first setting that breaks a law.
    """
    if not spec.corpus.sources:
        raise UserError("the corpus has no sources", "give at least one entry under corpus.sources")
    if not spec.family.sizes:
        raise UserError("the family has no sizes", "give at least one entry under family.sizes")
    for source in spec.corpus.sources:
        _source(source)
    _distinct("source", [source_name(source) for source in spec.corpus.sources])
    for size in spec.family.sizes:
        _shape(size, spec.family)
        _budget(spec, size)
        _shards(spec, size)
    _tokenizer(spec)
    _cluster(spec)
    _tuning(spec)
    if spec.evaluation.cross_check:
        names = {size.name for size in spec.family.sizes}
        for wanted in spec.evaluation.cross_check.sizes:
            if wanted not in names:
                choice = f"choose from {', '.join(sorted(names))}"
                raise UserError(f"evaluation.cross_check names the size {wanted!r}, which the family lacks", choice)
    return spec


def source_name(source: SourceSpec) -> str:
    """The name under which a source's tokens and held-out losses are reported."""
    if source.name or source.generated:
        return str(source.name or source.generated)
    stem = str(source.path or source.hf).rstrip("/").rsplit("/", 1)[-1]
    return stem.split(".")[0].replace("*", "").strip("-_") or "source"


def _source(source: SourceSpec) -> None:
    if sum(kind is not None for kind in (source.path, source.hf, source.generated)) != 1:
        raise UserError("a corpus source must have exactly one of path, hf and generated", "split it into several sources")


def _distinct(what: str, names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"the {what} name {twice[0]!r} occurs twice", f"give each {what} a name of its own")


def _shape(size: SizeSpec, family: FamilySpec) -> None:
    if size.d_model % size.heads:
        raise UserError(
            f"size {size.name}: {size.heads} heads do not divide d_model {size.d_model}", "choose a number of heads that divides d_model"
        )
    if size.heads % (size.kv_heads or size.heads):
        raise UserError(
            f"size {size.name}: {size.kv_heads} key-value heads do not divide {size.heads} heads", "choose kv_heads that divides heads"
        )
    if family.architecture == "mixtral" and family.active_experts > family.experts:
        raise UserError(f"a token cannot go through {family.active_experts} of {family.experts} experts", "lower family.active_experts")
    head_dim = size.d_model // size.heads
    if head_dim % 4 and family.architecture != "mamba2":
        sentence = f"size {size.name}: rotary embedding on half a head needs a head size that is a multiple of 4, not {head_dim}"
        raise UserError(sentence, "change d_model or heads")


def _budget(spec: StudySpec, size: SizeSpec) -> None:
    training = spec.training
    if size.tokens is None and training.tokens is None and training.tokens_per_param is None:
        raise UserError(f"size {size.name} has no token budget", "set its tokens, training.tokens or training.tokens_per_param")
    batch_tokens = (size.global_batch or training.global_batch) * spec.corpus.seq_len
    for tokens in size.tokens or ((training.tokens,) if training.tokens else ()):
        if tokens < batch_tokens:
            raise UserError(
                f"size {size.name}: {tokens:,} tokens are less than one global batch of {batch_tokens:,} tokens",
                "raise tokens or lower global_batch",
            )


def _shards(spec: StudySpec, size: SizeSpec) -> None:
    if not (spec.cluster.sharded if size.sharded is None else size.sharded):
        return
    if spec.training.optimizer.name == "muon":
        sentence = f"size {size.name}: muon moves whole matrices, and sharded workers have rows of them"
        raise UserError(sentence, "set training.optimizer.name to adamw, lion or sgd, or cluster.sharded to false")
    for what, width in (("d_model", size.d_model), ("d_ffn", size.d_ffn)):
        if width % WHOLE_VECTORS:
            sentence = f"size {size.name}: a sharded run needs a {what} that is a multiple of {WHOLE_VECTORS}, not {width}"
            raise UserError(sentence, f"change {what}, or set cluster.sharded to false")


def _tokenizer(spec: StudySpec) -> None:
    tokenizer = spec.corpus.tokenizer
    if tokenizer.kind == "path" and not tokenizer.path:
        raise UserError("corpus.tokenizer.kind is path but no path is given", "set corpus.tokenizer.path to a tokenizer directory")
    if tokenizer.kind == "byte" and tokenizer.vocab_size not in (128, 257):
        raise UserError(f"a byte tokenizer cannot have {tokenizer.vocab_size} entries", "use vocab_size 128 (ASCII) or 257 (every byte)")
    if tokenizer.kind == "bpe" and tokenizer.vocab_size < 260:
        raise UserError(f"a BPE of {tokenizer.vocab_size} entries cannot hold the 256 bytes", "use a vocab_size of at least 260")


def _cluster(spec: StudySpec) -> None:
    low, high = spec.cluster.workers
    if low > high:
        raise UserError(f"cluster.workers [{low}, {high}] has a minimum above its maximum", "swap them")
    for size in spec.family.sizes:
        _shared_out(f"size {size.name}", size.global_batch or spec.training.global_batch, spec.training, high)


def _shared_out(what: str, batch: int, training: TrainingSpec, workers: int) -> None:
    micro = training.micro_batch_of(batch) or 1
    if workers > -(-batch // micro):
        pieces = f"in micro-batches of {micro}" if micro > 1 else "sequences"
        sentence = f"{what}: {workers} workers cannot share a global batch of {batch} {pieces}"
        raise UserError(sentence, "lower cluster.workers or training.micro_batch, or raise global_batch")


def _tuning(spec: StudySpec) -> None:
    tuning = spec.tuning
    if tuning is None:
        return
    if not tuning.sources:
        raise UserError("the tuning has no sources", "give at least one entry under tuning.sources")
    for source in tuning.sources:
        _source(source)
    _distinct("source", [source_name(source) for source in (*spec.corpus.sources, *tuning.sources)])
    if tuning.training.tokens is None or tuning.training.tokens_per_param is not None:
        raise UserError("a tuning has one largest amount for all sizes", "set tuning.training.tokens, and not tokens_per_param")
    batch_tokens = tuning.training.global_batch * spec.corpus.seq_len
    if tuning.training.tokens < batch_tokens:
        sentence = f"tuning: {tuning.training.tokens:,} tokens are less than one global batch of {batch_tokens:,} tokens"
        raise UserError(sentence, "raise tuning.training.tokens or lower tuning.training.global_batch")
    if tuning.training.branches:
        raise UserError("a tuning has no branches", "remove tuning.training.branches; its checkpoints are the amounts")
    _shared_out("tuning", tuning.training.global_batch, tuning.training, spec.cluster.workers[1])
