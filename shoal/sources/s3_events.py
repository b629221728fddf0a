"""S3 event notifications as work: AWS and MinIO `Records`, and EventBridge (contracts 1.2).

An object created is announced under `{environment}:s3:{bucket}/{key}`; the reader gives it the id of the
document that already has this s3_path, if there is one. An object removed is a deletion by s3_path; where only one
version of it was removed for good, of the document that was made of that version. What
the bucket is about comes from the prefix rules of the settings. Events that change no object's bytes (reads,
tags, restores), test events and the "folders" that consoles make ask for nothing. Formats as documented by
AWS (major version 2 of the structure, unknown fields ignored) and as MinIO's source writes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import unquote_plus

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator

from shoal.errors import BadDocument, DeadReason
from shoal.records import SCRAPER_COLLECTION, Announcement, Deletion, Position
from shoal.sources.ids import S3_DATASET, parse_location
from shoal.sources.versions import compact, parse_time

_SEQUENCER = re.compile(r"[0-9a-fA-F]{1,64}")
_REMOVALS = ("ObjectRemoved:", "LifecycleExpiration:")
_ID = re.compile(rf"(dev|staging|prod):{S3_DATASET}:[^/]+/.+", re.DOTALL)
Rules = Mapping[str, Mapping[str, str]]


def s3_event_id(environment: str, bucket: str, key: str) -> str:
    """The id of an object that no notification named."""
    return f"{environment}:{S3_DATASET}:{bucket}/{key}"


def is_s3_event_id(identity: str) -> bool:
    """True for ids made by `s3_event_id`: the reader first looks for a document with that s3_path."""
    return _ID.fullmatch(identity) is not None


class _Object(BaseModel):
    """`s3.object` of a record, or `detail.object` of EventBridge."""

    key: Annotated[str, Field(min_length=1, max_length=8192)]
    size: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    etag: Annotated[str | None, Field(validation_alias=AliasChoices("eTag", "etag"), max_length=200)] = None
    version_id: Annotated[
        str | None, Field(validation_alias=AliasChoices("versionId", "version-id"), max_length=1024)
    ] = None
    sequencer: Annotated[str | None, Field(max_length=200)] = None
    content_type: Annotated[str | None, Field(validation_alias="contentType", max_length=200)] = None


class _Bucket(BaseModel):
    name: Annotated[str, Field(min_length=1, max_length=255)]


class _S3(BaseModel):
    bucket: _Bucket
    object: _Object
    deletion_type: Annotated[str | None, Field(validation_alias="deletion-type", max_length=200)] = None  # EventBridge


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True)

    @field_validator("at", mode="before", check_fields=False)
    @classmethod
    def _time(cls, value: Any) -> Any:
        moment = parse_time(value) if isinstance(value, str) else None
        if moment is None:
            raise ValueError("is not a time such as 2025-01-20T14:30:00.123Z")
        return moment


class Record(_Event):
    """One of `Records`, as AWS and MinIO write them: the key is form-encoded."""

    event_version: Annotated[str, Field(validation_alias="eventVersion")] = "2.0"
    at: Annotated[datetime, Field(validation_alias="eventTime")]
    name: Annotated[str, Field(validation_alias="eventName")]
    s3: _S3

    def to_work(self, position: Position, rules: Rules) -> Announcement | Deletion | None:
        """What the event asks for, or None. Raises BadDocument."""
        if self.event_version.split(".")[0] != "2":
            raise BadDocument(DeadReason.UNKNOWN_VERSION, f"S3 event version {self.event_version[:20]!r}: 2.x is known")
        try:
            key = unquote_plus(self.s3.object.key, errors="strict")
        except UnicodeDecodeError:
            raise BadDocument(DeadReason.SCHEMA_INVALID, "s3.object.key: is not percent-encoded UTF-8") from None
        name = self.name.removeprefix("s3:")
        if name.startswith("ObjectCreated:"):
            return _created(position, self.s3.bucket.name, key, self.s3.object, self.at, rules)
        # The expiry of one old version leaves the object's current one alone.
        if name.startswith(_REMOVALS) and not (name == "LifecycleExpiration:Delete" and self.s3.object.version_id):
            # A delete marker has a version id of its own: the object is gone, whatever its version was.
            marker = name.endswith(":DeleteMarkerCreated")
            return _removed(position, self.s3.bucket.name, key, None if marker else self.s3.object.version_id)
        return None


class BridgeEvent(_Event):
    """An event by way of EventBridge: kebab-case, the key unencoded."""

    at: Annotated[datetime, Field(validation_alias="time")]
    name: Annotated[str, Field(validation_alias="detail-type")]
    detail: _S3

    def to_work(self, position: Position, rules: Rules) -> Announcement | Deletion | None:
        """What the event asks for, or None. Raises BadDocument."""
        bucket, item = self.detail.bucket.name, self.detail.object
        if self.name == "Object Created":
            return _created(position, bucket, item.key, item, self.at, rules)
        if self.name != "Object Deleted":
            return None
        marker = self.detail.deletion_type == "Delete Marker Created"
        return _removed(position, bucket, item.key, None if marker else item.version_id)


Shape = Literal["record", "bridge"]
EVENTS: dict[Shape, type[Record] | type[BridgeEvent]] = {"record": Record, "bridge": BridgeEvent}


@dataclass(frozen=True, slots=True)
class ShapedEvent:
    """One event, not yet validated, and which model reads it."""

    shape: Shape
    body: Any


def events_of(body: Mapping[str, Any]) -> list[ShapedEvent] | None:
    """The events in `body`; [] for the event that S3 sends to test a set-up; None where it is no S3 event."""
    if body.get("Event") == "s3:TestEvent":
        return []
    records = body.get("Records")
    if isinstance(records, list):
        return [ShapedEvent("record", record) for record in records]
    if body.get("source") == "aws.s3" and "detail-type" in body:
        return [ShapedEvent("bridge", body)]
    return None


def _rule(bucket: str, key: str, rules: Rules) -> Mapping[str, str]:
    """The rule of the longest prefix of `bucket/key`.

    Where none fits: the dataset is the bucket, since a bucket usually serves one purpose; the source is the
    key's first segment, where operators' names usually stand, unless that is a partition (`year=2025`).
    """
    path = f"{bucket}/{key}"
    fitting = [prefix for prefix in rules if path.startswith(prefix)]
    if fitting:
        return rules[max(fitting, key=len)]
    first, slash, _ = key.partition("/")
    return {"source": first} if slash and first and "=" not in first else {}


def _created(
    position: Position, bucket: str, key: str, item: _Object, at: datetime, rules: Rules
) -> Announcement | None:
    if key.endswith("/") and not item.size:
        return None
    location = f"s3://{bucket}/{key}"
    parse_location(location)
    rule = _rule(bucket, key, rules)
    dataset = rule.get("dataset", bucket)
    environment = rule.get("environment", "prod")
    version = compact(at)
    if item.sequencer and _SEQUENCER.fullmatch(item.sequencer):
        # Orders events of one key within a millisecond; lengths differ between stores, hence the padding.
        # The fraction is always written: '.' sorts before '~', so a whole second would else come after its parts.
        version = f"{compact(at.replace(microsecond=0))}.{at.microsecond:06d}~{item.sequencer.upper().zfill(24)}"
    return Announcement(
        position=position,
        collection=SCRAPER_COLLECTION,
        document_id=s3_event_id(environment, bucket, key),
        version=version,
        location=location,
        content=None,
        dataset=dataset,
        environment=environment,
        urn=key.rsplit("/", 1)[-1] or key,
        data_source=rule.get("source", bucket).upper(),
        data_type=rule.get("data_type", "other"),
        scraper_name=rule.get("scraper_name", dataset),
        collected_at=at,
        published_at=at,
        etag=item.etag or None,
        version_id=_version_id(item.version_id),
        expected_size_bytes=item.size,
        content_type=item.content_type or None,
    )


def _removed(position: Position, bucket: str, key: str, version_id: str | None) -> Deletion:
    location = f"s3://{bucket}/{key}"
    parse_location(location)
    return Deletion(position, SCRAPER_COLLECTION, None, s3_path=location, version_id=_version_id(version_id))


def _version_id(said: str | None) -> str | None:
    """None where the bucket keeps no versions: S3 then says nothing, or 'null'."""
    return said if said not in (None, "", "null") else None
