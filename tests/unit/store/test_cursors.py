"""Cursors: what is encoded comes back for the same query, and nothing else does."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.store.cursors import OFFSET_MAX, CursorError, KeysetCursor, OffsetCursor, decode, encode, fingerprint
from shoal.store.filters import Equals, QueryError

QUERY = fingerprint("sql", "scraper", Equals("dataset", "x"), False)
TIMES = st.datetimes(timezones=st.just(UTC)) | st.none()


@given(TIMES, st.text(max_size=200))
def test_a_place_in_a_listing_comes_back_to_the_microsecond(at: datetime | None, revision: str) -> None:
    assert decode(encode(KeysetCursor(at, revision), QUERY), QUERY) == KeysetCursor(at, revision)


@given(st.integers(1, OFFSET_MAX))
def test_a_depth_comes_back(offset: int) -> None:
    assert decode(encode(OffsetCursor(offset), QUERY), QUERY) == OffsetCursor(offset)


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_garbage_is_refused_with_our_error(text: str) -> None:
    with pytest.raises(CursorError):
        decode(text, QUERY)


@given(st.integers(0, 10_000), st.characters(categories=["Lu", "Ll", "Nd"]))
def test_any_changed_character_is_noticed(position: int, character: str) -> None:
    cursor = encode(KeysetCursor(datetime(2025, 1, 20, 14, 30, tzinfo=UTC), "prod:nyiso:a.json@1"), QUERY)
    position %= len(cursor)
    changed = cursor[:position] + character + cursor[position + 1 :]
    if changed != cursor:
        with pytest.raises(CursorError):
            decode(changed, QUERY)


def test_a_cursor_of_another_query_is_refused() -> None:
    other = fingerprint("sql", "scraper", Equals("dataset", "y"), False)
    with pytest.raises(CursorError, match="another query"):
        decode(encode(OffsetCursor(10), QUERY), other)


@pytest.mark.parametrize("offset", [0, -1, OFFSET_MAX + 1, True])
def test_a_depth_outside_the_bound_is_refused(offset: int) -> None:
    with pytest.raises(CursorError):
        decode(encode(OffsetCursor(offset), QUERY), QUERY)


def test_an_oversized_cursor_is_refused_unread() -> None:
    with pytest.raises(CursorError, match="too long"):
        decode("A" * 1_000_000, QUERY)


def test_a_cursor_error_is_the_callers_error() -> None:
    assert issubclass(CursorError, QueryError)
