"""Columns of times in the ways that feeds write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.documents.times import parse_epochs, parse_times, step


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-01-20", datetime(2025, 1, 20)),
        ("2025-01-20T14:30:00Z", datetime(2025, 1, 20, 14, 30, tzinfo=UTC)),
        ("2025-01-20 14:30:00-0500", datetime(2025, 1, 20, 19, 30, tzinfo=UTC)),
        ("2022-02-28T23", datetime(2022, 2, 28, 23)),
        ("2025-01", datetime(2025, 1, 1)),
        ("20250120", datetime(2025, 1, 20)),
        ("20250120143000", datetime(2025, 1, 20, 14, 30)),
        ("2025/1/20 4:05", datetime(2025, 1, 20, 4, 5)),
        ("01/20/2025 11:05:00 PM", datetime(2025, 1, 20, 23, 5)),
        ("20.01.2025. 14:30", datetime(2025, 1, 20, 14, 30)),
        ("20-Jan-2025 14:30:00", datetime(2025, 1, 20, 14, 30)),
        ("25-Jan-2018 - Interval 04:30 EST", datetime(2018, 1, 25, 4, 30)),
        ("Mon, 20 Jan 2025 14:30:00 GMT", datetime(2025, 1, 20, 14, 30)),
        ("January 20, 2025", datetime(2025, 1, 20)),
        ("01/20/2025 24:00", datetime(2025, 1, 21)),
        ("/Date(1737381600000)/", datetime(2025, 1, 20, 14, tzinfo=UTC)),
    ],
)
def test_a_time_is_read_in_any_usual_form(text, expected):
    assert parse_times([text]) == [expected]


@pytest.mark.parametrize(
    "text", ["12.5", "1234567", "WEST", "10.0.0.1", "2025-13-45", "99/99/2025", "20259999", "5-6-7 zones"]
)
def test_what_is_no_time_is_none(text):
    assert parse_times([text]) is None


def test_the_order_of_day_and_month_is_the_one_that_all_values_allow():
    assert parse_times(["03/04/2025", "25/04/2025"]) == [datetime(2025, 4, 3), datetime(2025, 4, 25)]


def test_where_both_orders_fit_the_closer_together_one_wins():
    days = [f"{day:02d}/04/2025" for day in range(1, 11)]
    assert parse_times(days) == [datetime(2025, 4, day) for day in range(1, 11)]


def test_numbers_are_epochs_only_within_a_plausible_century():
    assert parse_epochs([1737381600]) == ([datetime(2025, 1, 20, 14, tzinfo=UTC)], "epoch s")
    assert parse_epochs([1737381600000]) == ([datetime(2025, 1, 20, 14, tzinfo=UTC)], "epoch ms")
    assert parse_epochs([42, 1737381600]) is None


@pytest.mark.parametrize(
    ("minutes", "name"), [(5, "5-minute"), (30, "half-hourly"), (60, "hourly"), (1440, "daily"), (10080, "weekly")]
)
def test_the_step_of_a_series_is_named(minutes, name):
    start = datetime(2025, 1, 20)
    assert step([start + timedelta(minutes=minutes * i) for i in (3, 1, 2, 5, 4)]) == name


@given(st.lists(st.text(max_size=50), min_size=1, max_size=8))
def test_no_text_crashes_the_reading_of_times(texts):
    found = parse_times(texts)
    assert found is None or found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2023년 09월 01일 00시 05분", datetime(2023, 9, 1, 0, 5)),
        ("2023년 9월 1일(금) 24시", datetime(2023, 9, 2)),
        ("2023년 09월 01일 오후 3시 05분 10초", datetime(2023, 9, 1, 15, 5, 10)),
        ("2025年1月20日 午前12時30分", datetime(2025, 1, 20, 0, 30)),
        ("2025年1月20日", datetime(2025, 1, 20)),
    ],
)
def test_times_in_east_asian_words_are_read(text, expected):
    assert parse_times([text]) == [expected]


@pytest.mark.parametrize("text", ["2023년 13월 01일", "2023년 09월", "2023년 09월 01일 25시", "기온 3월 1일"])
def test_east_asian_words_that_are_no_date_are_none(text):
    assert parse_times([text]) is None
