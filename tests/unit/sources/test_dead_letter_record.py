from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import DeadReason
from shoal.records import Failure, Position
from shoal.sources.dead_letter_record import dataset_of, is_original_of, read_back, replay_message, value_bytes
from shoal.sources.dead_letter_state import State, StateRecord, replay_of
from shoal.sources.dead_letters import KEPT_HEADERS_BYTES_MAX, VALUE_BYTES_MAX, dead_letter
from shoal.sources.messages import RawMessage, origin_of

AT = datetime(2025, 1, 20, 14, 30, tzinfo=UTC)
WHY = Failure(DeadReason.OBJECT_MISSING, "there is no such file", "fetch")


def lying(message: RawMessage, retry_count: int = 0) -> RawMessage:
    """The dead letter of `message` as it is read from its topic."""
    topic, key, value, headers = dead_letter(message, WHY, AT, retry_count)
    return RawMessage(Position("c", topic, 0, 17, 1_737_383_401_000), key, value, tuple(headers))


def test_a_dead_letter_is_read_back_as_it_was_written(raw):
    letter = read_back(lying(raw({"a": 1}, key=b"id"), 2))
    assert letter.id == "scraper-notifications_dlq/0/17"
    assert (letter.topic, letter.source_partition, letter.source_offset) == ("scraper-notifications", 3, 42)
    assert (letter.reason, letter.stage, letter.message) == ("object_missing", "fetch", "there is no such file")
    assert (letter.failed_at, letter.retry_count, letter.original_timestamp_ms) == (AT, 2, 1_737_383_400_000)
    assert not letter.is_incomplete


def test_a_replay_is_the_message_as_it_was_and_says_what_it_repeats_and_where_that_stood(raw):
    message = raw({"a": 1}, key=b"id", origin=b"\xff\x00")
    topic, key, value, headers = replay_message(read_back(lying(message)))
    assert (topic, key, value) == ("scraper-notifications", b"id", message.value)
    assert headers == [
        ("shoal.dlq.id", b"scraper-notifications_dlq/0/17"), ("shoal.dlq.replayed", b"1"),
        ("shoal.replay.of", f"{message.position.cluster}/scraper-notifications/3/42@1737383400000".encode()),
        ("origin", b"\xff\x00"),
    ]  # fmt: skip
    assert origin_of(replace(message, headers=tuple(headers))) == message.position


def test_a_tombstone_is_replayed_as_a_tombstone(raw):
    assert replay_message(read_back(lying(raw(None))))[2] is None


def test_a_message_that_dies_again_and_again_keeps_the_place_it_had_at_first(raw):
    first = message = raw({})
    for offset in (100, 200, 300):
        headers = replay_message(read_back(lying(message)))[3]
        message = replace(message, headers=tuple(headers), position=replace(message.position, offset=offset))
        assert origin_of(message) == first.position


def test_each_death_and_replay_counts_one_more_and_names_the_last(raw):
    message = raw({})
    for count in (1, 2, 3):
        letter = read_back(lying(message, count - 1))
        assert (letter.attempts, letter.retry_count) == (count - 1, count - 1)
        _, key, value, headers = replay_message(letter)
        message = replace(message, key=key, value=value, headers=tuple(headers))
        found = replay_of(message)
        assert found is not None
        assert (found.dead_letter_id, found.count) == (letter.id, count)
    assert read_back(lying(message)).replay_of == "scraper-notifications_dlq/0/17"


def test_a_second_replay_of_the_same_letter_counts_too(raw):
    """Else `--all` could send a poisonous message for ever, and two outcomes would have one number."""
    state = StateRecord("scraper-notifications_dlq/0/17", State.RETURNED, 4)
    letter = read_back(lying(raw({})), state)
    assert letter.attempts == 4
    assert ("shoal.dlq.replayed", b"5") in replay_message(letter)[3]


def test_our_headers_survive_where_others_fill_the_room(raw):
    message = raw({}, x=b"y" * (KEPT_HEADERS_BYTES_MAX - 10))
    _, _, _, headers = replay_message(read_back(lying(message)))
    again = read_back(lying(replace(message, headers=tuple(headers))))
    assert (again.replays, again.replay_of) == (1, "scraper-notifications_dlq/0/17")
    assert again.is_incomplete


def test_a_stub_is_known_by_its_headers_or_by_its_value_and_names_its_original(raw):
    message = raw(b"x" * (VALUE_BYTES_MAX + 1))
    with_headers = lying(message)
    for one in (with_headers, replace(with_headers, headers=())):
        letter = read_back(one)
        assert letter.is_incomplete
        assert letter.value_sha256 == hashlib.sha256(message.value or b"").hexdigest()
        assert is_original_of(letter, message)
        assert not is_original_of(letter, replace(message, value=b"y" * (VALUE_BYTES_MAX + 1)))
        assert not is_original_of(letter, replace(message, key=b"another"))
    assert value_bytes(read_back(with_headers)) == VALUE_BYTES_MAX + 1


def test_a_message_that_only_speaks_of_stubs_is_none(raw):
    assert not read_back(lying(raw({"shoal_stub": False}))).is_incomplete
    assert not read_back(lying(raw({"text": '"shoal_stub" is a word'}))).is_incomplete


def test_an_original_of_which_only_headers_are_missing_has_the_same_key_and_value(raw):
    message = raw({"a": 1}, x=b"y" * KEPT_HEADERS_BYTES_MAX)
    letter = read_back(lying(message))
    assert letter.is_incomplete
    assert is_original_of(letter, message)
    assert not is_original_of(letter, replace(message, key=b"another"))
    assert not is_original_of(letter, replace(message, value=b"another"))


@pytest.mark.parametrize("key_bytes", [3, 100_000])
def test_an_original_is_known_by_its_key_even_where_only_the_keys_hash_was_kept(raw, key_bytes):
    message = raw(b"x" * (VALUE_BYTES_MAX + 1), key=b"k" * key_bytes)
    letter = read_back(lying(message))
    assert letter.is_incomplete
    assert is_original_of(letter, message)
    assert not is_original_of(letter, replace(message, key=b"another"))
    topic, key, value, _ = replay_message(letter, message)
    assert (topic, key, value) == ("scraper-notifications", message.key, message.value)


def test_what_others_wrote_is_listed_as_what_it_is():
    foreign = RawMessage(Position("c", "a_dlq", 2, 5, 1_737_383_400_000), None, b"\xff", ())
    letter = read_back(foreign)
    assert (letter.id, letter.topic) == ("a_dlq/2/5", "a")
    assert (letter.reason, letter.message, letter.source_offset, letter.retry_count) == (None, None, None, 0)
    assert letter.failed_at == AT
    assert replay_message(letter)[:3] == ("a", None, b"\xff")


def test_no_header_sends_a_replay_to_another_topic(raw):
    headers = (("__connect.errors.topic", b"shoal_commands"), ("shoal.dlq.id", b"shoal_commands_dlq/0/0"))
    letter = read_back(replace(lying(raw({})), headers=headers))
    topic, _, _, sent = replay_message(letter)
    assert topic == "scraper-notifications"
    assert ("shoal.dlq.id", letter.id.encode()) in sent


NAMES = st.sampled_from(
    [
        "__connect.errors.topic", "__connect.errors.partition", "__connect.errors.offset", "__connect.errors.stage",
        "__connect.errors.exception.message", "shoal.dlq.reason", "shoal.dlq.failed_at", "shoal.dlq.retry_count",
        "shoal.dlq.original_timestamp", "shoal.dlq.replayed", "shoal.dlq.id", "shoal.dlq.value_sha256",
        "shoal.dlq.value_bytes", "shoal.dlq.key_bytes", "other",
    ]
)  # fmt: skip
BYTES = st.one_of(st.none(), st.binary(max_size=40), st.integers().map(lambda n: str(n).encode()))


@given(st.lists(st.tuples(NAMES, BYTES), max_size=12), BYTES, BYTES, st.integers(-1, 2**63 - 1))
def test_no_headers_make_it_fail(headers, key, value, timestamp_ms):
    message = RawMessage(Position("c", "a_dlq", 0, 0, timestamp_ms), key, value, tuple(headers))
    letter = read_back(message)
    assert replay_message(letter)[0] == "a"
    is_original_of(letter, message)
    dataset_of(letter)
    value_bytes(letter)


@pytest.mark.parametrize(
    ("key", "value", "dataset"),
    [
        (b"prod:by_key:u", b'{"dataset": "by_value"}', "by_value"),
        (b"prod:by_key:u", b"not json", "by_key"),
        (b"prod:by_key:u", None, "by_key"),
        (b"key", b"[]", None),
        (None, b"{}", None),
    ],
)
def test_the_dataset_is_that_of_the_notification_else_of_the_key(key, value, dataset):
    letter = read_back(RawMessage(Position("c", "a_dlq", 0, 0, 0), key, value))
    assert dataset_of(letter) == dataset
