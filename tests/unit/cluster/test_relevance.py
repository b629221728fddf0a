"""Measures of rankings, against figures worked out by hand."""

from __future__ import annotations

from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.cluster.relevance import measured, ndcg, recall, reciprocal_rank

GRADES = st.dictionaries(st.sampled_from("abcdefghijklmnop"), st.integers(-1, 4), max_size=16)
RANKING = st.lists(st.sampled_from("abcdefghijklmnopqrst"), unique=True, max_size=20)


def test_ndcg_weighs_the_grade_itself_by_the_logarithm_of_its_place() -> None:
    # Found: grade 1 at the second place, grade 3 at the fourth; the best order has 3, 2, 1.
    found = 1 / log2(3) + 3 / log2(5)
    ideal = 3 / log2(2) + 2 / log2(3) + 1 / log2(4)
    assert ndcg(["x", "low", "y", "high"], {"high": 3, "middle": 2, "low": 1}) == pytest.approx(found / ideal)
    assert ndcg(["x", "low", "y", "high"], {"high": 3, "middle": 2, "low": 1}) == pytest.approx(0.404, abs=5e-4)


def test_one_relevant_document_gives_the_discount_of_its_place() -> None:
    assert ndcg(["hit"], {"hit": 1}) == 1.0
    assert ndcg(["a", "b", "hit"], {"hit": 1}) == pytest.approx(0.5)
    assert reciprocal_rank(["a", "b", "hit"], {"hit": 1}) == pytest.approx(1 / 3)


def test_what_stands_behind_the_tenth_place_counts_nothing() -> None:
    ranking = [*"abcdefghij", "hit"]
    assert (ndcg(ranking, {"hit": 1}), recall(ranking, {"hit": 1}), reciprocal_rank(ranking, {"hit": 1})) == (0, 0, 0)


def test_the_best_ndcg_is_of_ten_documents_though_more_are_relevant() -> None:
    relevant = {f"d{i}": 1.0 for i in range(25)}
    assert ndcg([f"d{i}" for i in range(10)], relevant) == pytest.approx(1.0)
    assert recall([f"d{i}" for i in range(10)], relevant) == pytest.approx(10 / 25)


def test_a_grade_of_0_or_below_is_not_relevant() -> None:
    assert recall(["a", "b"], {"a": 0, "b": -1, "c": 2}) == 0.0
    assert reciprocal_rank(["a", "c"], {"a": -1, "c": 2}) == 0.5
    assert ndcg(["a", "c"], {"a": -1, "c": 2}) == pytest.approx(1 / log2(3))


def test_the_mean_counts_a_query_without_an_answer_as_nothing_found() -> None:
    figures = measured({"q1": ["hit"]}, {"q1": {"hit": 1}, "q2": {"other": 1}})
    assert figures == {"ndcg@10": 0.5, "recall@10": 0.5, "mrr@10": 0.5}


@given(RANKING, GRADES)
def test_every_measure_lies_between_0_and_1_and_a_perfect_order_gives_1(ranking: list[str], grades: dict) -> None:
    for measure in (ndcg, recall, reciprocal_rank):
        assert 0.0 <= measure(ranking, grades) <= 1.0 + 1e-12
    best = sorted(grades, key=lambda key: -grades[key])
    if any(grade > 0 for grade in grades.values()):
        assert ndcg(best, grades) == pytest.approx(1.0)
        assert reciprocal_rank(best, grades) == 1.0


@given(RANKING, GRADES, st.integers(0, 18))
def test_moving_a_better_document_ahead_never_lowers_ndcg(ranking: list[str], grades: dict, at: int) -> None:
    if at + 1 >= len(ranking) or grades.get(ranking[at], 0) >= grades.get(ranking[at + 1], 0):
        return
    swapped = [*ranking[:at], ranking[at + 1], ranking[at], *ranking[at + 2 :]]
    assert ndcg(swapped, grades) >= ndcg(ranking, grades)
