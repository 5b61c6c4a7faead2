"""StudySpec: one frozen, complete, typed value that says everything about an experiment.

Every class is a frozen `msgspec.Struct` that forbids unknown keys: msgspec validates types and bounds, `load.py` turns
its complaints into one sentence with a remedy. Units: lengths in tokens, batches in sequences, rates per step.
"""

from __future__ import annotations

from sys import float_info
from typing import Annotated, Any, Literal

import msgspec

Positive = Annotated[int, msgspec.Meta(gt=0)]
NonNegative = Annotated[int, msgspec.Meta(ge=0)]
Seed = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Rate = Annotated[float, msgspec.Meta(gt=0, le=float_info.max)]
Real = Annotated[float, msgspec.Meta(ge=-float_info.max, le=float_info.max)]  # canonical text has no infinity
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Level = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]*$")]  # part of run_id; `-`, `=` and `,` are between levels
TASK_FILES = (".yaml", ".yml")  # how a task ends that is a file
Architecture = Literal["paper", "llama", "gpt_neox", "mixtral", "mamba2"]


def task_and_format(entry: str) -> tuple[str, str | None]:
    """What an entry of `tasks` asks for: a task's name or the file that declares it, and one of its formats (None: each it has)."""
    task, colon, format = entry.rpartition(":")
    return (task, format) if colon and not entry.endswith(TASK_FILES) else (entry, None)


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every part of a study."""


class SourceSpec(Part, frozen=True, kw_only=True):
    """Where documents come from: exactly one of `path` (a file, folder or glob), `hf` (a Hugging Face dataset
    directory) or `generated` (`stdlib` or the name of a generated skill)."""

    path: str | None = None
    hf: str | None = None
    generated: str | None = None
    name: Name | None = None  # of the source in tables; null: taken from path, hf or generated
    weight: Rate = 1.0  # share of the training tokens, relative to the other sources
    split: str = "train"  # of a Hugging Face dataset; CONFIGURATION/SPLIT where its README.md declares several
    text_column: str = "text"  # or a template of columns: "{prompt}\n{response}"
    where: dict[str, str] = {}  # keep rows whose column equals the value, such as {lang: zh}


class TokenizerSpec(Part, frozen=True, kw_only=True):
    """`byte` (vocab_size 128 keeps ASCII only, 257 every byte), `bpe` (byte-level BPE trained on the corpus) or
    `path` (an existing Hugging Face tokenizer directory)."""

    kind: Literal["byte", "bpe", "path"] = "byte"  # see above
    vocab_size: Positive = 257  # rows of the embedding; a tokenizer from `path` needs as many as it has entries
    path: str | None = None
    training_bytes: Positive = 50_000_000  # text that a BPE is trained on


class HoldoutSpec(Part, frozen=True, kw_only=True):
    """Documents whose hash falls below `fraction` never enter training; the first `rows` packed sequences of them
    per source are the held-out set."""

    fraction: Fraction = 0.02
    rows: Positive = 64


class CorpusSpec(Part, frozen=True, kw_only=True):
    """Sources, tokenizer and packing."""

    sources: tuple[SourceSpec, ...]
    tokenizer: TokenizerSpec = TokenizerSpec()
    seq_len: Positive = 2048  # tokens of a row, which is what a model reads at once
    holdout: HoldoutSpec = HoldoutSpec()


class SizeSpec(Part, frozen=True, kw_only=True):
    """One size of the family. `tokens` lists one or more budgets: one run for each."""

    name: Name  # what runs and figures call it
    d_model: Positive  # width
    d_ffn: Positive  # inner width of the feed-forward part
    heads: Positive  # attention heads; they divide d_model
    layers: Positive  # blocks
    kv_heads: Positive | None = None  # default: as many as heads
    tokens: tuple[Positive, ...] | None = None
    global_batch: Positive | None = None  # null: as `training.global_batch`
    peak_lr: Rate | None = None  # null: as `training.optimizer` gives for its width
    sharded: bool | None = None  # null: as `cluster.sharded`
    recompute: bool | None = None  # null: as `cluster.recompute`


class FamilySpec(Part, frozen=True, kw_only=True):
    """The sizes and what they share."""

    architecture: Architecture = "paper"  # see docs/VARIANTS.md
    sizes: tuple[SizeSpec, ...]
    rope_base: Rate = 10_000.0  # of rotary positions; smaller suits short rows
    tie_embeddings: bool = False  # one matrix for embedding and head
    initialisation: Literal["fan_in", "normal"] = "fan_in"  # fan_in: see models/build.py; normal: std 0.02
    experts: Positive = 8  # mixtral: of a layer, each of width d_ffn
    active_experts: Positive = 2  # mixtral: that a token goes through
    state_size: Positive = 64  # mamba2: of each of its 2 d_model channels, which the heads share out; d_ffn has no meaning there


class OptimizerSpec(Part, frozen=True, kw_only=True):
    """`lr` is the peak rate of hidden matrices at `reference_width`; other widths d use lr * (reference_width / d) **
    width_exponent. Without a reference width every size uses `lr` (or its own `peak_lr`). `name` is what moves hidden
    matrices, and all else too unless that is AdamW's at `adam_lr`; see docs/TRAINING.md."""

    name: Literal["adamw", "muon", "lion", "sgd"] = "adamw"
    lr: Rate = 3e-4
    reference_width: Positive | None = None
    width_exponent: Real | None = None  # null: 1 for adamw and lion, 0 for sgd and muon
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)  # AdamW and Lion
    eps: Rate = 1e-8  # of AdamW
    weight_decay: Annotated[float, msgspec.Meta(ge=0, le=float_info.max)] = 0.1  # of hidden matrices
    clip: Rate | None = 1.0  # largest gradient norm; null: none
    momentum: Fraction = 0.95  # Muon and SGD
    adam_lr: Rate | None = None  # of AdamW for gains and, times the factors, embeddings and head; null: Muon's is the peak rate
    embedding_factor: Rate = 1.0  # embedding rate / (adam_lr or lr)

    def exponent(self) -> float:
        """How fast the rate of hidden matrices falls with width where nothing is set: muP (Yang et al. 2022, arXiv 2203.03466,
        table 3); Lion's updates have the size of Adam's, Muon's have a spectral norm that width does not change."""
        if self.width_exponent is not None:
            return self.width_exponent
        return 1.0 if self.name in ("adamw", "lion") else 0.0


class ScheduleSpec(Part, frozen=True, kw_only=True):
    """Rate over steps. `cosine` ends at `final_fraction` exactly at the token budget; `wsd` is constant, then linear to
    `final_fraction` over the last `decay_fraction`; `constant` stays. `average` is the decay of an exponential moving
    average of the weights: with it, the averaged weights are what is saved and scored (0: none)."""

    name: Literal["cosine", "wsd", "constant"] = "cosine"  # see above
    warmup_steps: NonNegative = 100  # over which the rate rises from 0
    final_fraction: Fraction = 0.1
    decay_fraction: Fraction = 0.2
    average: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0


class BranchSpec(Part, frozen=True, kw_only=True):
    """A decay branch: one more run, which leaves a run at `at` tokens and whose rate falls linearly from what it is there to
    `schedule.final_fraction` of that within `decay` tokens. Every run that is long enough has it."""

    at: Positive
    decay: Positive
    checkpoints: Positive = 1  # evenly spaced over the decay, the last at its end


class CheckpointsSpec(Part, frozen=True, kw_only=True):
    """`count` checkpoints, evenly or logarithmically spaced in tokens, the last at the budget; step 0 is one more."""

    spacing: Literal["log", "even"] = "even"  # see above
    count: Positive = 20
    first_step: Positive = 10  # of log spacing
    initial: bool = True  # score the untrained model too


class TrainingSpec(Part, frozen=True, kw_only=True):
    """How every size is trained. `tokens` or `tokens_per_param` serves sizes without budgets of their own."""

    tokens: Positive | None = None
    tokens_per_param: Rate | None = None
    global_batch: Positive = 1152  # sequences
    micro_batch: Positive | None = None  # sequences of one forward pass, the same at any world size; null: see `micro_batch_of`
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    precision: Literal["bf16", "float32"] = "bf16"  # of passes; weights are float32 in both
    compile: bool | Literal["auto"] = "auto"  # auto: on a GPU, and on a CPU where a run is long enough
    checkpoints: CheckpointsSpec = CheckpointsSpec()
    branches: tuple[BranchSpec, ...] = ()
    most_skipped: NonNegative = 10  # updates skipped for a loss or gradient that is not finite; one more ends the run
    diverged_at: Rate = 3.0  # stop when the window's mean loss exceeds the best window so far by this many nats

    def micro_batch_of(self, global_batch: int) -> int | None:
        """Sequences of one micro-batch, or None where each worker passes its whole share at once (bf16, unless set).

        With micro-batches the weights are the same to the last bit at any world size up to their number. float32 is the
        precision of runs that must agree, so there a quarter of the global batch is the default: up to four workers.
        """
        if self.micro_batch:
            return min(self.micro_batch, global_batch)
        return -(-global_batch // 4) if self.precision == "float32" else None


class TuningSpec(Part, frozen=True, kw_only=True):
    """What `losslens finetune` does to a checkpoint: it goes on with documents of `sources`, while `keep` of the tokens still come from
    the sources of the corpus. `training.tokens` is the largest amount; the amounts that are scored are its checkpoints, the first
    of them 0 tokens, which is the checkpoint itself."""

    sources: tuple[SourceSpec, ...]
    keep: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    training: TrainingSpec


class CrossCheckSpec(Part, frozen=True, kw_only=True):
    """Score the last `checkpoints` checkpoints of `sizes` with a second engine too and compare."""

    engine: Literal["vllm", "torch"] = "vllm"  # the second one
    sizes: tuple[str, ...]
    checkpoints: Positive = 1


class EvaluationSpec(Part, frozen=True, kw_only=True):
    """What is asked of every checkpoint. A task is a name or a YAML file that declares it, relative to the study file;
    `TASK:FORMAT` asks it in that format alone. `data` is a directory of `<task>/{test,dev}.jsonl[.gz]`."""

    tasks: tuple[str, ...]  # see above
    engine: Literal["auto", "vllm", "torch"] = "auto"  # what scores; auto: see docs/SCORING.md
    loss_datasets: tuple[str, ...] = ("train", "heldout")  # the loss axes that are analysed; the first is not special
    limit: Positive | None = None  # items per task: a fixed pseudo-random subset
    data: str | None = None
    cross_check: CrossCheckSpec | None = None


class ClusterSpec(Part, frozen=True, kw_only=True):
    """`workers` is [min, max] per run; `train_slots` and `eval_slots` are what a local cluster offers, and what a study
    asks of a cluster whose nodes come on demand."""

    workers: tuple[Positive, Positive] = (1, 1)
    train_slots: Positive = 1
    eval_slots: Positive = 1
    threads: Positive = 1  # CPU threads per training worker
    save_every: Rate = 300.0  # seconds between saved states, beside those of checkpoints: what a lost node costs at most
    keep_states: bool = False  # of every checkpoint, so that branches declared later can leave there
    grow_after: Rate = 3.0  # seconds that a group of workers runs at least before it restarts larger
    gpus_per_worker: NonNegative = 0  # each training worker gets so many
    sharded: bool = False  # a run's matrices, gradients and moments are spread over its workers; see docs/TRAINING.md
    recompute: bool = False  # blocks are computed again in the backward pass, so that less is kept of the forward pass


class StudySpec(Part, frozen=True, kw_only=True):
    """A whole experiment. `variants`: settings by key, of each level, of each factor; see `losslens.specs.variants`."""

    name: Name  # of the study in tables
    seed: Seed = 0  # of initialisation, order and generated text
    seeds: Positive = 1  # runs per size and budget, seeded seed, seed + 1, ...
    corpus: CorpusSpec
    family: FamilySpec
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec
    cluster: ClusterSpec = ClusterSpec()
    tuning: TuningSpec | None = None  # of `losslens finetune`; no run that it starts from depends on it
    variants: dict[Level, dict[Level, dict[str, Any]]] = {}
    results: str = "results"  # where results go, unless --results says
