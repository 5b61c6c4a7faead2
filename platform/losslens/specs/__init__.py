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
)

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
    "bundled",
    "canonical_text",
    "fingerprint",
    "load_study",
    "to_yaml",
]
