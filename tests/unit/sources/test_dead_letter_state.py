from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import DeadReason
from shoal.records import Failure, Outcome, Position
from shoal.sources.dead_letter_log import StateIndex
from shoal.sources.dead_letter_state import (
    Replay,
    State,
    StateRecord,
    now_of,
    parse_id,
    parse_state,
    purged,
    replay_of,
    replayed,
    settled,
)
from shoal.sources.messages import RawMessage

TOPIC = "scraper-notifications"
ID = f"{TOPIC}_dlq/3/42"
AT = datetime(2025, 1, 20, 14, 30, tzinfo=UTC)


def message(topic: str = TOPIC, key: bytes | None = b"k", value: bytes | None = b"{}", **headers: bytes) -> RawMessage:
    named = tuple((f"shoal.dlq.{name}", data) for name, data in headers.items())
    return RawMessage(Position("c", topic, 1, 7, 1_737_383_400_000), key, value, named)


def record(topic: str, key: bytes, value: bytes | None) -> RawMessage:
    return RawMessage(Position("c", topic, 0, 0, 0), key, value)


def states(records: Iterable[tuple[str, bytes, bytes]]) -> StateIndex:
    index = StateIndex()
    for one in records:
        index.take(record(*one))
    return index


def ended(count: int, outcome: Outcome = Outcome.INDEXED) -> tuple[str, bytes, bytes]:
    found = settled(message(id=ID.encode(), replayed=str(count).encode()), outcome, AT)
    assert found is not None
    return found


def test_a_replay_says_which_dead_letter_it_is_of_and_the_how_manieth():
    assert replay_of(message(id=ID.encode(), replayed=b"2")) == Replay(ID, 2)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"id": ID.encode()},
        {"replayed": b"1"},
        {"id": ID.encode(), "replayed": b"0"},
        {"id": ID.encode(), "replayed": b"-1"},
        {"id": ID.encode(), "replayed": b"99999999999999999999"},
        {"id": ID.encode(), "replayed": b"\xff\xfe"},
        {"id": b"\xff/0/0", "replayed": b"1"},
        {"id": b"a/b/c", "replayed": b"1"},
        {"id": f"{TOPIC}/3/42".encode(), "replayed": b"1"},
        {"id": f"{ID}\n".encode(), "replayed": b"1"},
        {"id": f"{ID}#replayed".encode(), "replayed": b"1"},
        {"id": b"other_dlq/3/42", "replayed": b"1"},
    ],
)
def test_what_is_no_replay_of_this_topics_dead_letters_settles_nothing(headers):
    assert replay_of(message(**headers)) is None
    assert settled(message(**headers), Outcome.INDEXED, AT) is None


def test_the_end_of_a_replay_is_recorded_under_the_id_of_its_dead_letter():
    topic, key, value = ended(2)
    assert (topic, key) == (f"{TOPIC}_dlq_state", ID.encode())
    assert json.loads(value) == {
        "state": "succeeded", "at": "2025-01-20T14:30:00.000Z", "replays": 2, "outcome": "indexed",
        "topic": TOPIC, "partition": 1, "offset": 7,
    }  # fmt: skip
    assert parse_state(record(topic, key, value)) == StateRecord(ID, State.SUCCEEDED, 2, AT, "indexed")


def test_a_replay_that_dies_again_is_returned_with_the_reason():
    raw = message(id=ID.encode(), replayed=b"1")
    why = Failure(DeadReason.OBJECT_MISSING, "there is no such file" * 100, "fetch")
    found = settled(raw, Outcome.DEAD_LETTERED, AT, why)
    assert found is not None
    parsed = parse_state(record(*found))
    assert parsed is not None
    assert (parsed.state, parsed.reason) == (State.RETURNED, "object_missing")
    assert len(parsed.message or "") == 500


@pytest.mark.parametrize("outcome", [*(set(Outcome) - {Outcome.DEAD_LETTERED}), None])
def test_every_end_but_another_death_is_a_success(outcome):
    found = settled(message(id=ID.encode(), replayed=b"1"), outcome, AT)
    assert found is not None
    parsed = parse_state(record(*found))
    assert parsed is not None
    assert parsed.state is State.SUCCEEDED


def test_a_late_record_that_it_was_sent_does_not_hide_how_it_ended():
    """1. A replay is sent. 2. The reader is done and records it. 3. Its sender records that it was sent."""
    for records in ([ended(1), replayed(ID, 1, AT)], [replayed(ID, 1, AT), ended(1)]):
        found = states(records).of(ID)
        assert found is not None
        assert (found.state, found.replays) == (State.SUCCEEDED, 1)
    # Compaction keeps the last of each key, whatever their order was.
    assert ended(1)[1] != replayed(ID, 1, AT)[1]


def test_another_replay_is_under_way_until_that_one_has_ended():
    first = [replayed(ID, 1, AT), ended(1, Outcome.DEAD_LETTERED)]
    again = [*first, replayed(ID, 2, AT)]
    assert [found.state for n in (1, 2, 3) if (found := states(again[:n]).of(ID))] == [
        State.REPLAYED, State.RETURNED, State.REPLAYED,
    ]  # fmt: skip
    done = states([*again, ended(2)]).of(ID)
    assert done is not None
    assert (done.state, done.replays) == (State.SUCCEEDED, 2)


def test_purged_after_a_replay_is_purged():
    found = states([replayed(ID, 3, AT), purged(ID, 3, AT)]).of(ID)
    assert found is not None
    assert found.state is State.PURGED


def test_a_null_value_takes_back_what_was_recorded_under_its_key():
    index = states([purged(ID, 0, AT)])
    topic, key, _ = purged(ID, 0, AT)
    index.take(record(topic, key, None))
    assert index.of(ID) is None


def test_states_of_one_letter_are_not_those_of_another():
    index = states([purged(ID, 0, AT)])
    for other in (f"{TOPIC}_dlq/3/43", f"{TOPIC}_dlq/2/42", "other_dlq/3/42", "no id"):
        assert index.of(other) is None


def test_one_letter_may_be_known_in_full():
    index = StateIndex(ID)
    for one in (replayed(ID, 1, AT), ended(1), purged(f"{TOPIC}_dlq/0/0", 0, AT)):
        index.take(record(*one))
    assert index.of(ID) == StateRecord(ID, State.SUCCEEDED, 1, AT, "indexed")


@pytest.mark.parametrize(
    ("topic", "key", "value"),
    [
        (f"{TOPIC}_dlq_state", b"garbage", b"{}"),
        (f"{TOPIC}_dlq_state", ID.encode(), b"not json"),
        (f"{TOPIC}_dlq_state", ID.encode(), b"[]"),
        (f"{TOPIC}_dlq_state", ID.encode(), b'{"state": "succeeded"}'),
        (f"{TOPIC}_dlq_state", ID.encode(), b'{"state": "succeeded", "replays": "1"}'),
        (f"{TOPIC}_dlq_state", ID.encode(), b'{"state": "succeeded", "replays": true}'),
        (f"{TOPIC}_dlq_state", ID.encode(), b'{"state": "gone", "replays": 1}'),
        (f"{TOPIC}_dlq_state", ID.encode(), b'{"state": "replayed", "replays": 1}'),
        (f"{TOPIC}_dlq_state", f"{ID}#replayed".encode(), b'{"state": "purged", "replays": 1}'),
        ("other_dlq_state", ID.encode(), b'{"state": "succeeded", "replays": 1}'),
    ],
)
def test_garbage_in_the_state_topic_changes_nothing(topic, key, value):
    assert parse_state(record(topic, key, value)) is None
    index = states([purged(ID, 0, AT), (topic, key, value)])
    found = index.of(ID)
    assert found is not None
    assert found.state is State.PURGED


@given(st.binary(max_size=60), st.one_of(st.none(), st.binary(max_size=80)))
def test_no_bytes_make_it_fail(key, value):
    parse_state(record(f"{TOPIC}_dlq_state", key, value))
    replay_of(message(id=key, replayed=value or b""))
    StateIndex().take(record(f"{TOPIC}_dlq_state", key, value))


@given(st.lists(st.tuples(st.sampled_from(["sent", "ended", "purged"]), st.integers(1, 4)), max_size=8))
def test_compaction_changes_no_state(events):
    """Whatever was recorded in whatever order, the last record of each key tells the same as all of them."""
    makers = {"sent": lambda n: replayed(ID, n, AT), "ended": ended, "purged": lambda n: purged(ID, n, AT)}
    records = [makers[kind](count) for kind, count in events]
    last = {key: (topic, key, value) for topic, key, value in records}
    assert states(records).of(ID) == states(last.values()).of(ID)


def test_ids_are_topic_partition_and_offset():
    assert parse_id(ID) == (f"{TOPIC}_dlq", 3, 42)
    for text in ("", "a_dlq/0", "a_dlq/0/0/0", "a_dlq/-1/0", "a b_dlq/0/0", "a_dlq/٣/0", f"{'a' * 300}_dlq/0/0"):
        assert parse_id(text) is None


def test_without_records_it_is_open():
    assert now_of(None, None) is None
    assert StateIndex().of(ID) is None
