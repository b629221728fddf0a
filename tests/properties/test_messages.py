"""Messages of several events, wrapped and repeated: used whole or not at all, and nothing but BadDocument is raised.

That arbitrary bytes and bent bodies only ever raise BadDocument is in tests/unit/sources/test_messages.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from hypothesis import assume, given
from hypothesis import strategies as st

from shoal.errors import BadDocument
from shoal.records import Announcement, Command, Deletion, Position, Work
from shoal.settings import load
from shoal.sources.ids import parse_location
from shoal.sources.messages import OUTCOME_HEADER, REPLAY_HEADER, RawMessage, origin_of, origin_text, parse_message
from tests.properties.profiles import examples

HOME = load(data_dir=Path("unused"))
AT = Position("cluster", "scraper-notifications", 3, 42, 1_737_383_400_000)
KEYS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30)
EVENT_NAMES = ["ObjectCreated:Put", "ObjectRemoved:Delete", "s3:ObjectCreated:Copy", "ObjectTagging:Put", "", "x" * 99]


def record(name: Any, key: Any, size: Any = 5) -> dict[str, Any]:
    return {
        "eventVersion": "2.1", "eventName": name, "eventTime": "2025-01-20T14:30:00.250Z",
        "s3": {"bucket": {"name": "bucket"}, "object": {"key": key, "size": size}},
    }  # fmt: skip


def parse(value: bytes | None, *headers: tuple[str, bytes | None], key: bytes | None = b"k") -> list[Work] | str:
    try:
        return parse_message(RawMessage(AT, key, value, headers), HOME)
    except BadDocument as error:
        return error.reason


RECORDS = st.lists(
    st.builds(record, st.sampled_from(EVENT_NAMES), KEYS.map(quote_plus), st.integers(0, 9))
    | st.builds(
        record, st.sampled_from(["ObjectCreated:Put", 5, None]), st.sampled_from(["%ff", "", 7, None, "a" * 2000])
    ),
    max_size=5,
)


@given(RECORDS)
@examples(120)
def test_a_message_of_several_events_is_used_whole_or_not_at_all(records: list[dict[str, Any]]) -> None:
    alone = [parse(json.dumps({"Records": [one]}).encode()) for one in records]
    together = parse(json.dumps({"Records": records}).encode(), (OUTCOME_HEADER, b"w"))
    broken = [one for one in alone if isinstance(one, str)]
    if broken:
        assert together == broken[0]
        return
    assert isinstance(together, list)
    assert [named(work) for work in together] == [named(work) for one in alone if isinstance(one, list) for work in one]
    names = [work.outcome_id for work in together]
    assert names == (["w"] if len(together) == 1 else [f"w/{number}" for number in range(1, len(together) + 1)])


def named(work: Work) -> tuple[type[Work], str | None]:
    assert not isinstance(work, Command)
    return type(work), work.location if isinstance(work, Announcement) else work.s3_path


@given(KEYS, st.sampled_from([quote_plus, quote]))
@examples(120)
def test_every_key_that_s3_allows_comes_back_from_its_event(key: str, encode: Any) -> None:
    assume(len(key.encode()) <= 1024 and not key.endswith("/"))
    (created,) = parse(json.dumps({"Records": [record("ObjectCreated:Put", encode(key))]}).encode())
    (removed,) = parse(json.dumps({"Records": [record("ObjectRemoved:Delete", encode(key))]}).encode())
    assert isinstance(created, Announcement)
    assert isinstance(removed, Deletion)
    assert created.location == removed.s3_path == f"s3://bucket/{key}"
    assert parse_location(f"s3://bucket/{key}").key == key


@given(RECORDS, st.integers(0, 3))
@examples(60)
def test_wrappers_of_a_topic_change_nothing(records: list[dict[str, Any]], wrappers: int) -> None:
    body: dict[str, Any] = {"Records": records}
    plain = parse(json.dumps(body).encode())
    for _ in range(wrappers):
        body = {"Type": "Notification", "MessageId": "1", "Message": json.dumps(body)}
    assert parse(json.dumps(body).encode()) == plain


POSITIONS = st.builds(
    Position,
    st.from_regex(r"[^/\x00-\x1f\ud800-\udfff]{1,40}", fullmatch=True).filter(str.isprintable),
    st.from_regex(r"[a-zA-Z0-9._-]{1,40}", fullmatch=True),
    st.integers(0, 10**6), st.integers(0, 10**15), st.integers(-1, 10**14),
)  # fmt: skip


@given(POSITIONS)
@examples(100)
def test_a_copy_stands_where_its_original_stood(position: Position) -> None:
    raw = RawMessage(AT, b"prod:d:u", None, ((REPLAY_HEADER, origin_text(position).encode()),))
    assert origin_of(raw) == position
    (deletion,) = parse_message(raw, HOME)
    assert deletion.position == position


@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode), st.none() | st.binary(max_size=40))
@examples(150)
def test_no_header_breaks_the_parsing(told: bytes, value: bytes | None) -> None:
    parse(value, (REPLAY_HEADER, told), (OUTCOME_HEADER, told))
    parse(value, (REPLAY_HEADER, None), (OUTCOME_HEADER, None))
