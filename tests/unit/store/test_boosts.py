"""Boosts: bounded, monotone, and nothing where they are off."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.store.boosts import DAY_S, WEIGHT_MAX, Boosts, boosted, recency
from shoal.store.filters import QueryError
from shoal.store.terms import terms_of

NOW = datetime(2025, 1, 20, 12, tzinfo=UTC)
WEIGHTS = st.floats(0, WEIGHT_MAX)
SCORES = st.floats(0, 1)
ROWS = st.fixed_dictionaries(
    {
        "collected_at": st.none() | st.datetimes(timezones=st.just(UTC)),
        "title": st.none() | st.sampled_from(["wind speed", "hourly wind", "solar", ""]),
    }
)
TERMS = terms_of("wind speed")


@given(SCORES, SCORES, ROWS, WEIGHTS, WEIGHTS)
def test_scores_stay_in_0_to_1_and_a_better_match_never_ranks_lower(
    one: float, other: float, row: dict[str, Any], recent: float, title: float
) -> None:
    boosts = Boosts(recency=recent, title=title)
    boosts.check()
    low, high = (boosted(match, row, TERMS, boosts, NOW).score for match in sorted((one, other)))
    assert 0.0 <= low <= high <= 1.0


@given(SCORES, ROWS)
def test_without_weights_nothing_changes_and_nothing_is_shown(match: float, row: dict[str, Any]) -> None:
    alone = boosted(match, row, TERMS, Boosts(), NOW)
    assert (alone.score, alone.values) == (match, {})


def test_of_equal_matches_the_newer_and_the_titled_are_better() -> None:
    new = {"collected_at": NOW - timedelta(days=1), "title": None}
    old = {"collected_at": NOW - timedelta(days=300), "title": "Wind speeds"}
    by_age, by_title = Boosts(recency=0.5), Boosts(title=0.5)
    assert boosted(0.8, new, TERMS, by_age, NOW).score > boosted(0.8, old, TERMS, by_age, NOW).score
    assert boosted(0.8, new, TERMS, by_title, NOW).score < boosted(0.8, old, TERMS, by_title, NOW).score
    shown = boosted(0.8, old, TERMS, by_title, NOW)
    assert shown.values == {"title": {"value": 1.0, "weight": 0.5}}
    assert shown.score == pytest.approx(0.8)


def test_recency_halves_with_every_half_life_and_never_exceeds_1() -> None:
    assert recency(NOW, NOW, DAY_S) == 1.0
    assert recency(NOW - timedelta(days=1), NOW, DAY_S) == 0.5
    assert recency(NOW - timedelta(days=3), NOW, DAY_S) == 0.125
    assert recency(NOW + timedelta(days=3), NOW, DAY_S) == 1.0
    assert recency(None, NOW, DAY_S) == 0.0
    assert recency(datetime(1, 1, 1, tzinfo=UTC), NOW, 1.0) == 0.0


@pytest.mark.parametrize(
    "boosts",
    [Boosts(recency=-0.1), Boosts(title=WEIGHT_MAX + 1), Boosts(recency=float("nan")), Boosts(half_life_s=0.0),
     Boosts(half_life_s=float("inf"))],
)  # fmt: skip
def test_weights_that_mean_nothing_are_refused(boosts: Boosts) -> None:
    with pytest.raises(QueryError):
        boosts.check()
