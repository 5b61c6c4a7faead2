"""The columns of every stored table: the contract, as Arrow schemas. Missing columns of foreign parts read as NULL."""

from __future__ import annotations

import pyarrow as pa

_S, _I, _F, _B = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_T = pa.timestamp("us", tz="UTC")

RUNS = pa.schema(
    [("run_id", _S), ("study", _S), ("size", _S), ("architecture", _S), ("params", _I), ("params_non_embedding", _I)]
    + [("tokenizer", _S), ("vocab_size", _I), ("corpus", _S), ("seq_len", _I), ("optimizer", _S), ("schedule", _S)]
    + [("peak_lr", _F), ("batch_tokens", _I), ("tokens_planned", _I), ("seed", _I), ("parent_checkpoint_id", _S)]
    + [("source", _S), ("source_url", _S), ("licence", _S), ("created_at", _T), ("spec", _S)]
    + [("variant", _S)]  # of a study with several: factor=level,factor=level
)
"""One training of one size, ours or published, with what determines it."""
CHECKPOINTS = pa.schema(
    [("checkpoint_id", _S), ("run_id", _S), ("step", _I), ("tokens", _I), ("flops", _F), ("path", _S)]
    + [("weights_sha256", _S), ("created_at", _T)]
)
"""The weights of a run after so many steps."""
LOSSES = pa.schema(
    [("checkpoint_id", _S), ("dataset", _S), ("unit", _S), ("value", _F), ("stderr", _F), ("tokens", _I), ("bytes", _I)]
    + [("method", _S)]  # what was measured and how, where `evaluate` did it
)
"""The loss of a checkpoint on a text: the axes that scores are drawn against."""
SCORES = pa.schema(
    [("checkpoint_id", _S), ("task", _S), ("task_version", _I), ("format", _S), ("shots", _I), ("metric", _S), ("value", _F)]
    + [("stderr", _F), ("n", _I), ("chance", _F), ("higher_is_better", _B), ("engine", _S), ("scored_at", _T)]
)
"""What a checkpoint scored on a task: a mean over items, never without n, chance and standard error."""
SAMPLES = pa.schema(
    [("checkpoint_id", _S), ("task", _S), ("task_version", _I), ("format", _S), ("shots", _I), ("item_id", _S)]
    + [("option", _I), ("is_gold", _B), ("logprob", _F), ("tokens", _I), ("bytes", _I), ("generated", _S), ("correct", _B)]
    + [("engine", _S), ("scored_bytes", _I)]
)
"""Every option of every item that was asked: what scores are computed from, and any other metric can be."""
TRAIN_LOG = pa.schema(
    [("run_id", _S), ("attempt", _I), ("step", _I), ("tokens", _I), ("loss", _F), ("lr", _F), ("grad_norm", _F)]
    + [("tokens_per_second", _F), ("world_size", _I), ("time", _T)]
)
"""The course of training, a row for each window of steps."""
THRESHOLDS = pa.schema(
    [("study", _S), ("task", _S), ("format", _S), ("shots", _I), ("metric", _S), ("loss_dataset", _S), ("loss_unit", _S)]
    + [("verdict", _S), ("eta", _F), ("eta_low", _F), ("eta_high", _F), ("last_at_chance", _F), ("first_above", _F)]
    + [("spearman", _F), ("pearson", _F), ("n_checkpoints", _I), ("n_runs", _I), ("method", _S), ("computed_at", _T)]
)
"""At which loss each ability appears: what the verb `thresholds` found."""
SAME_CURVE = pa.schema(
    [("study", _S), ("task", _S), ("format", _S), ("shots", _I), ("metric", _S), ("loss_dataset", _S), ("loss_unit", _S)]
    + [("property", _S), ("level", _S), ("reference", _S), ("axis", _S), ("verdict", _S), ("reason", _S), ("margin", _F)]
    + [("effect", _F), ("effect_low", _F), ("effect_high", _F)]
    + [("largest", _F), ("largest_low", _F), ("largest_high", _F), ("largest_at", _F), ("run_spread", _F)]
    + [("axis_error", _F), ("explains_most", _B), ("behind", _F)]
    + [("n_checkpoints", _I), ("n_runs", _I), ("method", _S), ("computed_at", _T)]
)
"""Whether runs that differ score alike at equal loss, compute and tokens: what `same-curve` found."""
FORECASTS = pa.schema(
    [("study", _S), ("task", _S), ("format", _S), ("shots", _I), ("metric", _S), ("loss_dataset", _S), ("loss_unit", _S)]
    + [("target", _S), ("params", _F), ("tokens", _F), ("predicted", _F), ("predicted_low", _F), ("predicted_high", _F)]
    + [("actual", _F), ("error_points", _F), ("forecastable", _B), ("reason", _S)]
    + [("constant", _F), ("linear", _F), ("one_stage", _F), ("two_stage", _F)]  # what rivals say
    + [("n_checkpoints", _I), ("n_runs", _I), ("method", _S), ("computed_at", _T)]
)
"""What larger models will score, told from smaller ones: what `forecast` found."""

TABLES: dict[str, pa.Schema] = {
    "runs": RUNS,
    "checkpoints": CHECKPOINTS,
    "losses": LOSSES,
    "scores": SCORES,
    "samples": SAMPLES,
    "train_log": TRAIN_LOG,
    "thresholds": THRESHOLDS,
    "same_curve": SAME_CURVE,
    "forecasts": FORECASTS,
}

REQUIRED: dict[str, tuple[str, ...]] = {
    "runs": ("run_id",),
    "checkpoints": ("checkpoint_id", "run_id"),
    "losses": ("checkpoint_id", "dataset", "unit", "value"),
    "scores": ("checkpoint_id", "task", "format", "metric", "value", "stderr", "n", "chance", "higher_is_better"),
    "samples": ("checkpoint_id", "task", "format", "item_id"),
    "train_log": ("run_id", "step"),
    "thresholds": ("task", "metric", "loss_dataset", "loss_unit", "verdict"),
    "same_curve": ("task", "metric", "loss_dataset", "loss_unit", "property", "axis", "verdict", "margin"),
    "forecasts": ("task", "metric", "loss_dataset", "loss_unit", "target", "forecastable", "method"),
}
"""Columns that our own writer refuses to leave NULL or not finite. Foreign parts may lack any of them."""
