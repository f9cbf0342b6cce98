"""Scores of rankings: MRR@10 and NDCG@10, each the mean over queries."""

import numpy as np

DEPTH = 10


def ranking_scores(queries: np.ndarray, relevances: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """MRR@10 and NDCG@10 of passages ranked by predicted score, means over the queries with a relevant passage.

    A passage is relevant if its relevance is above 0. Of passages with equal predictions the less relevant rank first,
    so that a constant prediction gains nothing. The gain of a passage is its relevance and its discount
    `1 / log2(1 + rank)` (Järvelin and Kekäläinen 2002), as in trec_eval's `ndcg_cut_10`; the reciprocal rank is that
    of the first relevant passage among the first ten (MS MARCO's MRR@10).

    Args:
        queries (`numpy.ndarray` of shape `(rows,)`): The query of each passage; equal values are one query.
        relevances (`numpy.ndarray` of shape `(rows,)`): Numbers of at least 0.
        predictions (`numpy.ndarray` of shape `(rows,)`): Larger is more relevant.

    Returns:
        `dict[str, float]`: "mrr@10" and "ndcg@10"; NaN if a prediction is NaN, 0.0 if no query has a relevant passage.

    Example:
        >>> ranking_scores(np.array([0, 0, 1, 1]), np.array([1, 0, 0, 1]), np.array([0.9, 0.2, 0.8, 0.1]))["mrr@10"]
        0.75
    """
    if np.isnan(predictions).any():
        return {"mrr@10": float("nan"), "ndcg@10": float("nan")}
    order = np.lexsort((relevances, -predictions, queries))
    starts = np.flatnonzero(np.diff(queries[order], prepend=np.nan) != 0)
    reciprocal, gains = [], []
    for ranked in np.split(np.maximum(relevances[order].astype(np.float64), 0), starts[1:]):
        if not ranked.any():
            continue
        first = np.flatnonzero(ranked[:DEPTH])
        reciprocal.append(1 / (1 + first[0]) if len(first) else 0.0)
        gains.append(_gain(ranked) / _gain(np.sort(ranked)[::-1]))
    return {"mrr@10": float(np.mean(reciprocal or 0.0)), "ndcg@10": float(np.mean(gains or 0.0))}


def _gain(ranked: np.ndarray) -> float:
    """Discounted cumulative gain of the first ten."""
    top = ranked[:DEPTH]
    return float((top / np.log2(np.arange(2, len(top) + 2))).sum())
