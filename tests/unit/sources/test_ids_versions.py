from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import BadDocument
from shoal.sources.ids import parse_location
from shoal.sources.versions import compact, comparable, parse_time

AT = datetime(2025, 1, 20, 14, 30, tzinfo=UTC)
MOMENTS = st.datetimes(datetime(1901, 1, 1), datetime(2199, 1, 1), timezones=st.just(UTC))


@pytest.mark.parametrize(
    "text",
    ["20250120T143000Z", "2025-01-20T14:30:00Z", "2025-01-20T14:30:00+00:00", "2025-01-20T15:30:00.000+0100",
     "20250120T1430Z", "2025-01-20 14:30:00", " 20250120T143000Z "],
)  # fmt: skip
def test_every_way_to_write_a_time_is_the_same_version(text):
    assert parse_time(text) == AT
    assert comparable(text) == "20250120T143000Z"


@pytest.mark.parametrize("text", ["v2", "20251320T000000Z", "99999999", "2025", "20250120T250000Z", "٢٠٢٥٠١٢٠", "now"])
def test_any_other_version_is_its_own_text(text):
    assert parse_time(text) is None
    assert comparable(text) == text


def test_no_version_sorts_before_all():
    assert comparable(None) == comparable("") == ""
    assert comparable("") < comparable("0") < comparable("20250120T143000Z")


@given(MOMENTS, MOMENTS)
def test_versions_compare_as_the_times_they_name(first, second):
    assert (first < second) == (compact(first) < compact(second))
    assert parse_time(first.isoformat()) == first


@given(st.text())
def test_no_text_breaks_the_parsing_of_versions(text):
    comparable(text)


def test_an_s3_key_is_taken_literally():
    location = parse_location("s3://bucket/a b/%41?x#y")
    assert (location.bucket, location.key) == ("bucket", "a b/%41?x#y")


def test_a_file_location_is_percent_decoded():
    assert str(parse_location("file:///data/a%20b.json").path) == "/data/a b.json"
    assert str(parse_location("FILE://localhost/data/x").path) == "/data/x"


@given(st.text())
def test_no_text_breaks_the_parsing_of_locations(text):
    for location in (text, f"s3://{text}", f"file:///{text}"):
        try:
            parse_location(location)
        except BadDocument:
            pass


def test_a_minute_of_fractions_stays_in_order():
    moments = [AT + timedelta(milliseconds=step) for step in (0, 1, 250, 999, 1000, 1001)]
    assert [compact(moment) for moment in moments] == sorted(compact(moment) for moment in moments)
