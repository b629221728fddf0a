from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from shoal.errors import BadDocument, DeadReason
from shoal.records import Announcement, Command, Deletion, Position
from shoal.settings import Settings, load
from shoal.sources.commands import command_id, command_message
from shoal.sources.messages import EXTRA_BYTES_MAX, LANE_HEADER, RawMessage, outcome_id, parse_message

HOME = load(data_dir=Path("unused"))


def one(raw: RawMessage, settings: Settings) -> Announcement:
    (work,) = parse_message(raw, settings)
    assert isinstance(work, Announcement)
    return work


def reason(raw: RawMessage, settings: Settings) -> tuple[DeadReason, str]:
    with pytest.raises(BadDocument) as caught:
        parse_message(raw, settings)
    return caught.value.reason, caught.value.message


def outcome_of(raw: RawMessage, settings: Settings) -> str:
    """The reason of the bad document, or "used"; any other exception is the test's failure."""
    try:
        works = parse_message(raw, settings)
    except BadDocument as error:
        return error.reason
    for work in works:
        orjson.loads(getattr(work, "extra", "{}"))
    return "used"


def test_a_notification_becomes_an_announcement_with_every_field_of_the_contract(raw, notification, settings):
    found = one(raw(notification), settings)

    assert found.document_id == "prod:nyiso_load_forecast:load_20250120_14.json"
    assert found.version == "20250120T143000Z"
    assert found.location == notification["location"]
    assert found.content is None
    assert found.data_source == "NYISO"
    assert found.data_type == "load_forecast"
    assert found.scraper_name == "nyiso_load_forecast"
    assert found.collected_at == datetime(2025, 1, 20, 14, 30, 5, tzinfo=UTC)
    assert found.published_at == datetime(2025, 1, 20, 14, 30, tzinfo=UTC)
    assert found.source_url == "https://api.nyiso.com/load?date=20250120&api_key=REDACTED"
    assert found.s3_guid == "3f1c"
    assert found.expected_size_bytes == 45120
    assert found.expected_md5 == "9b2cf535f27731c974343645a3985328"
    assert found.warnings == ()
    assert found.extra == "{}"
    assert found.position.offset == 42


def test_unknown_fields_are_kept_without_their_secrets(raw, notification, settings):
    notification["run"] = {"id": 7, "from": "https://x.org/?token=abc"}
    notification["metadata"]["retries"] = 2
    found = json.loads(one(raw(notification), settings).extra)
    assert found == {"run": {"id": 7, "from": "https://x.org/?token=REDACTED"}, "metadata": {"retries": 2}}


def test_unknown_fields_that_would_bloat_the_row_are_left_out_with_a_warning(raw, notification, settings):
    notification["dump"] = "x" * EXTRA_BYTES_MAX
    found = one(raw(notification), settings)
    assert found.extra == "{}"
    assert "left out" in found.warnings[0]


def test_empty_strings_and_nulls_count_as_absent(raw, notification, settings):
    notification |= {"version": "", "etag": "", "environment": ""}
    notification["metadata"] |= {"url": "", "s3_guid": None, "original_file_md5sum": ""}
    found = one(raw(notification), settings)
    assert (found.version, found.published_at, found.etag) == ("", None, None)
    assert (found.source_url, found.s3_guid, found.expected_md5) == (None, None, None)
    assert found.environment == "prod"
    assert found.warnings == ()


@pytest.mark.parametrize("name", ["dataset", "urn", "location", "metadata"])
def test_an_empty_required_field_is_a_missing_one(raw, notification, settings, name):
    notification[name] = ""
    found, message = reason(raw(notification), settings)
    assert found is DeadReason.SCHEMA_INVALID
    assert name in message


def test_a_checksum_that_is_none_is_ignored_with_a_warning(raw, notification, settings):
    notification["metadata"]["original_file_md5sum"] = "kLz1NfJ3McX0NDZFo5hTKA=="
    found = one(raw(notification), settings)
    assert found.expected_md5 is None
    assert "md5" in found.warnings[0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"not json", DeadReason.NOT_JSON),
        (b"", DeadReason.NOT_JSON),
        (b'{"dataset": "\xff"}', DeadReason.NOT_JSON),
        (b'{"dataset": NaN}', DeadReason.NOT_JSON),
        (b'{"dataset": "\\ud800"}', DeadReason.NOT_JSON),
        (b"[" * 100_000, DeadReason.NOT_JSON),
        (b"[]", DeadReason.SCHEMA_INVALID),
        (b"17", DeadReason.SCHEMA_INVALID),
        (b"{}", DeadReason.SCHEMA_INVALID),
    ],
    ids=str,
)
def test_what_is_no_notification_has_a_reason(raw, settings, value, expected):
    assert reason(raw(value), settings)[0] is expected


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("dataset",), 7),
        (("dataset",), "a:b"),
        (("dataset",), "s3"),
        (("dataset",), "line\nbreak"),
        (("urn",), ["a"]),
        (("urn",), "x" * 2000),
        (("environment",), "production"),
        (("version",), {"v": 1}),
        (("metadata",), "text"),
        (("metadata", "publish_dtm"), "yesterday"),
        (("metadata", "publish_dtm"), "9999-12-31T23:59:59-12:00"),
        (("metadata", "publish_dtm"), 1e300),
        (("metadata", "source"), 5),
        (("metadata", "original_file_size"), -1),
        (("metadata", "original_file_size"), "many"),
        (("metadata", "original_file_size"), 2**70),
    ],
    ids=str,
)
def test_a_wrong_type_or_value_is_named_in_one_line(raw, notification, settings, path, value):
    target: Any = notification
    for name in path[:-1]:
        target = target[name]
    target[path[-1]] = value
    found, message = reason(raw(notification), settings)
    assert found is DeadReason.SCHEMA_INVALID
    assert message.startswith(".".join(path))
    assert "\n" not in message


@pytest.mark.parametrize(
    "location",
    ["http://169.254.169.254/latest", "ftp://host/file", "s3://", "s3://bucket", "s3://bucket/", "s3://b/k\0",
     "/etc/passwd", "file://other-host/etc/passwd", "file:relative", "s3://bucket?x/key"],
)  # fmt: skip
def test_an_unknown_scheme_or_shape_of_location_is_refused(raw, notification, settings, location):
    notification["location"] = location
    assert reason(raw(notification), settings)[0] is DeadReason.LOCATION_REFUSED


def test_a_message_over_the_limit_is_not_even_parsed(raw, tmp_path):
    small = load(data_dir=tmp_path, message_bytes_max=1024)
    assert reason(raw(b"{" * 1025), small)[0] is DeadReason.TOO_LARGE


def test_a_tombstone_deletes_the_document_that_its_key_names(raw, settings):
    tombstone = raw(None, key=b"prod:load:a.json", shoal_outcome_id=b"w1")
    assert parse_message(tombstone, settings) == [
        Deletion(tombstone.position, "scraper", "prod:load:a.json", outcome_id="w1")
    ]


@pytest.mark.parametrize("key", [None, b"", b"\xff\xfe", b"k" * 5000])
def test_a_tombstone_without_a_usable_key_is_a_bad_record(raw, settings, key):
    assert reason(raw(None, key=key), settings)[0] is DeadReason.SCHEMA_INVALID


def test_the_sender_finds_its_outcome_under_the_name_it_gave(raw, notification, settings):
    assert one(raw(notification, shoal_outcome_id="batch:ü1".encode()), settings).outcome_id == "batch:ü1"


@pytest.mark.parametrize("name", [b"\xff", b"x" * 201, b""])
def test_an_unusable_outcome_name_is_none(raw, name):
    assert outcome_id(raw({}, shoal_outcome_id=name)) is None


def test_a_command_survives_the_journey_through_the_log(raw, settings):
    at = datetime(2025, 1, 20, tzinfo=UTC)
    identity = command_id("retry-me", actor="key:1", kind="report_fix", collection="scraper")
    topic, key, value = command_message(
        settings.command_topic, command_id=identity, kind="report_fix", collection="scraper",
        body={"scraper_name": "nyiso", "worked": True}, actor="key:1", at=at,
    )  # fmt: skip
    (command,) = parse_message(raw(value, key=key, topic=topic), settings)

    assert isinstance(command, Command)
    assert (command.command_id, command.kind, command.collection) == (identity, "report_fix", "scraper")
    assert json.loads(command.body) == {"scraper_name": "nyiso", "worked": True}
    assert (command.actor, command.at) == ("key:1", at)


def test_an_idempotency_key_makes_the_same_command_only_for_the_same_caller():
    assert command_id("k", actor="a", kind="x") == command_id("k", actor="a", kind="x")
    assert command_id("k", actor="a", kind="x") != command_id("k", actor="b", kind="x")
    assert command_id() != command_id()


def test_a_notification_on_the_command_topic_is_no_command(raw, notification, settings):
    assert reason(raw(notification, topic=settings.command_topic), settings)[0] is DeadReason.SCHEMA_INVALID


@pytest.mark.parametrize("depth", [200, 300, 900])
def test_depth_is_used_or_refused_but_never_breaks(raw, notification, settings, depth):
    deep = json.loads("[" * depth + "]" * depth)
    assert one(raw(notification | {"unknown": deep}), settings).document_id
    command = {"command_id": "c", "kind": "push", "collection": "x", "body": {"a": deep}, "at": "2025-01-20T00:00:00Z"}
    assert outcome_of(raw(command, topic=settings.command_topic), settings) in ("used", DeadReason.SCHEMA_INVALID)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = ["dataset", "urn", "location", "version", "etag", "environment", "metadata", "Records", "Type", "Message"]
EVENT_NAMES = ["s3", "bucket", "object", "name", "key", "eventName", "eventTime", "eventVersion", "size", "sequencer"]
METADATA_NAMES = ["publish_dtm", "source", "data_type", "url", "original_file_size", "original_file_md5sum"]
TELLING = st.sampled_from(
    ["Notification", "s3://b/k", "file:///a", "2025-01-20T00:00:00Z", "s3:ObjectCreated:Put", "2.0", "aws.s3", "%ff"]
)
bent = st.recursive(
    json_values | TELLING,
    lambda inner: (
        st.dictionaries(st.sampled_from(NAMES + METADATA_NAMES + EVENT_NAMES), inner, max_size=8)
        | st.lists(inner, max_size=3)
    ),
    max_leaves=25,
)


@given(value=st.binary(max_size=400) | bent.map(lambda body: json.dumps(body).encode()), key=st.none() | st.binary())
@hypothesis_settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_nothing_but_a_bad_document_is_ever_raised(value, key):
    for topic in ("scraper-notifications", HOME.command_topic):
        outcome_of(RawMessage(Position("c", topic, 0, 0, 0), key, value), HOME)


@given(metadata=st.dictionaries(st.sampled_from(METADATA_NAMES), json_values), other=bent)
@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_an_almost_right_notification_is_used_or_refused(metadata, other):
    body = {
        "dataset": "d", "urn": "u", "location": "s3://bucket/key", "unknown": other,
        "metadata": {"publish_dtm": "2025-01-20T00:00:00Z", "source": "s", "data_type": "t", **metadata},
    }  # fmt: skip
    message = RawMessage(Position("c", "scraper-notifications", 0, 0, 0), b"k", json.dumps(body).encode())
    assert outcome_of(message, HOME) in ("used", DeadReason.SCHEMA_INVALID, DeadReason.NOT_JSON)


@pytest.mark.parametrize(
    ("told", "is_backfill"), [(b"backfill", True), (b"query", False), (b"\xff", False), (None, False)]
)
def test_only_a_backfill_says_its_lane_and_nobody_jumps_the_queue_by_a_header(
    raw, notification, settings, told, is_backfill
):
    message = raw(notification)
    told_so = RawMessage(message.position, message.key, message.value, ((LANE_HEADER, told),))
    assert one(told_so, settings).is_backfill is is_backfill
