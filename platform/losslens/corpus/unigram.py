"""What a model without context would lose on a text: the measure that makes losses of different vocabularies comparable.

A vocabulary of longer tokens has a higher loss a token, whatever the model. Its unigram model has so too, so the difference tells
what a model gains from context, a token (Roh et al. 2020, arXiv 2011.13220, normalise by the unigram model of the training text; a
checkpoint does not tell its training text, so here the counts are those of the measured text).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def unigram_nats(counts: NDArray[np.int64], vocabulary: int) -> float:
    """Cross-entropy in nats a token of a text whose token i occurs `counts[i]` times, under the unigram model of that text.

    Each occurrence is left out of the counts that predict it: otherwise a large vocabulary would know a short text by heart. What
    then has no count shares the probability N1 / N that Good and Turing give to the unseen (Good 1953), N1 tokens occurring once,
    evenly over the `vocabulary`:  p(w) = (1 - N1 / N) (c(w) - 1) / (N - 1) + N1 / N / vocabulary.  Zero for fewer than two tokens.
    """
    seen = counts[counts > 0].astype(np.float64)
    N = seen.sum()
    if N < 2:
        return 0.0
    unseen = float((seen == 1).sum() / N)
    probability = (1 - unseen) * (seen - 1) / (N - 1) + unseen / max(vocabulary, len(seen))
    return float(-(seen * np.log(probability)).sum() / N)
