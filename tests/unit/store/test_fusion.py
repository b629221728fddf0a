"""Fusion of rankings: bounds, monotony, and no loss for being found twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.store.fusion import normalise, reciprocal_rank, weighted

LEG = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(-100, 100), max_size=8)


@given(LEG, LEG)
def test_scores_lie_between_0_and_1_and_are_sorted(vector: dict[str, float], keyword: dict[str, float]) -> None:
    fused = weighted([vector, keyword], (0.7, 0.3))
    scores = [round(one.score, 9) for one in fused]
    assert scores == sorted(scores, reverse=True)
    assert all(0.0 <= score <= 1.0 for score in scores)
    assert {one.key for one in fused} == set(vector) | set(keyword)


@given(LEG, LEG)
def test_a_document_of_both_legs_never_ranks_behind_one_of_a_single_leg(
    vector: dict[str, float], keyword: dict[str, float]
) -> None:
    single_seen = False
    for one in weighted([vector, keyword], (0.7, 0.3)):
        single_seen = single_seen or None in one.parts
        assert not (single_seen and None not in one.parts)


@given(LEG, LEG, st.sampled_from("abcdefgh"))
def test_a_better_score_in_a_leg_never_ranks_lower(
    vector: dict[str, float], keyword: dict[str, float], key: str
) -> None:
    if key not in vector:
        return
    place = [one.key for one in weighted([vector, keyword], (0.7, 0.3))].index(key)
    better = vector | {key: max(vector.values()) + 1.0}
    assert [one.key for one in weighted([better, keyword], (0.7, 0.3))].index(key) <= place


def test_the_document_found_by_both_legs_is_first_though_it_is_last_in_each() -> None:
    fused = weighted([{"v1": 0.9, "v2": 0.8, "both": 0.1}, {"k1": 9.0, "both": 1.0}], (0.7, 0.3))
    assert [one.key for one in fused] == ["both", "v1", "v2", "k1"]
    assert fused[0].parts == (pytest.approx(0.7), pytest.approx(0.7))


def test_a_missing_leg_gives_nothing_of_its_weight() -> None:
    fused = weighted([{"v": 1.0}, {"k": 1.0}], (0.7, 0.3))
    assert [(one.key, one.score, one.parts) for one in fused] == [("v", 0.7, (1.0, None)), ("k", 0.3, (None, 1.0))]


def test_equal_scores_are_ordered_by_key() -> None:
    assert [one.key for one in weighted([{"b": 1.0, "a": 1.0}, {}], (0.7, 0.3))] == ["a", "b"]
    assert [one.key for one in reciprocal_rank([["a"], ["b"]])] == ["a", "b"]


def test_equal_scores_normalise_to_1_and_none_to_none() -> None:
    assert normalise({"a": 3.0, "b": 3.0}) == {"a": 1.0, "b": 1.0}
    assert normalise({}) == {}
    assert normalise({"a": 1.0, "b": 3.0, "c": 2.0}) == {"a": 0.0, "b": 1.0, "c": 0.5}


def test_reciprocal_rank_gives_1_to_what_is_first_everywhere_and_prefers_agreement() -> None:
    fused = reciprocal_rank([["both", "v1", "v2"], ["both", "k1"]])
    assert fused[0].key == "both"
    assert fused[0].score == 1.0
    last_of_both = reciprocal_rank([["v1", "v2", "both"], ["k1", "k2", "both"]])
    assert last_of_both[0].key == "both"
