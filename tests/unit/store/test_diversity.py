"""Maximal marginal relevance: a permutation that puts likenesses further back."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal.store.diversity import marginal_order

VECTORS = st.none() | st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3).map(
    lambda parts: np.array(parts, np.float32)
)
CANDIDATES = st.lists(st.tuples(st.floats(0, 1), VECTORS), max_size=12).map(
    lambda many: sorted(many, key=lambda one: -one[0])
)


@given(CANDIDATES, st.floats(0, 1))
def test_nobody_is_lost_and_the_best_stays_first_where_scores_count(
    candidates: list[tuple[float, np.ndarray | None]], mmr_lambda: float
) -> None:
    order = marginal_order([score for score, _ in candidates], [vector for _, vector in candidates], mmr_lambda)
    assert sorted(index for index, _ in order) == list(range(len(candidates)))
    if candidates:
        assert order[0][0] == 0


@given(CANDIDATES)
def test_lambda_1_is_the_order_by_score(candidates: list[tuple[float, np.ndarray | None]]) -> None:
    order = marginal_order([score for score, _ in candidates], [vector for _, vector in candidates], 1.0)
    assert [index for index, _ in order] == list(range(len(candidates)))


def test_a_near_duplicate_comes_behind_what_is_different() -> None:
    north, nearly, east = np.array([1, 0]), np.array([5, 0.05]), np.array([0, 1])
    order = marginal_order([1.0, 0.99, 0.7], [north, nearly, east], 0.6)
    assert [index for index, _ in order] == [0, 2, 1]


def test_broken_vectors_are_like_nothing() -> None:
    vectors = [np.array([1.0, 0.0]), np.array([np.nan, 1.0]), np.array([np.inf, 0.0]), np.zeros(2), None]
    order = marginal_order([0.5] * 5, vectors, 0.5)
    assert [index for index, _ in order] == [0, 1, 2, 3, 4]
