"""Recall's pure half: the figure, the search for a setting, and what searches take from what was written."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.store.recall import (
    DEFAULT,
    LAST_RESORTS,
    REFINES,
    TUNING_AGE_MAX,
    IndexMark,
    Ladder,
    Measurement,
    NearestDistances,
    Rung,
    Setting,
    alarm_of,
    for_limit,
    goal_of,
    is_due,
    made_queries,
    recall,
    statistics_of,
    tuning_of,
)

NOW = datetime(2026, 1, 20, 3, tzinfo=UTC)
MARK = IndexMark("IvfPq", 316, "abc", 100_000)
RNG = np.random.default_rng(7)


def a_measurement(recalled: float = 0.97, setting: Setting = Setting(20, 2), **fields: Any) -> Measurement:  # noqa: B008
    rung = Rung(setting, recalled, 5.0)
    before = Rung(DEFAULT, 0.99, 9.0)
    known = {
        "at": NOW, "commit_sequence": 7, "index": MARK, "target": 0.95, "k": 10, "depth": 256, "real": 40, "made": 24,
        "before": before, "chosen": rung, "rungs": (rung, before), "took_s": 4.0,
    }  # fmt: skip
    return Measurement(**(known | fields))


def written(measurement: Measurement) -> Any:
    return orjson.loads(orjson.dumps(measurement.to_json()))


# --- the figure -------------------------------------------------------------------------------


def test_recall_is_the_share_of_the_exact_nearest_that_was_found() -> None:
    exact = np.array([[0.1, 0.2, 0.3], [0.1, 0.1, 0.4]], np.float32)
    assert recall([[0.1, 0.2, 0.3], [0.1, 0.1, 0.4]], exact) == 1.0
    assert recall([[0.1, 0.3, 0.5], [0.1, 0.5, 0.6]], exact) == pytest.approx(3 / 6)
    assert recall([[], [0.7]], exact) == 0.0
    assert recall([], np.zeros((0, 3), np.float32)) == 1.0


def test_ties_count_as_found_and_nothing_beyond_k_does() -> None:
    exact = np.array([[0.1, 0.2]], np.float32)
    assert recall([[0.2, 0.2000001]], exact) == 1.0  # which of equals an index returns is chance
    assert recall([[0.1, 0.3, 0.2]], exact) == 0.5


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 5))
def test_one_pass_in_batches_finds_the_same_distances_as_all_at_once(rows: int, k: int, batch: int) -> None:
    rng = np.random.default_rng(rows * 100 + k)
    vectors = rng.standard_normal((rows, 4)).astype(np.float32)
    queries = rng.standard_normal((3, 4)).astype(np.float32)
    nearest = NearestDistances(queries, k)
    for start in range(0, rows, batch):
        nearest.take(vectors[start : start + batch])
    cosine = (queries @ vectors.T) / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(vectors, axis=1)
    assert nearest.distances() == pytest.approx(np.sort(1 - cosine, axis=1)[:, :k], abs=1e-5)


def test_rows_without_a_direction_are_near_to_nothing() -> None:
    nearest = NearestDistances(np.array([[1.0, 0.0]], np.float32), 5)
    nearest.take(np.array([[0, 0], [np.nan, 1], [np.inf, 1], [1, 1]], np.float32))
    assert nearest.distances() == pytest.approx(np.array([[1 - 0.5**0.5]]), abs=1e-6)


def test_made_questions_are_near_the_row_they_come_from_and_not_it() -> None:
    rows = RNG.standard_normal((50, 64)).astype(np.float32)
    made = made_queries(rows, RNG)
    cosine = np.sum(rows * made, axis=1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(made, axis=1)
    assert (cosine > 0.9).all()
    assert (cosine < 0.99).all()


# --- the search for a setting -----------------------------------------------------------------

LADDER = Ladder(rows=100_000, partitions=316, depth=256)
GRID = [Setting(probes, refine) for probes in LADDER.probes() for refine in REFINES]


def climbed(ladder: Ladder, true: dict[Setting, float], target: float) -> tuple[Setting, dict[Setting, float]]:
    """What is chosen where measuring gives `true`, and what was measured for it."""
    known = {DEFAULT: true[DEFAULT]}
    while (wanted := ladder.next(known, goal_of(target))) is not None:
        assert wanted not in known
        known[wanted] = true[wanted]
    return ladder.choose(known, target), known


def monotone(probe_quality: list[float], refine_quality: list[float]) -> dict[Setting, float]:
    """Recall that falls short by the worse of the two: more of either never harms."""
    by_probes = dict(zip(LADDER.probes(), sorted(probe_quality), strict=True))
    by_refine = dict(zip((*REFINES, *LAST_RESORTS), sorted(refine_quality), strict=True))
    settings = [*GRID, *(Setting(None, refine) for refine in LAST_RESORTS)]
    return {one: min(by_probes[one.nprobes], by_refine[one.refine]) for one in settings}


SHARE = st.floats(0.5, 1.0)
QUALITIES = st.builds(
    monotone,
    st.lists(SHARE, min_size=len(LADDER.probes()), max_size=len(LADDER.probes())),
    st.lists(SHARE, min_size=len(REFINES) + len(LAST_RESORTS), max_size=len(REFINES) + len(LAST_RESORTS)),
)


@given(QUALITIES)
def test_the_cheapest_setting_that_holds_is_found_where_more_never_harms(true: dict[Setting, float]) -> None:
    chosen, known = climbed(LADDER, true, 0.95)
    holding = [setting for setting in GRID if true[setting] >= goal_of(0.95)]
    if holding:
        assert LADDER.cost(chosen) == min(map(LADDER.cost, holding))
    else:
        assert true[chosen] == max(true.values()) or true[chosen] >= 0.95
    assert len(known) <= len(LADDER.probes()) + len(REFINES) * 2 + len(LAST_RESORTS)


def test_where_nothing_holds_the_best_is_chosen_and_the_alarm_says_so() -> None:
    true = monotone([0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9][: len(LADDER.probes())], [0.3, 0.5, 0.6, 0.7, 0.8])
    chosen, _ = climbed(LADDER, true, 0.95)
    assert chosen == Setting(None, LAST_RESORTS[-1])
    alarm = a_measurement(true[chosen], chosen).alarm
    assert alarm is not None
    assert "recall@10 is 0.800 at best, below 0.95" in alarm
    assert a_measurement(0.95).alarm is None


def test_a_target_held_only_by_reading_far_too_much_raises_the_alarm_too() -> None:
    alarm = a_measurement(0.99, Setting(None, 8)).alarm
    assert alarm is not None
    assert "only where each search reads 2048 chunks" in alarm
    assert a_measurement(0.99, Setting(None, REFINES[-1])).alarm is None


def test_an_index_without_known_partitions_is_only_refined() -> None:
    ladder = Ladder(5_000, None, 256)
    assert ladder.probes() == [None]
    chosen, _ = climbed(ladder, {Setting(None, n): 0.9 + n / 100 for n in (*REFINES, *LAST_RESORTS)}, 0.95)
    assert chosen == Setting(None, 8)


def test_the_steps_end_below_the_partitions() -> None:
    assert Ladder(1_000, 16, 256).probes() == [5, 10, None]
    assert Ladder(300, 1, 256).probes() == [None]


# --- what searches take from it ---------------------------------------------------------------


def test_a_setting_survives_being_written() -> None:
    for setting in (Setting(20, 2), Setting(None, 4)):
        tuning = tuning_of(written(a_measurement(setting=setting)))
        assert tuning is not None
        assert (tuning.setting, tuning.partitions, tuning.depth, tuning.indexed_rows) == (setting, 316, 256, 100_000)
    assert tuning_of(written(a_measurement(index=None, chosen=None))) is None


def test_a_tuning_that_is_old_or_of_an_index_of_another_size_does_not_fit() -> None:
    tuning = tuning_of(written(a_measurement()))
    assert tuning is not None
    assert tuning.fits(100_000, NOW)
    assert tuning.fits(199_000, NOW + timedelta(hours=20))
    assert not tuning.fits(201_000, NOW)
    assert not tuning.fits(49_000, NOW)
    assert not tuning.fits(100_000, NOW + TUNING_AGE_MAX + timedelta(seconds=1))
    assert not tuning.fits(100_000, NOW - timedelta(hours=1))


ODD_VALUES: list[Any] = [None, True, -1, 0, 1.5, 10**15, "20", [], {}, float("inf"), "2026-01-20"]


def test_a_damaged_or_hostile_file_holds_no_setting_and_no_figures() -> None:
    sound = written(a_measurement())
    for value in ODD_VALUES:
        assert tuning_of(value) is None
        assert statistics_of(value) is None
        assert due(value, MARK, NOW)
    for name, value in itertools.product(("at", "index", "refine", "depth"), ODD_VALUES):
        assert tuning_of(sound | {name: value}) is None
    for value in ODD_VALUES[1:]:
        assert tuning_of(sound | {"nprobes": value}) is None
    for name, value in itertools.product(("partitions", "indexed_rows"), ODD_VALUES[1:]):
        found = tuning_of(sound | {"index": sound["index"] | {name: value}})
        assert found is None or value == 10**15
    for name, value in itertools.product(("at", "queries"), ODD_VALUES):
        assert statistics_of(sound | {name: value}) is None
    for share in (-0.1, 1.1, "0.9", None, True):
        assert statistics_of(sound | {"recall": share}) is None
    assert tuning_of({name: value for name, value in sound.items() if name != "index"}) is None


def test_the_figures_are_what_was_written() -> None:
    figures = statistics_of(written(a_measurement()))
    assert figures is not None
    assert (figures.recall, figures.target, figures.k, figures.nprobes, figures.refine) == (0.97, 0.95, 10, 20, 2)
    assert (figures.queries_real, figures.queries_made, figures.alarm) == (40, 24, None)
    exact = statistics_of(written(a_measurement(index=None, chosen=None, before=None, rungs=())))
    assert exact is not None
    assert (exact.recall, exact.refine, exact.alarm) == (1.0, None, None)


def test_an_alarm_belongs_to_the_training_that_it_was_measured_on() -> None:
    low = written(a_measurement(0.8, Setting(None, 16)))
    assert "0.800 at best" in str(alarm_of(low, "abc"))
    assert [alarm_of(low, "other"), alarm_of(low, None), alarm_of(written(a_measurement()), "abc")] == [None] * 3
    for value in ODD_VALUES:
        assert alarm_of(value, "abc") is None
        assert alarm_of(low | {"index": value}, "abc") is None


def due(value: Any, mark: IndexMark | None, now: datetime, commit_sequence: int = 8, target: float = 0.95) -> bool:
    return is_due(value, mark, commit_sequence, now, 900, target)


def test_measuring_is_due_by_time_and_at_once_for_another_training() -> None:
    value = written(a_measurement(took_s=4.0))
    assert not due(value, MARK, NOW + timedelta(seconds=899))
    assert due(value, MARK, NOW + timedelta(seconds=900))
    assert not due(value, replace(MARK, indexed_rows=101_000), NOW)  # rows were folded in
    assert due(value, replace(MARK, training="other"), NOW)
    assert due(value, None, NOW)
    assert due(value, MARK, NOW - timedelta(hours=1))  # the clock was set back
    assert due(None, None, NOW)


def test_what_took_long_is_measured_less_often() -> None:
    value = written(a_measurement(took_s=100.0))
    assert not due(value, MARK, NOW + timedelta(seconds=4_999))
    assert due(value, MARK, NOW + timedelta(seconds=5_000))


def test_without_an_index_nothing_is_due_until_there_is_one() -> None:
    value = written(a_measurement(index=None, chosen=None))
    assert not due(value, None, NOW + timedelta(days=30))
    assert due(value, MARK, NOW)


def test_on_the_same_commit_it_is_measured_again_only_before_the_tuning_is_too_old() -> None:
    value = written(a_measurement())
    half = timedelta(hours=12)
    assert not due(value, MARK, NOW + half - timedelta(seconds=1), commit_sequence=7)
    assert due(value, MARK, NOW + half, commit_sequence=7)
    tuning = tuning_of(value)
    assert tuning is not None
    assert tuning.fits(MARK.indexed_rows, NOW + half)
    assert due(value, replace(MARK, training="other"), NOW, commit_sequence=7)
    assert due(value, MARK, NOW + timedelta(seconds=900), commit_sequence=7, target=0.9)  # the setting has changed
    assert due(value, MARK, NOW - timedelta(hours=1), commit_sequence=7)


def test_untuned_searches_look_into_every_partition() -> None:
    assert for_limit(None, 256, filtered=False) == (None, 2)
    assert for_limit(None, 10, filtered=False) == (None, 10)


def test_a_tuned_search_refines_as_many_candidates_and_a_deeper_one_looks_into_more_partitions() -> None:
    tuning = tuning_of(written(a_measurement(setting=Setting(20, 4))))
    assert for_limit(tuning, 256, filtered=False) == (20, 4)
    assert for_limit(tuning, 1_024, filtered=False) == (80, 1)
    assert for_limit(tuning, 16_384, filtered=False) == (None, 1)  # 1280 of 316
    assert for_limit(tuning, 100, filtered=False) == (20, 11)
    assert for_limit(tuning, 1, filtered=False) == (20, 64)  # bounded, whatever was written


def test_a_filtered_search_takes_only_more_from_a_tuning() -> None:
    lower, higher = (tuning_of(written(a_measurement(setting=Setting(5, refine)))) for refine in (1, 8))
    assert for_limit(lower, 256, filtered=True) == (None, 2)
    assert for_limit(higher, 256, filtered=True) == (None, 8)
