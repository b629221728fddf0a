from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime

from shoal.errors import DeadReason
from shoal.records import Failure
from shoal.sources.dead_letters import KEPT_HEADERS_BYTES_MAX, REPLAYED_HEADER, VALUE_BYTES_MAX, dead_letter

AT = datetime(2025, 1, 20, 14, 30, tzinfo=UTC)
WHY = Failure(DeadReason.OBJECT_MISSING, "there is no such file", "fetch")


def test_a_dead_letter_is_the_message_as_it_was_with_the_headers_that_tools_know(raw):
    message = raw({"a": 1}, key=b"id", origin=b"\xff\x00")
    topic, key, value, headers = dead_letter(message, WHY, AT, 3)

    assert (topic, key, value) == ("scraper-notifications_dlq", b"id", b'{"a": 1}')
    assert headers[0] == ("origin", b"\xff\x00")
    assert dict(headers[1:]) == {
        "__connect.errors.topic": b"scraper-notifications",
        "__connect.errors.partition": b"3",
        "__connect.errors.offset": b"42",
        "__connect.errors.stage": b"fetch",
        "__connect.errors.exception.class.name": b"shoal.errors.BadDocument",
        "__connect.errors.exception.message": b"there is no such file",
        "shoal.dlq.reason": b"object_missing",
        "shoal.dlq.failed_at": b"2025-01-20T14:30:00.000Z",
        "shoal.dlq.retry_count": b"3",
        "shoal.dlq.original_timestamp": b"1737383400000",
        "shoal.dlq.cluster": b"cluster",
    }


def test_a_tombstone_stays_a_tombstone(raw):
    assert dead_letter(raw(None), WHY, AT)[2] is None


def test_a_second_death_replaces_the_headers_of_the_first_but_counts_its_replays(raw):
    first = dead_letter(raw({}), WHY, AT)
    again = replace(raw({}), headers=(*first[3], (REPLAYED_HEADER, b"1")))
    headers = dead_letter(again, WHY, AT)[3]
    names = [name for name, _ in headers]
    assert len(names) == len(set(names)) == len(first[3]) + 1
    assert (REPLAYED_HEADER, b"1") in headers


def test_a_value_over_the_limit_becomes_a_stub_that_names_it(raw):
    value = b"\xff" + b"x" * VALUE_BYTES_MAX
    _, _, stub, headers = dead_letter(raw(value), WHY, AT)
    assert stub is not None
    found = json.loads(stub)
    assert found["sha256"] == hashlib.sha256(value).hexdigest()
    assert found["bytes"] == len(value)
    assert len(stub) < 4096
    assert dict(headers)["shoal.dlq.value_bytes"] == str(len(value)).encode()


def test_the_largest_value_that_fits_is_kept_whole(raw):
    value = b"x" * VALUE_BYTES_MAX
    assert dead_letter(raw(value), WHY, AT)[2] == value


def test_headers_and_key_cannot_grow_a_dead_letter_over_the_limit(raw):
    many = tuple((f"h{number}", b"x" * 1000) for number in range(200))
    message = replace(raw({}), key=b"k" * 1_000_000, headers=many)
    _, key, _, headers = dead_letter(message, replace(WHY, message="m" * 10_000), AT)
    assert key is not None
    total = len(key) + sum(len(name) + len(data or b"") for name, data in headers)
    assert total < KEPT_HEADERS_BYTES_MAX + 4096
    assert int(dict(headers)["shoal.dlq.headers_left_out"] or b"0") > 100
