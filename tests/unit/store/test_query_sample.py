"""The sample of questions: bounded, distinct, the newest, and safe to read whoever wrote it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.records import Vector
from shoal.store.query_sample import AGE_MAX, KEPT_MAX, QuerySample, gathered, is_stale, vectors_of

NOW = datetime(2026, 1, 20, 3, tzinfo=UTC)
WIDTH = 4


def vector(number: int) -> Vector:
    return np.array([1.0, number, 0.0, 0.0], np.float32)


def numbers(vectors: list[Vector]) -> list[int]:
    return [int(one[1]) for one in vectors]


def written(sample: QuerySample) -> Any:
    return orjson.loads(orjson.dumps(sample.to_json(NOW, WIDTH)))


@given(st.lists(st.integers(0, 20), max_size=60), st.integers(0, 8))
def test_it_holds_the_newest_distinct_questions_and_never_more_than_its_size(asked: list[int], size: int) -> None:
    sample = QuerySample(size)
    for number in asked:
        sample.note(vector(number))
        assert len(sample) <= size
    newest = list(dict.fromkeys(reversed(asked)))[:size]
    assert numbers(vectors_of(written(sample), WIDTH, NOW)) == newest


def test_a_question_asked_again_changes_nothing_that_must_be_written() -> None:
    sample = QuerySample(8)
    assert [sample.note(vector(number)) for number in (1, 2, 1, 3)] == [True, True, False, True]


@pytest.mark.parametrize(
    "wrong", [[0, 0, 0, 0], [np.nan, 0, 0, 0], [np.inf, 0, 0, 0], [1e30, 0, 0, 0], [1e-30, 0, 0, 0]]
)
def test_what_has_no_direction_in_half_precision_is_not_kept(wrong: list[float]) -> None:
    sample = QuerySample(8)
    assert not sample.note(np.array(wrong, np.float32))
    assert len(sample) == 0


def test_a_full_file_of_the_largest_vectors_stays_within_its_bound() -> None:
    sample = QuerySample(KEPT_MAX)
    for number in range(2 * KEPT_MAX):
        sample.note(np.full(1536, number + 1, np.float32))
    assert len(orjson.dumps(sample.to_json(NOW, 1536))) < 1_100_000


def test_files_that_are_old_of_another_width_or_damaged_count_for_nothing() -> None:
    sample = QuerySample(8)
    sample.note(vector(1))
    sound = written(sample)
    assert numbers(vectors_of(sound, WIDTH, NOW)) == [1]
    assert vectors_of(sound, WIDTH + 1, NOW) == []
    assert vectors_of(sound, WIDTH, NOW + AGE_MAX + timedelta(seconds=1)) == []
    assert is_stale(sound, NOW + AGE_MAX + timedelta(seconds=1))
    assert not is_stale(sound, NOW)
    odd: list[Any] = [
        None, [], "x", 3, {}, sound | {"at": "yesterday"}, sound | {"at": "2026-01-20T03:00:00"}, sound | {"at": 7},
        sound | {"at": (NOW + 2 * AGE_MAX).isoformat()}, sound | {"vectors": "AAAA"}, sound | {"vectors": {}},
    ]  # fmt: skip
    for value in odd:
        assert vectors_of(value, WIDTH, NOW) == []


def test_what_is_wrong_with_one_vector_costs_only_that_one() -> None:
    sample = QuerySample(8)
    sample.note(vector(1))
    value = written(sample)
    nan = "AH4AAAAAAAA="  # NaN, 0, 0, 0
    value["vectors"] = ["%%", None, 3, "AAAA", "AAAAAAAAAAA=", nan, "é", *value["vectors"]]
    assert numbers(vectors_of(value, WIDTH, NOW)) == [1]


def test_only_so_many_vectors_of_a_file_are_read() -> None:
    sample = QuerySample(1)
    sample.note(vector(1))
    value = written(sample)
    value["vectors"] *= 10 * KEPT_MAX
    assert len(vectors_of(value, WIDTH, NOW)) == KEPT_MAX


def test_each_replicas_newest_comes_before_any_replicas_second() -> None:
    busy, quiet = [vector(number) for number in (1, 2, 3)], [vector(4), vector(1)]
    assert numbers(gathered([busy, [], quiet], 3)) == [1, 4, 2]
    assert numbers(gathered([busy, quiet], 10)) == [1, 4, 2, 3]
    assert gathered([], 10) == []
