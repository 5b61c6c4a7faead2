"""Analysis: tables in, tables out, no input or output. What the results say about loss and ability."""

from losslens.analysis.correlations import correlations
from losslens.analysis.same_curve import same_curve
from losslens.analysis.thresholds import thresholds

__all__ = ["correlations", "same_curve", "thresholds"]
