"""Studies as frozen values: YAML in, canonical text and fingerprint out."""

from losslens.specs.load import bundled, load_study
from losslens.specs.render import canonical_text, fingerprint, to_yaml
from losslens.specs.study import (
    BranchSpec,
    CheckpointsSpec,
    ClusterSpec,
    CorpusSpec,
    CrossCheckSpec,
    EvaluationSpec,
    FamilySpec,
    HoldoutSpec,
    OptimizerSpec,
    ScheduleSpec,
    SizeSpec,
    SourceSpec,
    StudySpec,
    TokenizerSpec,
    TrainingSpec,
    TuningSpec,
)
from losslens.specs.variants import levels_of, variants

__all__ = [
    "BranchSpec",
    "CheckpointsSpec",
    "ClusterSpec",
    "CorpusSpec",
    "CrossCheckSpec",
    "EvaluationSpec",
    "FamilySpec",
    "HoldoutSpec",
    "OptimizerSpec",
    "ScheduleSpec",
    "SizeSpec",
    "SourceSpec",
    "StudySpec",
    "TokenizerSpec",
    "TrainingSpec",
    "TuningSpec",
    "bundled",
    "canonical_text",
    "fingerprint",
    "levels_of",
    "load_study",
    "to_yaml",
    "variants",
]
