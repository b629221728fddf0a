from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import BadDocument
from shoal.sources.ids import parse_location
from shoal.sources.redaction import redact_json, redact_url
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


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://u:p@host/x", "https://host/x"),
        ("https://u:p%40@host:8080/x?a=1", "https://host:8080/x?a=1"),
        ("//u@host/x", "//host/x"),
        ("https://h/?api_key=abc&d=1", "https://h/?api_key=REDACTED&d=1"),
        ("https://h/?d=1&API-KEY=abc#token=z", "https://h/?d=1&API-KEY=REDACTED#token=REDACTED"),
        ("https://web-api.tp.entsoe.eu/api?securityToken=1-2-3&documentType=A65",
         "https://web-api.tp.entsoe.eu/api?securityToken=REDACTED&documentType=A65"),
        ("https://b.s3.amazonaws.com/k?X-Amz-Credential=AK%2F1&X-Amz-Date=2&X-Amz-Signature=ff",
         "https://b.s3.amazonaws.com/k?X-Amz-Credential=REDACTED&X-Amz-Date=2&X-Amz-Signature=REDACTED"),
        ("https://h/?api%5Fkey=abc", "https://h/?api%5Fkey=REDACTED"),
        ("https://h/?q=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc", "https://h/?q=REDACTED"),
        ("https://h/?next=https%3A%2F%2Fu%3Ap%40g%2F%3Ftoken%3D1",
         "https://h/?next=https%3A%2F%2Fg%2F%3Ftoken%3DREDACTED"),
        ("https://h/?monkey=1&tokenize=&where=1%3D1", "https://h/?monkey=1&tokenize=&where=1%3D1"),
    ],
)  # fmt: skip
def test_a_url_loses_its_secrets_and_nothing_else(url, expected):
    assert redact_url(url) == expected
    assert redact_url(expected) == expected


@given(st.text())
def test_no_text_breaks_redaction(text):
    redact_url(text)
    redact_url(f"https://{text}")
    redact_url(f"https://h/?a={text}")


def test_secrets_in_unknown_fields_are_found_at_any_depth():
    found = redact_json({"a": [{"url": "see https://u:p@h/x now"}], "api_key": "k", "key": "load.json", "n": 1})
    assert found == {"a": [{"url": "see https://h/x now"}], "api_key": "REDACTED", "key": "load.json", "n": 1}


def test_a_hostile_depth_does_not_end_the_process():
    deep: object = "https://u:p@h/"
    for _ in range(5000):
        deep = [deep]
    redact_json(deep)


def test_a_minute_of_fractions_stays_in_order():
    moments = [AT + timedelta(milliseconds=step) for step in (0, 1, 250, 999, 1000, 1001)]
    assert [compact(moment) for moment in moments] == sorted(compact(moment) for moment in moments)
