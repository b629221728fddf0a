"""Secrets leave URLs, parameters and messages; plain words and the rest of an address stay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.redaction import is_secret, redact_json, redact_text, redact_url


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
        ("https://h/?t=" + "a1" * 20, "https://h/?t=REDACTED"),
        ("https://h/?blob=QWxhZGRpbjpvcGVuIHNlc2FtZQ0123456789abcdef%3D%3D", "https://h/?blob=REDACTED"),
        ("https://h/?next=https%3A%2F%2Fu%3Ap%40g%2F%3Ftoken%3D1",
         "https://h/?next=https%3A%2F%2Fg%2F%3Ftoken%3DREDACTED"),
        ("https://h/?monkey=1&tokenize=&where=1%3D1", "https://h/?monkey=1&tokenize=&where=1%3D1"),
        ("no url at all", "no url at all"),
    ],
)  # fmt: skip
def test_a_url_loses_its_secrets_and_nothing_else(url, expected):
    assert redact_url(url) == expected
    assert redact_url(expected) == expected


@pytest.mark.parametrize(
    "name",
    ["apikey", "api_key", "X-Api-Key", "subscription-key", "x-functions-key", "key", "access_token", "client_id",
     "clientSecret", "passwd", "pwd", "sig", "sid", "jsessionid", "auth[token]", "AWSAccessKeyId", "Authorization"],
)  # fmt: skip
def test_a_name_that_tells_of_a_secret_is_enough(name):
    assert is_secret(name, "1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sortkey", "price"), ("sort_key", "settlement date"), ("monkey", "1"), ("keyword", "load"),
        ("tokenizer", "word"), ("secretary", "x"), ("author", "PJM"), ("design", "b"), ("compass", "n"),
        ("code", "A65"), ("sign", "plus"), ("session", "2"), ("hash", "md5"), ("appid", "web"),
        ("resource_id", "0f1b6c1e-57c0-4b6e-9d30-0c3e7d6a2b11"), ("signal", "1"),
        ("report", "day-ahead-locational-marginal-prices-hourly"),
        ("queryname", "PRC_LMP"), ("date", "20250120T1430Z"),
    ],
)  # fmt: skip
def test_plain_words_and_choices_are_no_secrets(name, value):
    assert not is_secret(name, value)


@pytest.mark.parametrize("name", ["code", "sign", "session", "appid", "hash"])
def test_a_name_of_two_meanings_is_judged_by_its_value(name):
    assert is_secret(name, "4f9a-1b2c-77")


@given(st.text())
def test_no_text_breaks_redaction(text):
    redact_url(text)
    redact_url(f"https://{text}")
    redact_url(f"https://h/?a={text}")
    is_secret(text, text)


def test_secrets_in_unknown_fields_are_found_at_any_depth():
    found = redact_json({"a": [{"url": "see https://u:p@h/x now"}], "api_key": "k", "key": "load.json", "n": 1})
    assert found == {"a": [{"url": "see https://h/x now"}], "api_key": "REDACTED", "key": "load.json", "n": 1}


def test_a_hostile_depth_does_not_end_the_process():
    deep: object = "https://u:p@h/"
    for _ in range(5000):
        deep = [deep]
    redact_json(deep)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{"n": 1, "password": "hunter2", "b": 2', '{"n": 1, "password": "REDACTED", "b": 2'),
        (r'{"password": "hun\"ter2", "b": 2', '{"password": "REDACTED", "b": 2'),
        ('{"password": "hunter2 without an end', '{"password": "REDACTED'),
        ('x="y api_key=hunter2" z', 'x="y api_key=REDACTED" z'),
        ("Authorization: Bearer hunter2hunter2", "Authorization: REDACTED"),
        ("refused sk-hunter2hunter2hunter2", "refused REDACTED"),
        ("GET https://u:hunter2@h/x?token=hunter2&a=1 failed", "GET https://h/x?token=REDACTED&a=1 failed"),
    ],
)
def test_secrets_in_text_that_no_parser_takes_are_found_by_name_or_shape(text, shown):
    assert redact_text(text) == shown


@pytest.mark.parametrize("text", ["missing key: dataset", f"sha256: {'a' * 64}", "size=45120, md5 differs", "a: b: c"])
def test_what_errors_say_stays_as_it_is(text):
    assert redact_text(text) == text


@given(st.text())
def test_no_text_breaks_the_redaction_of_text(text):
    redact_text(text)
    assert "hunter2" not in redact_text(f'"password": "hunter2" {text}')
