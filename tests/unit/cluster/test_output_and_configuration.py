"""What the command line prints: cells, JSON, and settings without their secrets."""

from __future__ import annotations

import json

import pytest

from shoal.cluster.configuration import environment_names, rows, shown
from shoal.cluster.output import cell, emit_json, say
from shoal.settings import Settings

SECRETS = {
    "openai_api_key": "sk-very-secret-1",
    "openai_base_url": "https://me:very-secret-2@example.org/v1",
    "s3_endpoint_url": "http://me:very-secret-3@127.0.0.1:9000",
    "kafka_properties": {
        "sasl.username": "me",
        "sasl.password": "very-secret-4",
        "ssl.key.password": "very-secret-5",
        "ssl.key.pem": "very-secret-6",
        "sasl.oauthbearer.client.secret": "very-secret-7",
        "sasl.oauthbearer.config": "very-secret-8",
    },
}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (0.5, "0.5"), (10.0, "10"), (1000.0, "1000"), (0.12345, "0.123"), (3, "3"), (True, "True"),
        ("a\n\tb  c", "a b c"), ("\x1b[31mred\x07", "[31mred"), ("\ud800x", "x"), ("", ""),
    ],
)  # fmt: skip
def test_a_cell_is_one_plain_line(value: object, text: str) -> None:
    assert cell(value) == text


def test_a_long_cell_is_cut_and_says_so() -> None:
    assert cell("x" * 500, 10) == "x" * 9 + "…"


def test_json_goes_to_stdout_alone(capsys: pytest.CaptureFixture[str]) -> None:
    emit_json({"a": 1})
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"a": 1}
    assert printed.err == ""


def test_neither_json_nor_advice_holds_what_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\x1b[31m red \x7f\x9b31m é"
    emit_json({text: text})
    say(text)
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {text: text}
    assert (printed.out + printed.err).replace("\n", "").isprintable()


def test_no_secret_is_ever_shown() -> None:
    found = rows(Settings(**SECRETS, _env_file=None))  # type: ignore[arg-type]
    assert "very-secret" not in json.dumps(found, default=str)
    assert next(row for row in found if row["name"] == "kafka_properties")["value"]["sasl.username"] == "me"


def test_every_setting_has_a_row_with_what_it_means_and_who_sets_it() -> None:
    found = rows(Settings(_env_file=None))
    assert {row["name"] for row in found} == set(Settings.model_fields)
    assert all(row["meaning"] and row["set by"] for row in found)


def test_a_row_says_where_its_value_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_TOPIC", "a,b")
    found = {row["name"]: row for row in rows(Settings(http_port=9, _env_file=None))}
    assert (found["kafka_topics"]["from"], found["kafka_topics"]["value"]) == ("KAFKA_TOPIC", "a,b")
    assert found["http_port"]["from"] == "file or option"
    assert found["readers"]["from"] == "default"


def test_the_name_that_deployments_know_stands_first() -> None:
    assert environment_names("kafka_brokers")[0] == "KAFKA_BROKERS"
    assert environment_names("readers") == ("SHOAL_READERS",)


def test_an_unset_secret_is_shown_as_unset() -> None:
    assert shown("openai_api_key", None) is None


def test_the_key_of_our_own_commands_is_not_shown() -> None:
    settings = Settings(api_key="shoal_0123456789_" + "x" * 49)
    assert "xxxx" not in str(rows(settings))
    assert "xxxx" not in repr(settings)
