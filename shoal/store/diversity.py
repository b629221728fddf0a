"""Diversification by maximal marginal relevance (Carbonell and Goldstein 1998). Pure: numbers in, an order out.

Each place goes to the candidate with the largest lambda * score - (1 - lambda) * (its greatest similarity to one
already placed). lambda 1 is the order by score; the nearer to 0, the fewer near-duplicates stand together at the
front. Nobody is dropped: what is like others comes later.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shoal.records import Vector

CANDIDATES_MAX = 100  # documents that are placed anew; the work grows with its square, and a page rarely shows more


def marginal_order(
    scores: Sequence[float], vectors: Sequence[Vector | None], mmr_lambda: float
) -> list[tuple[int, float]]:
    """(index, marginal score) of all candidates in their new order. `scores` in 0..1; `vectors` of one width, of any
    length (a zero one, or None, is like nothing). Equal candidates keep their order."""
    if not scores:
        return []
    width = next((len(vector) for vector in vectors if vector is not None), 1)
    matrix = np.array([np.zeros(width) if vector is None else vector for vector in vectors], np.float64)
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        matrix = np.nan_to_num(np.where(lengths > 0, matrix / lengths, 0.0), posinf=0.0, neginf=0.0)
    relevance = mmr_lambda * np.asarray(scores, np.float64)
    nearest = np.zeros(len(scores))  # opposites are no more different than strangers
    left = np.ones(len(scores), bool)
    order: list[tuple[int, float]] = []
    for _ in scores:
        values = np.where(left, relevance - (1.0 - mmr_lambda) * nearest, -np.inf)
        index = int(np.argmax(values))  # the first of equals
        order.append((index, float(values[index])))
        left[index] = False
        nearest = np.maximum(nearest, matrix @ matrix[index])
    return order
