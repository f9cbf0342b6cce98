"""MRR@10 and NDCG@10, against scikit-learn and by their definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from hf_xtc.data.ranking import ranking_scores

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


def columns(rows, seed=0):
    queries, relevances = (np.array(column) for column in zip(*rows, strict=True))
    return queries, relevances, np.random.RandomState(seed).permutation(len(rows)).astype(np.float32)


@given(rows=ROWS, seed=st.integers(0, 99))
def test_each_query_is_scored_as_by_scikit_learn_and_by_hand(rows, seed):
    queries, relevances, predictions = columns(rows, seed)
    gains, ranks = [], []
    for query in set(queries):
        own = queries == query
        if not relevances[own].any():
            continue
        one = own.sum() == 1  # scikit-learn refuses a single passage
        gains.append(1.0 if one else ndcg_score([relevances[own]], [predictions[own]], k=10))
        ranked = relevances[own][np.argsort(-predictions[own])]
        first = next(rank for rank, relevance in enumerate(ranked, 1) if relevance)
        ranks.append(1 / first if first <= 10 else 0)
    scores = ranking_scores(queries, relevances, predictions)
    assert scores["mrr@10"] == pytest.approx(np.mean(ranks or 0))
    assert scores["ndcg@10"] == pytest.approx(np.mean(gains or 0))


@given(rows=ROWS, order=st.randoms())
def test_the_order_of_rows_does_not_matter(rows, order):
    queries, relevances, predictions = columns(rows)
    shuffled = list(range(len(rows)))
    order.shuffle(shuffled)
    again = ranking_scores(queries[shuffled], relevances[shuffled], predictions[shuffled])
    assert again == pytest.approx(ranking_scores(queries, relevances, predictions))


def test_a_constant_prediction_gains_nothing():
    relevances = np.array([1] + [0] * 10)
    scores = ranking_scores(np.zeros(11), relevances, np.zeros(11))
    assert scores == {"mrr@10": 0.0, "ndcg@10": 0.0}


def test_nan_stays_nan():
    scores = ranking_scores(np.zeros(2), np.array([1, 0]), np.array([np.nan, 1]))
    assert np.isnan(list(scores.values())).all()
