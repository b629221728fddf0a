from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import BadDocument, DeadReason
from shoal.records import Announcement, Deletion
from shoal.settings import load
from shoal.sources.messages import parse_message
from shoal.sources.s3_events import is_s3_event_id


def record(name: str = "ObjectCreated:Put", key: str = "nyiso/load/a+b%2Bc%C3%BC.json", **object_fields: Any) -> dict:
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventTime": "2025-01-20T14:30:00.250Z",
        "eventName": name,
        "s3": {
            "s3SchemaVersion": "1.0",
            "bucket": {"name": "feeds", "arn": "arn:aws:s3:::feeds"},
            "object": {"key": key, "size": 10, "eTag": "9b2cf535f27731c974343645a3985328", "sequencer": "0055AED6"}
            | object_fields,
        },
    }


MINIO = {
    "EventName": "s3:ObjectCreated:Put",
    "Key": "feeds/nyiso/load.json",
    "Records": [
        record("s3:ObjectCreated:Put", "nyiso%2Fload.json", contentType="application/json", versionId="v-1")
        | {"eventVersion": "2.0", "eventSource": "minio:s3", "source": {"host": "127.0.0.1"}}
    ],
}
BRIDGE = {
    "version": "0",
    "id": "17793124",
    "detail-type": "Object Created",
    "source": "aws.s3",
    "time": "2025-01-20T14:30:00Z",
    "detail": {
        "bucket": {"name": "feeds"},
        "object": {"key": "nyiso/a+b.json", "size": 5, "etag": "b1946ac92492d2347c6235b4d2611184", "version-id": "q"},
        "reason": "PutObject",
    },
}


def test_an_aws_record_is_announced_under_its_decoded_key(raw, settings):
    (work,) = parse_message(raw({"Records": [record()]}), settings)
    assert isinstance(work, Announcement)
    assert work.document_id == "prod:s3:feeds/nyiso/load/a b+cü.json"
    assert is_s3_event_id(work.document_id)
    assert work.location == "s3://feeds/nyiso/load/a b+cü.json"
    assert work.urn == "a b+cü.json"
    assert (work.etag, work.expected_size_bytes) == ("9b2cf535f27731c974343645a3985328", 10)
    assert work.collected_at == datetime(2025, 1, 20, 14, 30, 0, 250_000, tzinfo=UTC)


def test_the_id_of_a_scraped_document_is_no_s3_event_id(raw, notification, settings):
    (work,) = parse_message(raw(notification), settings)
    assert isinstance(work, Announcement)
    assert not is_s3_event_id(work.document_id)


def test_a_minio_record_is_understood(raw, settings):
    (work,) = parse_message(raw(MINIO), settings)
    assert isinstance(work, Announcement)
    assert work.location == "s3://feeds/nyiso/load.json"
    assert (work.version_id, work.content_type) == ("v-1", "application/json")


def test_an_eventbridge_event_has_its_key_unencoded(raw, settings):
    (work,) = parse_message(raw(BRIDGE), settings)
    assert isinstance(work, Announcement)
    assert work.location == "s3://feeds/nyiso/a+b.json"
    assert (work.etag, work.version_id) == ("b1946ac92492d2347c6235b4d2611184", "q")


@pytest.mark.parametrize("event", [{"Records": [record()]}, MINIO, BRIDGE])
def test_an_sns_wrapper_changes_nothing(raw, settings, event):
    wrapped = {"Type": "Notification", "MessageId": "1", "TopicArn": "arn", "Message": json.dumps(event)}
    assert parse_message(raw(wrapped), settings) == parse_message(raw(event), settings)


def test_a_notification_with_fields_of_other_shapes_is_still_a_notification(raw, notification, settings):
    (work,) = parse_message(raw(notification | {"Type": "Notification", "Records": [], "Event": "x"}), settings)
    assert isinstance(work, Announcement)
    assert json.loads(work.extra) == {"Type": "Notification", "Records": [], "Event": "x"}


@pytest.mark.parametrize(
    "event",
    [
        {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "feeds"},
        {"Type": "SubscriptionConfirmation", "SubscribeURL": "https://x"},
        {"Records": []},
        {"Records": [record("s3:ObjectAccessed:Get")]},
        {"Records": [record("ObjectTagging:Put")]},
        {"Records": [record("LifecycleExpiration:Delete", versionId="old")]},
        {"Records": [record(key="nyiso/folder/", size=0)]},
        BRIDGE | {"detail-type": "Object Tags Added"},
    ],
    ids=lambda event: str(event)[:40],
)
def test_what_changes_no_object_asks_for_nothing(raw, settings, event):
    assert parse_message(raw(event), settings) == []


@pytest.mark.parametrize(
    "event",
    [
        {"Records": [record("ObjectRemoved:Delete", "nyiso/a.json")]},
        {"Records": [record("s3:ObjectRemoved:DeleteMarkerCreated", "nyiso%2Fa.json")]},
        {"Records": [record("LifecycleExpiration:DeleteMarkerCreated", "nyiso/a.json")]},
        BRIDGE | {"detail-type": "Object Deleted", "detail": {"bucket": {"name": "feeds"},
                                                              "object": {"key": "nyiso/a.json"}}},
    ],
)  # fmt: skip
def test_a_removed_object_is_a_deletion_by_path(raw, settings, event):
    message = raw(event)
    assert parse_message(message, settings) == [
        Deletion(message.position, "scraper", None, s3_path="s3://feeds/nyiso/a.json")
    ]


BRIDGE_OBJECT = {"key": "nyiso/a.json", "version-id": "v9"}


@pytest.mark.parametrize(
    ("event", "version_id"),
    [
        ({"Records": [record("ObjectRemoved:Delete", "nyiso/a.json", versionId="v1")]}, "v1"),
        ({"Records": [record("ObjectRemoved:Delete", "nyiso/a.json", versionId="null")]}, None),
        ({"Records": [record("ObjectRemoved:DeleteMarkerCreated", "nyiso/a.json", versionId="v9")]}, None),
        (BRIDGE | {"detail-type": "Object Deleted", "detail": {
            "bucket": {"name": "feeds"}, "object": BRIDGE_OBJECT, "deletion-type": "Permanently Deleted"}}, "v9"),
        (BRIDGE | {"detail-type": "Object Deleted", "detail": {
            "bucket": {"name": "feeds"}, "object": BRIDGE_OBJECT, "deletion-type": "Delete Marker Created"}}, None),
    ],
)  # fmt: skip
def test_a_version_removed_for_good_is_named_and_a_delete_marker_means_the_object(raw, settings, event, version_id):
    (work,) = parse_message(raw(event), settings)
    assert isinstance(work, Deletion)
    assert (work.s3_path, work.version_id) == ("s3://feeds/nyiso/a.json", version_id)


def test_every_record_of_a_message_has_its_own_outcome(raw, settings):
    message = raw({"Records": [record(key="a"), record("ObjectTagging:Put"), record(key="b")]}, shoal_outcome_id=b"w")
    assert [work.outcome_id for work in parse_message(message, settings)] == ["w/1", "w/2"]


def test_later_events_of_a_key_have_later_versions(raw, settings):
    times = ["2025-01-20T14:30:00.250Z", "2025-01-20T14:30:00.250Z", "2025-01-20T14:30:00.251Z", "2025-01-20T14:30:01Z"]
    sequencers = ["9F", "0100", "01", "00"]
    versions = []
    for at, sequencer in zip(times, sequencers, strict=True):
        event = record(sequencer=sequencer) | {"eventTime": at}
        (work,) = parse_message(raw({"Records": [event]}), settings)
        assert isinstance(work, Announcement)
        versions.append(work.version)
    assert versions == sorted(versions)
    assert len(set(versions)) == 4


def test_the_longest_matching_rule_names_dataset_source_and_type(raw, tmp_path: Path):
    rules = {
        "feeds/": {"dataset": "everything", "source": "many"},
        "feeds/nyiso/load": {"dataset": "nyiso_load", "source": "nyiso", "data_type": "load", "environment": "dev"},
    }
    settings = load(data_dir=tmp_path, s3_event_rules=rules)
    (work,) = parse_message(raw({"Records": [record()]}), settings)
    assert isinstance(work, Announcement)
    assert (work.dataset, work.data_source, work.data_type) == ("nyiso_load", "NYISO", "load")
    assert work.document_id.startswith("dev:s3:")


@pytest.mark.parametrize(
    ("key", "source"), [("nyiso/a.json", "NYISO"), ("a.json", "FEEDS"), ("year=2025/month=01/a.json", "FEEDS")]
)
def test_without_a_rule_the_bucket_is_the_dataset_and_the_first_segment_the_source(raw, settings, key, source):
    (work,) = parse_message(raw({"Records": [record(key=key)]}), settings)
    assert isinstance(work, Announcement)
    assert (work.dataset, work.data_source, work.data_type) == ("feeds", source, "other")


def test_an_unknown_major_version_is_told_apart_from_a_broken_record(raw, settings):
    with pytest.raises(BadDocument) as caught:
        parse_message(raw({"Records": [record() | {"eventVersion": "3.0"}]}), settings)
    assert caught.value.reason is DeadReason.UNKNOWN_VERSION


def test_a_newer_minor_version_with_new_fields_is_accepted(raw, settings):
    event = record() | {"eventVersion": "2.9", "somethingNew": {"a": 1}}
    assert len(parse_message(raw({"Records": [event]}), settings)) == 1


@pytest.mark.parametrize(
    "broken",
    [
        {},
        "text",
        record() | {"eventTime": "soon"},
        record() | {"s3": {"bucket": {"name": "feeds"}}},
        record(key="%ff%fe"),
        record(size="big"),
    ],
    ids=str,
)
def test_a_broken_record_is_a_bad_document(raw, settings, broken):
    with pytest.raises(BadDocument) as caught:
        parse_message(raw({"Records": [broken]}), settings)
    assert caught.value.reason is DeadReason.SCHEMA_INVALID


def test_an_event_repeated_is_the_same_work(raw, settings):
    message = raw({"Records": [record()]})
    (first,), (second,) = parse_message(message, settings), parse_message(message, settings)
    assert replace(first) == second
