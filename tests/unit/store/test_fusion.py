"""Fusion of rankings: bounds, monotony, weights by how steep a leg is, and that none of them is silenced."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from shoal.store.fusion import FIRST, LEAST, adapted, decline, normalise, of_passages, reciprocal_rank, weighted

LEG = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(-100, 100), max_size=8)


@given(LEG, LEG)
def test_scores_lie_between_0_and_1_and_are_sorted(vector: dict[str, float], keyword: dict[str, float]) -> None:
    fused = weighted([vector, keyword], (0.7, 0.3))
    scores = [round(one.score, 9) for one in fused]
    assert scores == sorted(scores, reverse=True)
    assert all(0.0 <= score <= 1.0 for score in scores)
    assert {one.key for one in fused} == set(vector) | set(keyword)


LONG_LEG = st.dictionaries(st.sampled_from([f"d{i}" for i in range(40)]), st.integers(-99, 99), max_size=30)
UNHURRIED = hypothesis_settings(deadline=None)


@UNHURRIED
@given(LONG_LEG, LONG_LEG)
def test_a_document_that_is_as_good_in_every_leg_is_never_behind(
    vector: dict[str, float], keyword: dict[str, float]
) -> None:
    fused = weighted([vector, keyword], (0.7, 0.3))
    missed = -1e9
    for at, ahead in enumerate(fused):
        for behind in fused[at + 1 :]:
            better = [leg.get(behind.key, missed) - leg.get(ahead.key, missed) for leg in (vector, keyword)]
            assert round(behind.score, 9) == round(ahead.score, 9) or not all(difference >= 0 for difference in better)


@UNHURRIED
@given(LONG_LEG, LONG_LEG)
def test_the_worst_hit_of_a_leg_gets_more_than_a_miss(vector: dict[str, float], keyword: dict[str, float]) -> None:
    for one in weighted([vector, keyword], (0.7, 0.3)):
        assert all(part is None or part > 0 for part in one.parts)


@given(LEG, LEG)
def test_among_few_hits_a_document_of_both_legs_never_ranks_behind_one_of_a_single_leg(
    vector: dict[str, float], keyword: dict[str, float]
) -> None:
    single_seen = False
    for one in weighted([vector, keyword], (0.7, 0.3)):
        single_seen = single_seen or None in one.parts
        assert not (single_seen and None not in one.parts)


@given(LEG, LEG, st.sampled_from("abcdefgh"))
def test_among_few_hits_a_better_score_in_a_leg_never_ranks_lower(
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


STEEP = {f"d{place}": 9.0 if place < 2 else 0.9 / (place + 1) for place in range(100)}  # two stand out
SLOW = {f"d{place}": 9.0 - place / 100 for place in range(100)}  # none does
FLAT = dict.fromkeys(STEEP, 5.0)


def test_the_decline_is_what_lies_within_the_first_hits() -> None:
    assert decline(STEEP) > 0.9
    assert decline(SLOW) == pytest.approx(19 / 99)
    assert decline(SLOW, 0.0) == pytest.approx(0.19 / 9)
    assert decline(FLAT) == 0.0
    assert decline({"only": 3.0}) == 1.0


def test_words_that_name_something_rare_outweigh_the_vectors_and_common_ones_count_little() -> None:
    rare = adapted(SLOW, STEEP, (0.7, 0.3))
    common = adapted(STEEP, SLOW, (0.7, 0.3))
    assert rare[1] > 0.5
    assert common[1] == pytest.approx(LEAST * 0.3)
    assert sum(rare) == pytest.approx(1.0)
    assert sum(common) == pytest.approx(1.0)


def test_the_weights_stay_where_there_is_nothing_to_read() -> None:
    few = {f"d{place}": 1.0 - place for place in range(20)}
    for vector, keyword in ((FLAT, FLAT), (few, STEEP), (SLOW, {}), ({}, STEEP), ({}, {})):
        assert adapted(vector, keyword, (0.7, 0.3)) == (0.7, 0.3)


@pytest.mark.parametrize("documents", [30, 69, 256, 1_000])
def test_the_weights_do_not_depend_on_how_many_documents_the_first_look_holds(documents: int) -> None:
    nearest = {f"d{place}": -log(1 + place) for place in range(documents)}
    first_look = {f"d{place}": -log(1 + place) for place in range(256)}
    assert adapted(nearest, STEEP, (0.7, 0.3)) == pytest.approx(adapted(first_look, STEEP, (0.7, 0.3)), abs=1e-3)


OTHERS = {f"d{place}": [5.0 - place / 10] for place in range(FIRST)}


def test_a_second_good_passage_puts_a_document_before_one_with_the_same_best() -> None:
    scores = of_passages(OTHERS | {"two": [5.0, 4.8]})
    assert scores["two"] > scores["d0"] == 5.0
    assert all(scores[key] == best for key, (best,) in OTHERS.items())


def test_passages_that_are_not_among_the_first_give_nothing_however_many() -> None:
    leg = OTHERS | {"long": [5.0, *(3.0 - place / 100 for place in range(50))]}
    assert of_passages(leg)["long"] == 5.0


def test_among_few_passages_only_the_best_of_a_document_counts() -> None:
    assert of_passages({"a": [3.0, 2.9, 2.8], "b": [1.0] * (FIRST - 3)}) == {"a": 3.0, "b": 1.0}
    assert of_passages({}) == {}


PASSAGES = st.lists(st.lists(st.integers(-99, 99), min_size=1, max_size=8), max_size=30).map(
    lambda documents: {f"d{at}": sorted(map(float, one), reverse=True) for at, one in enumerate(documents)}
)


@UNHURRIED
@given(PASSAGES, st.integers(1, 100), st.integers(-50, 50))
def test_passages_at_most_double_what_the_best_is_above_the_bar_and_keep_the_legs_scale(
    leg: dict[str, list[float]], factor: float, shift: float
) -> None:
    scores = of_passages(leg)
    every = sorted((score for passages in leg.values() for score in passages), reverse=True)
    for key, passages in leg.items():
        above = max(0.0, passages[0] - every[FIRST - 1]) if len(every) > FIRST else 0.0
        assert passages[0] <= scores[key] <= passages[0] + above
    moved = of_passages({key: [factor * score + shift for score in passages] for key, passages in leg.items()})
    assert moved == pytest.approx({key: factor * score + shift for key, score in scores.items()})


def _leg(scores: Sequence[float], name: str = "d") -> dict[str, float]:
    return {f"{name}{place}": score for place, score in enumerate(scores)}


TIED_LEG = st.lists(st.integers(1, 4), min_size=21, max_size=60).map(_leg)  # more hits than scores to tell them apart


@UNHURRIED
@given(TIED_LEG, st.one_of(TIED_LEG, LONG_LEG), st.floats(0.1, 0.9))
def test_each_leg_keeps_a_share_of_its_weight_however_its_hits_tie(
    vector: dict[str, float], keyword: dict[str, float], of_vector: float
) -> None:
    keyword = {key: abs(score) + 1 for key, score in keyword.items()}
    weights = (of_vector, 1.0 - of_vector)
    counted = adapted(vector, keyword, weights)
    assert sum(counted) == pytest.approx(1.0)
    assert all(now >= LEAST * given - 1e-9 for now, given in zip(counted, weights, strict=True))
    scores = {one.key: one.score for one in weighted([vector, keyword], weights)}
    assert all(score > 0 for score in scores.values())
    for leg, weight in zip((vector, keyword), weights, strict=True):
        for key in leg:
            assert leg[key] < max(leg.values()) or scores[key] >= LEAST * weight - 1e-9


@UNHURRIED
@given(TIED_LEG, st.integers(0, 20), st.integers(1, 40), st.sampled_from([None, 0.0]))
def test_copies_of_a_hit_leave_the_decline_as_it_is(
    leg: dict[str, float], place: int, copies: int, zero: float | None
) -> None:
    more = leg | _leg([leg[f"d{place}"]] * copies, "copy")
    assert decline(more, zero) == decline(leg, zero)
    # Copies that were embedded in different batches are alike, not equal.
    shaken = {key: score + 1e-7 * at for at, (key, score) in enumerate(more.items())}
    if len(set(more.values())) > 1:
        assert decline(shaken, zero) == pytest.approx(decline(leg, zero), abs=0.002)


def test_many_perfect_matches_are_not_silenced_by_far_documents_that_contain_a_word() -> None:
    vector = _leg([-0.05] * 30 + [-0.6 - place / 200 for place in range(70)])
    fused = weighted([vector, {f"d{place}": 9.0 - place for place in range(60, 65)}], (0.7, 0.3))
    scores = {one.key: one.score for one in fused}
    assert all(scores[f"d{place}"] >= LEAST * 0.7 - 1e-9 for place in range(30))
    assert len({one.key for one in fused[:10]} & {f"d{place}" for place in range(30)}) >= 5


def test_documents_found_by_words_alone_count_where_the_words_find_all_alike() -> None:
    words = dict.fromkeys([f"w{place}" for place in range(53)], 4.2)
    for vector in (STEEP, SLOW, FLAT):
        scores = {one.key: one.score for one in weighted([vector, words], (0.7, 0.3))}
        assert all(scores[key] >= LEAST * 0.3 - 1e-9 for key in words)


def test_a_word_in_thirty_documents_to_the_same_effect_and_nearly_nowhere_else_is_a_steep_leg() -> None:
    assert decline(_leg([9.0] * 30 + [0.9] * 5), 0.0) == pytest.approx(0.9)
    assert decline(_leg([9.0] * 30 + [8.9] * 30), 0.0) < 0.02
    assert decline(_leg([9.0] * 53), 0.0) == 0.0


@UNHURRIED
@given(LONG_LEG, LONG_LEG)
def test_part_times_weight_adds_up_to_the_score(vector: dict[str, float], keyword: dict[str, float]) -> None:
    legs = [vector, {key: abs(score) + 1 for key, score in keyword.items()}]
    ranks = [sorted(leg, key=leg.__getitem__, reverse=True) for leg in legs]
    for one in (*weighted(legs, (0.7, 0.3)), *reciprocal_rank(ranks)):
        total = sum(weight * (part or 0.0) for weight, part in zip(one.weights, one.parts, strict=True))
        assert total == pytest.approx(one.score)


def test_a_single_hit_of_rare_words_is_first_though_the_vectors_miss_it() -> None:
    for vector in (SLOW, FLAT):
        assert weighted([vector, {"named": 12.0}], (0.7, 0.3))[0].key == "named"


@UNHURRIED
@given(LONG_LEG, LONG_LEG, st.integers(1, 100), st.integers(-50, 50))
def test_the_scale_of_a_legs_scores_changes_nothing(
    vector: dict[str, float], keyword: dict[str, float], factor: float, shift: float
) -> None:
    keyword = {key: score + 100 for key, score in keyword.items()}
    plain = {one.key: one.score for one in weighted([vector, keyword], (0.7, 0.3))}
    moved = {key: factor * score + shift for key, score in vector.items()}
    scaled = {key: factor * score for key, score in keyword.items()}
    for one in weighted([moved, scaled], (0.7, 0.3)):
        assert one.score == pytest.approx(plain[one.key], abs=1e-6)


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
