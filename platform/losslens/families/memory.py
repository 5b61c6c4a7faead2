"""Bytes that training a shape holds on one GPU, by part: what decides how many GPUs it needs.

`sharded` is what `training/sharding.py` holds, where every state lies on one GPU only; `replicated` is what `training/loop.py` holds,
where every worker has all of it. Both are of eager torch: torch.compile keeps fewer activations. Attention is a fused
kernel's, so no scores are kept.

Legend: D d_model, F d_ffn, H heads, K key-value heads, E head size, L layers, T sequence length, V vocabulary, P parameters.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from losslens.families.shape import Shape
from losslens.specs import TrainingSpec

LOGITS = 3 << 29  # three float32 arrays over as many logits as `models/cross_entropy.py` leaves whole on a GPU
IN_BLOCKS = 5 << 28  # what it holds of a block of that many: logits and shares in float32, their gradient in bf16
MESSAGE = 2 << 27  # integers on their way in one message of `training/shard_sums.py`, and as they arrive


@dataclass(frozen=True, slots=True)
class Layout:
    """How GPUs share a run: `gpus / tensor` of them take different sequences, `micro_batch` of them at a time; `tensor` GPUs
    share each layer. `recompute` keeps the input of a block only and computes the block again in the backward pass."""

    gpus: int
    tensor: int = 1
    micro_batch: int = 1
    recompute: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one GPU. `gathered` are whole layers in use and the buffers that bring them; `sums` the exact ones of
    `training/reduction.py`; `workspace` what the backward pass takes for a while, mostly for logits."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    sums: int
    gathered: int
    activations: int
    workspace: int

    @property
    def total(self) -> int:
        """Of all parts, which are those of one moment."""
        return sum(asdict(self).values())


def sharded(shape: Shape, training: TrainingSpec, layout: Layout) -> Memory:
    """The most memory at once under FSDP2 (Zhao et al. 2023, arXiv 2304.11277), which is stage 3 of ZeRO (Rajbhandari et al.
    2020, arXiv 1910.02054, section 5).

    Tensor parallelism includes the sequence parallelism of Korthikanti et al. 2022 (arXiv 2205.05198, section 4.2.2) and a
    loss over parts of the vocabulary, so that it divides activations and logits too; training itself does not have it. Gradients stay
    float32 between micro-batches. Either logits come and go, or the gradients of blocks are on their way, or, when nothing is left of
    the activations, those of embedding and head.
    """
    w = width(training)
    tokens = layout.micro_batch * shape.seq_len
    each = -(-shape.params // layout.gpus)
    kept = tokens * activations(shape, training, tensor=layout.tensor, recompute=layout.recompute)
    exact = training.micro_batch_of(training.global_batch) is not None
    head, block = 4 * shape.vocab_size * shape.d_model, -(-(shape.params_non_embedding - shape.d_model) // shape.layers)
    message, logits = MESSAGE if exact else 0, tokens * 12 * shape.vocab_size
    moments = (
        # The head, in bf16 too, and where logits come in several blocks its gradient. Logits as float32, their share and their gradient.
        (head + head // 2 + (head if logits > LOGITS else 0), kept, IN_BLOCKS if logits > LOGITS else logits),
        # The head, its gradient, and the buffer that brings it back; the last block and its buffer.
        (3 * head + 2 * w * block, kept, 0),
        # The head and its gradient; a block, the buffer that brings the next; the block's gradient, and in float32 on its way.
        (2 * head + (3 * w + 4) * block, kept, tokens * _in_block(shape, w) + message),
        # Head, its gradient, the embedding's, and one of the two on its way.
        (4 * head, 0, message),
    )
    gathered, kept, coming_and_going = max(moments, key=sum)
    return Memory(
        weights=4 * each,
        gradients=4 * each,
        optimizer=-(-_moments(shape, training) // layout.gpus),
        average=4 * each if training.schedule.average else 0,
        sums=8 * each if exact else 0,
        gathered=-(-gathered // layout.tensor),
        activations=kept,
        workspace=-(-coming_and_going // layout.tensor),
    )


def replicated(shape: Shape, training: TrainingSpec, sequences: int, *, exact: bool, workers: int = 1) -> int:
    """Bytes that `training/loop.py` holds at most, passing `sequences` at once.

    Either where the backward pass begins (every activation, autocast's copies of the matrices, and the logits or the head's
    gradient) or where gradients are summed and used: with `exact` a copy, its product and 64-bit integers (16 bytes a parameter),
    else the gradients and, for several `workers`, one message as large; all but AdamW stack gradients and updates beside them.
    """
    tokens = sequences * shape.seq_len
    head = shape.vocab_size * shape.d_model
    copies = 2 * (shape.params_non_embedding + head) if training.precision == "bf16" else 0
    w = width(training)
    logits = 12 * shape.vocab_size * tokens
    # In blocks the head's gradient is there with them; whole, it comes when the logits' gradient alone is left of them.
    blocks = logits > LOGITS
    at_head = (4 + w) * head + (IN_BLOCKS if blocks else w * shape.vocab_size * tokens)
    at_loss = max(0 if blocks else logits, tokens * _in_block(shape, w))
    backward = copies + tokens * activations(shape, training) + max(at_head, at_loss)
    summing = 16 if exact else 12 if training.optimizer.name != "adamw" else 8 if workers > 1 else 4
    kept = 4 + (4 if training.schedule.average else 0) + (8 if exact else 0)
    return kept * shape.params + _moments(shape, training) + max(backward, summing * shape.params)


def width(training: TrainingSpec) -> int:
    """Bytes of an element of matrix products."""
    return 2 if training.precision == "bf16" else 4


def activations(shape: Shape, training: TrainingSpec, *, tensor: int = 1, recompute: bool = False) -> int:
    """Bytes a token that the forward pass keeps: blocks, final norm and the head's input.

    Counted tensor by tensor as Korthikanti et al. 2022, section 4.1, do, for blocks whose residual stream and norms are float32.
    With `recompute` the input of every block and all of one block (section 5).
    """
    one = _block(shape, width(training), tensor)
    blocks = shape.layers * -(-4 * shape.d_model // tensor) + one if recompute else shape.layers * one
    return blocks + -(-((4 + width(training)) * shape.d_model + 4) // tensor)


def _block(shape: Shape, w: int, tensor: int) -> int:
    """Bytes a token that one block keeps.

    paper and llama: two norms (input 4 D and 4, output w D); queries, keys and values as they come out of their product,
    queries and keys again after rotation, attention's output w D and its log-sums 4 H; gate and up 2 w F, silu(gate) w F and
    its product with up w F. gpt_neox: one input, two LayerNorms, all heads whole, one wide tensor before and one after GELU.
    mixtral: llama's, the MLP once for each active expert, with its input and output. mamba2: what transformers' plain implementation
    keeps, fitted to counts of small models (within a tenth).
    """
    d, f, heads = shape.d_model, shape.d_ffn, shape.heads
    if shape.architecture == "gpt_neox":
        return -(-(4 * d + 16 + 8 * w * d + 4 * heads + 2 * w * f) // tensor)
    if shape.state_size is not None:
        return -(-((64 + 17 * w) * d + (6 + 5 * w) * heads * shape.state_size + 256 * heads) // tensor)
    kv = max(shape.kv_heads, tensor) * shape.head_dim  # fewer keys and values than GPUs are held by several
    norms = 2 * (4 * d + 4 + w * d)
    attention = w * (d + 2 * kv) + w * (d + kv) + w * d + 4 * heads
    mlp = 4 * w * f if shape.active_experts is None else shape.active_experts * w * (4 * f + 2 * d)
    return -(-(norms + attention + mlp) // tensor)


def _in_block(shape: Shape, w: int) -> int:
    """Bytes a token that come and go in a block's backward pass: gradients of gate and up and of the residual stream.

    Where the pass begins it is 12 V: three float32 rows, log-probabilities, their gradient and the logits' gradient.
    """
    return 4 * shape.d_model + 2 * w * shape.d_ffn


def _moments(shape: Shape, training: TrainingSpec) -> int:
    """Bytes of optimizer state: AdamW has two float32 moments a parameter, the others one of what they move."""
    optimizer = training.optimizer
    if optimizer.name == "adamw":
        return 8 * shape.params
    with_adam = 0 if optimizer.name != "muon" and not optimizer.adam_lr else shape.params - shape.params_non_embedding
    return 4 * shape.params + 4 * with_adam
