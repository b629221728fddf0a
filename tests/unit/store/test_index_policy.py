"""When an index is built: what the policy promises, whatever the counts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.store.index_policy import (
    BACKOFF_MAX_S,
    CHEAP_ROWS_MAX,
    DELTAS_MAX,
    FOLD_ROWS_MAX,
    OUTGROWN,
    REST,
    TRAINING_ROWS_MIN,
    Act,
    Counts,
    Decision,
    Kind,
    Limits,
    Past,
    backoff_s,
    decide,
    decide_text,
    folds_in_place,
    partitions,
    rows_of,
    sub_vectors,
    threads,
    training,
)

LIMITS = Limits(Kind.IVF_PQ, 20_000, 600.0)
ROWS = st.integers(0, 50_000_000)
BUILDS = (Act.TRAIN, Act.MERGE, Act.FOLD)
KINDS = st.sampled_from([None, *Kind])


def counts(rows: int, segments: int = 1, unindexed: int = 0, trained: int | None = None, **more: Any) -> Counts:
    base = max(0, rows - unindexed)
    return Counts(rows, (base, *[10] * (segments - 1))[:segments], unindexed, trained or rows, **{
        "kind": Kind.IVF_PQ if segments else None, **more,
    })  # fmt: skip


some_counts = st.builds(
    counts, rows=ROWS, segments=st.integers(0, 12), unindexed=st.integers(0, 100_000),
    trained=st.integers(1, 10_000_000), kind=KINDS,
)  # fmt: skip
some_past = st.builds(
    Past, ended_s=st.none() | st.floats(0, 1e6), took_s=st.floats(0, 1e4), failures=st.integers(0, 40),
    is_building=st.booleans(), is_compacting=st.booleans(), defect=st.none() | st.just("a gap"),
    asked=st.sampled_from([None, Act.TRAIN, Act.MERGE]),
)  # fmt: skip
some_limits = st.builds(
    Limits, kind=st.sampled_from(list(Kind)), rows_min=st.integers(256, 100_000), interval_s=st.floats(0, 1e5)
)


def due(found: Counts, past: Past = Past(), limits: Limits = LIMITS) -> Decision:  # noqa: B008 - frozen
    return decide(found, past, limits)


@given(some_counts, some_past, some_limits)
def test_nothing_is_built_below_a_size(found: Counts, past: Past, limits: Limits) -> None:
    decision = decide(found, past, limits)
    if decision.due is Act.TRAIN:
        assert found.rows >= TRAINING_ROWS_MIN
        assert found.segments or found.rows >= limits.rows_min


@given(some_counts, some_past, some_limits)
def test_nothing_is_built_beside_a_build_or_a_compaction_or_by_the_setting_flat(
    found: Counts, past: Past, limits: Limits
) -> None:
    decision = decide(found, past, limits)
    if past.is_building or past.is_compacting or limits.kind is Kind.FLAT:
        assert decision.act not in BUILDS
    assert decision.act in (decision.due, Act.NOTHING)
    assert decision.why


@given(some_counts, some_past, some_limits)
def test_what_is_due_and_waits_is_done_once_the_wait_is_over(found: Counts, past: Past, limits: Limits) -> None:
    """It never starves: time, and the end of what runs now, are all that it waits for."""
    decision = decide(found, past, limits)
    later = Past(
        None if past.ended_s is None else past.ended_s + limits.interval_s + REST * past.took_s + BACKOFF_MAX_S,
        past.took_s, past.failures, defect=past.defect, asked=past.asked,
    )  # fmt: skip
    assert decide(found, later, limits).act is decision.due


@given(st.integers(20_000, 10_000_000), st.lists(st.floats(1, 900), min_size=1, max_size=60), st.floats(0, 500))
def test_builds_that_nobody_asked_for_take_at_most_a_fifth_of_the_time(
    rows: int, steps: list[float], took_s: float
) -> None:
    outgrown = counts(rows, trained=rows // 3)  # for ever: as if no training helped
    ended_s: float | None = None
    now, began = 0.0, list[float]()
    for step in steps:
        now += step
        past = Past(None if ended_s is None else max(0.0, now - ended_s), took_s if began else 0.0)
        if decide(outgrown, past, LIMITS).act is Act.TRAIN:
            began.append(now)
            now += took_s
            ended_s = now
    for before, after in pairwise(began):
        assert after - before >= took_s + max(LIMITS.interval_s, REST * took_s) - 1e-6


@given(ROWS, ROWS, st.sampled_from([Kind.IVF_PQ, Kind.IVF_RQ, Kind.IVF_HNSW_SQ]))
def test_more_rows_never_have_fewer_partitions_and_each_has_enough(one: int, other: int, kind: Kind) -> None:
    fewer, more = sorted((one, other))
    assert 1 <= partitions(fewer, kind) <= partitions(more, kind)
    assert partitions(more, kind) == 1 or more // partitions(more, kind) >= 256


@given(st.integers(256, 50_000_000))
def test_a_training_nobody_remembers_is_told_well_enough_by_its_partitions(rows: int) -> None:
    assert rows / 2 < min(rows, rows_of(partitions(rows))), "else it would be trained anew for nothing"
    assert partitions(rows) >= 1_000 or rows_of(partitions(rows)) <= 1.2 * rows + 256


@given(st.integers(1, 4096))
def test_sub_vectors_divide_the_width(width: int) -> None:
    assert width % sub_vectors(width) == 0
    assert sub_vectors(width) <= max(1, width // 16)


@pytest.mark.parametrize(
    ("found", "act"),
    [
        (counts(19_999, segments=0), Act.NOTHING),
        (counts(20_000, segments=0), Act.TRAIN),
        (counts(OUTGROWN * 20_000, trained=20_000), Act.NOTHING),
        (counts(OUTGROWN * 20_000 + 1, trained=20_000), Act.TRAIN),
        (counts(100_000, segments=DELTAS_MAX - 1), Act.NOTHING),
        (counts(100_000, segments=DELTAS_MAX), Act.MERGE),
        (counts(100_000, unindexed=FOLD_ROWS_MAX), Act.NOTHING),
        (counts(100_000, unindexed=FOLD_ROWS_MAX + 1), Act.FOLD),
        (counts(10_000_000, unindexed=FOLD_ROWS_MAX + 1), Act.FOLD),
        (counts(100_000, kind=Kind.IVF_RQ), Act.TRAIN),  # the setting was changed
        (counts(100_000, kind=None), Act.TRAIN),  # a kind that no setting names
        (counts(300, segments=2), Act.NOTHING),  # deleted down to few: the index stays
    ],
)
def test_each_bound_decides(found: Counts, act: Act) -> None:
    assert due(found).act is act


def test_the_setting_flat_drops_an_index() -> None:
    flat = Limits(Kind.FLAT, 20_000, 600.0)
    assert due(counts(100_000), limits=flat).act is Act.DROP
    assert due(counts(100_000, segments=0), limits=flat).act is Act.NOTHING


def test_a_broken_index_of_too_few_rows_to_train_is_dropped() -> None:
    broken, few = Past(defect="a gap"), TRAINING_ROWS_MIN - 1
    assert decide(counts(few), broken, LIMITS).act is Act.DROP
    assert decide(counts(few), Past(), LIMITS).act is Act.NOTHING
    assert decide(counts(few, segments=0), broken, LIMITS).act is Act.NOTHING
    assert decide(counts(TRAINING_ROWS_MIN), broken, LIMITS).act is Act.TRAIN


def test_a_defect_is_built_anew_without_a_rest_but_not_for_ever_at_once() -> None:
    found = counts(100_000)
    assert due(found, Past(ended_s=1.0, took_s=100.0, defect="a gap")).act is Act.TRAIN
    again = Past(ended_s=1.0, failures=3, defect="a gap")
    assert due(found, again).act is Act.NOTHING
    assert "failed" in due(found, again).why
    assert due(found, Past(ended_s=backoff_s(3), failures=3, defect="a gap")).act is Act.TRAIN


def test_what_an_operator_asks_is_done_where_it_can_be() -> None:
    soon = {"ended_s": 1.0, "took_s": 100.0}
    assert due(counts(100_000), Past(asked=Act.TRAIN, **soon)).act is Act.TRAIN
    assert due(counts(100_000, segments=2), Past(asked=Act.MERGE, **soon)).act is Act.MERGE
    assert due(counts(100_000), Past(asked=Act.MERGE, **soon)).act is Act.NOTHING, "there is nothing to merge"
    assert due(counts(100, segments=0), Past(asked=Act.TRAIN)).act is Act.NOTHING


def test_a_full_text_index_is_built_anew_where_it_is_broken_or_as_asked() -> None:
    found = counts(100)
    assert decide_text(found, Past()).act is Act.NOTHING
    assert decide_text(found, Past(asked=Act.TRAIN, ended_s=1.0)).act is Act.TRAIN
    assert decide_text(counts(100, unindexed=1), Past(asked=Act.MERGE, ended_s=1.0)).act is Act.MERGE
    assert decide_text(counts(100, segments=2), Past(asked=Act.MERGE, ended_s=1.0)).act is Act.MERGE
    assert decide_text(found, Past(asked=Act.MERGE)).due is Act.NOTHING, "there is nothing to merge"
    assert decide_text(found, Past(defect="a gap", ended_s=1.0, took_s=50.0)).act is Act.TRAIN
    assert decide_text(counts(100, segments=0), Past(defect="a gap")).act is Act.NOTHING, "maintenance makes it"
    again = decide_text(found, Past(defect="a gap", ended_s=1.0, failures=2))
    assert (again.act, again.due) == (Act.NOTHING, Act.TRAIN)


def test_a_full_text_index_made_with_other_options_is_built_anew_with_no_hurry() -> None:
    other = counts(100, is_other=True)
    assert decide_text(other, Past()) == Decision(Act.TRAIN, Act.TRAIN, "made with other options")
    soon = decide_text(other, Past(ended_s=1.0, took_s=1.0))
    assert (soon.act, soon.due) == (Act.NOTHING, Act.TRAIN)
    assert decide_text(other, Past(ended_s=1.0, took_s=1.0, asked=Act.TRAIN)).act is Act.TRAIN


def test_failures_are_tried_ever_more_rarely_and_never_given_up() -> None:
    waits = [backoff_s(failures) for failures in range(1, 60)]
    assert waits == sorted(waits)
    assert waits[0] < 60
    assert waits[-1] == BACKOFF_MAX_S


def test_training_is_cheaper_only_where_it_is_most_of_the_work() -> None:
    small, large = training(Kind.IVF_PQ, 100_000, 1536), training(Kind.IVF_PQ, CHEAP_ROWS_MAX, 1536)
    assert small["num_sub_vectors"] == large["num_sub_vectors"] == 96
    assert "sample_rate" in small
    assert "sample_rate" not in large
    assert training(Kind.IVF_RQ, 100_000, 1536) == {"num_partitions": 316}
    assert training(Kind.IVF_HNSW_SQ, 100_000, 1536) == {"num_partitions": 1}


def test_few_rows_are_folded_into_the_last_delta_until_it_is_large() -> None:
    def of(*segments: int, unindexed: int = 100, kind: Kind = Kind.IVF_PQ) -> int | None:
        return folds_in_place(Counts(0, segments, unindexed, kind=kind))

    assert of(100_000) == 0, "a first delta: the base is not rewritten for a hundred rows"
    assert of(100_000, 5_000) == 1
    assert of(100_000, 19_950) == 0
    assert of(100_000, 5_000, kind=Kind.IVF_HNSW_SQ) == 0, "a graph is built anew by each merge"
    assert of(100_000, unindexed=FOLD_ROWS_MAX + 1) is None
    assert of(100_000, unindexed=0) is None
    assert of() is None


@given(st.integers(100_000, 50_000_000), st.integers(1, DELTAS_MAX - 1), st.integers(1, 30_000))
def test_no_rows_are_too_many_for_the_writer_and_too_few_for_a_build(rows: int, segments: int, unindexed: int) -> None:
    """On a machine that goes idle nothing else ever takes them in."""
    found = counts(rows, segments, unindexed)
    assert folds_in_place(found) is not None or due(found).act is Act.FOLD


def test_a_fold_rests_after_a_build_like_any_other() -> None:
    decision = due(counts(100_000, unindexed=FOLD_ROWS_MAX + 1), Past(ended_s=1.0, took_s=10.0))
    assert (decision.act, decision.due) == (Act.NOTHING, Act.FOLD)


def test_a_build_has_at_least_a_thread_and_at_most_its_share() -> None:
    assert [threads(cores, 0.5) for cores in (1, 2, 3, 64)] == [1, 1, 1, 32]


DAY_S = 86_400.0


def test_an_alarm_of_recall_trains_anew_where_that_can_help() -> None:
    low = Past(alarm="recall@10 is 0.8", trained_s=60.0)
    assert due(counts(100_000, trained=95_000), low).act is Act.NOTHING, "the same rows make the same index"
    assert due(counts(100_000, trained=90_000), low) == Decision(Act.TRAIN, Act.TRAIN, "recall@10 is 0.8")
    assert due(counts(100_000), Past(alarm="low", trained_s=DAY_S)).act is Act.TRAIN
    assert due(counts(100_000), Past(alarm="low")).act is Act.TRAIN, "nobody knows how old it is"
    assert due(counts(100_000, trained=90_000), Past(trained_s=DAY_S)).act is Act.NOTHING


def test_a_training_for_an_alarm_rests_like_any_other() -> None:
    soon = Past(ended_s=1.0, took_s=100.0, alarm="low", trained_s=DAY_S)
    decision = due(counts(100_000), soon)
    assert (decision.act, decision.due) == (Act.NOTHING, Act.TRAIN)
