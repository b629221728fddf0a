"""Histograms as counts: exact, summable, and as Prometheus wants them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.histograms import BOUNDS_S, Durations, read


@given(st.lists(st.floats(-1, 10_000), max_size=50), st.lists(st.floats(0, 10_000), max_size=50))
def test_histograms_of_two_actors_sum_to_that_of_both(first: list[float], second: list[float]) -> None:
    apart, together = (Durations(), Durations()), Durations()
    for durations, values in zip(apart, (first, second), strict=True):
        for value in values:
            durations.observe("stage.fetch", value)
            together.observe("stage.fetch", value)
    sums: dict[str, int] = {}
    for durations in apart:
        for name, count in durations.counts().items():
            sums[name] = sums.get(name, 0) + count
    assert read(sums) == read(together.counts())
    if values := [max(0.0, value) for value in [*first, *second]]:
        reading = read(sums)["stage.fetch"]
        assert reading.count == len(values)
        assert reading.sum_s == pytest.approx(sum(values), abs=1e-6 * len(values))
        for bound, count in zip(BOUNDS_S, reading.buckets, strict=False):
            assert count == (str(bound), sum(value <= bound for value in values))


def test_what_was_observed_later_is_not_in_earlier_counts() -> None:
    durations = Durations()
    durations.observe("a", 1)
    before = durations.counts()
    durations.observe("a", 1)
    assert read(before)["a"].count == 1


@pytest.mark.parametrize("counts", [{"odd": 3}, {"a|x": 1}, {"a|99": 1}, {"|3": 1}])
def test_odd_counts_count_for_nothing(counts: dict[str, int]) -> None:
    assert sum(reading.count for reading in read(counts).values()) == 0
