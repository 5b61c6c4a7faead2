"""The unigram model that losses of different vocabularies are compared with."""

from __future__ import annotations

import math

import numpy as np
import pytest

from losslens.corpus.unigram import unigram_nats


@pytest.mark.parametrize("vocabulary", [50, 1000])
def test_the_unigram_model_leaves_each_token_out(vocabulary: int) -> None:
    """By counting again for every token, and against the entropy that many tokens were drawn from."""
    draw = np.random.default_rng(0)
    ids = np.minimum(draw.zipf(1.5, 300), 40)
    counts = np.bincount(ids)
    once = (counts == 1).sum() / len(ids)
    nats = [
        -math.log((1 - once) * np.count_nonzero(np.delete(ids, i) == token) / (len(ids) - 1) + once / vocabulary)
        for i, token in enumerate(ids)
    ]
    assert unigram_nats(counts, vocabulary) == pytest.approx(np.mean(nats))
    p = draw.dirichlet(np.ones(50))
    many = np.bincount(draw.choice(50, 200_000, p=p), minlength=50)
    assert unigram_nats(many, vocabulary) == pytest.approx(-(p * np.log(p)).sum(), abs=5e-3)
    assert unigram_nats(np.array([0, 1]), vocabulary) == 0.0
