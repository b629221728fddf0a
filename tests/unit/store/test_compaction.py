"""Which fragments are joined: few stay, and none is written over and over."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.store.compaction import FAN_IN, Fragment, left_alone


def _round(fragments: list[Fragment], fan_in: int = FAN_IN) -> tuple[list[Fragment], int]:
    """The fragments after a compaction, and the rows it wrote."""
    left = set(left_alone(fragments, fan_in))
    kept = [one for one in fragments if one.id in left]
    joined = [one for one in fragments if one.id not in left]
    if len(joined) < 2 and not any(one.deleted for one in joined):
        return fragments, 0
    rows = sum(one.live for one in joined)
    return [*kept, Fragment(joined[-1].id, rows, 0)], rows


@given(st.lists(st.integers(1, 400), min_size=1, max_size=600), st.integers(2, FAN_IN))
def test_few_fragments_stay_and_a_row_is_rewritten_about_once_per_class(sizes: list[int], fan_in: int) -> None:
    fragments: list[Fragment] = []
    written = 0
    for at, rows in enumerate(sizes):
        fragments.append(Fragment(at, rows, 0))
        if at % 40 == 39:
            fragments, more = _round(fragments, fan_in)
            written += more
            classes = len(_digits(sum(one.rows for one in fragments), fan_in))
            assert len(fragments) <= (fan_in - 1) * classes + 1
    assert sum(one.rows for one in fragments) == sum(sizes)
    assert written <= sum(sizes) * len(_digits(sum(sizes), fan_in))


def _digits(number: int, base: int) -> list[int]:
    return [number % base, *(_digits(number // base, base) if number >= base else [])]


def test_an_hour_of_small_commits_does_not_write_the_table_anew_each_time() -> None:
    fragments = [Fragment(0, 8_000, 0)]
    written = 0
    for commit in range(1, 7_201):
        fragments.append(Fragment(commit, 5, 0))
        if commit % 40 == 0:
            fragments, more = _round(fragments)
            written += more
    assert written < 5 * 7_200 * 5, "joining everything each time writes 180 times 8,000 rows and more"


def test_what_is_worn_by_deletions_is_rewritten_whatever_its_class() -> None:
    assert left_alone([Fragment(1, 8_000, 0), Fragment(2, 8_000, 900), Fragment(3, 8_000, 800)]) == [1, 3]


def test_a_few_small_fragments_wait() -> None:
    assert left_alone([Fragment(1, 600, 0), Fragment(2, 1, 0), Fragment(3, 3, 0)]) == [1, 2, 3]
    assert left_alone([Fragment(1, 600, 0), *(Fragment(2 + n, 1, 0) for n in range(8))]) == [1]


def test_a_fragment_without_rows_is_no_reason_to_fail() -> None:
    assert left_alone([]) == []
    assert left_alone([Fragment(1, 0, 0), Fragment(2, 4, 4)]) == [1]
