"""What comes in on Kafka, validated once: a message becomes work items or one dead letter (contracts 1).

`parse_message` tells the shapes apart (a scraper's notification, S3 events and their wrappers, a command, a
tombstone), and returns what is to be done; [] is for messages that ask for nothing (a test event, a read).
Guarantee: on whatever bytes, it returns or raises BadDocument, nothing else, in time and memory linear in
the message. A message of several events is used whole or not at all. It fetches nothing, and decides nothing
about order: `version` only sorts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from shoal.errors import BadDocument, DeadReason
from shoal.records import SCRAPER_COLLECTION, Announcement, Deletion, Position, Work
from shoal.redaction import redact_json, redact_url
from shoal.settings import Settings
from shoal.sources import commands, s3_events
from shoal.sources.ids import S3_DATASET, document_id, parse_location
from shoal.sources.versions import comparable, parse_time

OUTCOME_HEADER = "shoal.outcome.id"
OUTCOME_ID_CHARS_MAX = 200
REPLAY_HEADER = "shoal.replay.of"  # `shoal replay`: the position of the message that this one repeats
LANE_HEADER = "shoal.lane"  # `backfill`: the message announces history, and what is new goes before it
# Unknown fields are kept with the row; more than this is a document in the wrong place, and would bloat every row.
EXTRA_BYTES_MAX = 64 * 1024
KEY_BYTES_MAX = 4096  # of a tombstone: ids are at most about 2 KiB
_ORIGIN = re.compile(r"([^/\x00-\x1f]{1,300})/([a-zA-Z0-9._-]{1,249})/(\d{1,9})/(\d{1,18})@(-?\d{1,18})", re.ASCII)
_SNS_TYPES = ("Notification", "SubscriptionConfirmation", "UnsubscribeConfirmation")
_WRAPPERS_MAX = 3  # SNS within SNS within SNS: nobody does that

_MD5 = re.compile(r"[0-9a-fA-F]{32}")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class RawMessage:
    """A message as the log has it. A null `value` is a tombstone."""

    position: Position
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


def outcome_id(raw: RawMessage) -> str | None:
    """The name under which the sender waits for the outcome; None where it doesn't, or the header is unusable."""
    for name, value in raw.headers:
        if name == OUTCOME_HEADER and value:
            try:
                text = value.decode()
            except UnicodeDecodeError:
                return None
            return text if len(text) <= OUTCOME_ID_CHARS_MAX else None
    return None


def origin_text(position: Position) -> str:
    """What `REPLAY_HEADER` says of a message at `position`."""
    at = position
    return f"{at.cluster}/{at.topic}/{at.partition}/{at.offset}@{at.timestamp_ms}"


def origin_of(raw: RawMessage) -> Position | None:
    """Where the message stood that `raw` repeats; None where it repeats none.

    A copy stands in the order of versions and deletions where its original stood: by its own, later, position an
    old version would replace a newer one, and an old deletion would delete what came after it. So a copy that
    does not say where its original stood has no place: BadDocument(SCHEMA_INVALID).
    """
    told = [value for name, value in raw.headers if name == REPLAY_HEADER]
    if not told:
        return None
    found = _ORIGIN.fullmatch((told[-1] or b"").decode(errors="replace"))
    if found is None:
        raise BadDocument(DeadReason.SCHEMA_INVALID, f"header {REPLAY_HEADER}: is no position in a log")
    cluster, topic, partition, offset, timestamp_ms = found.groups()
    return Position(cluster, topic, int(partition), int(offset), int(timestamp_ms))


def _printable(value: str) -> str:
    if _CONTROLS.search(value):
        raise ValueError("contains control characters")
    return value


def _dataset_name(value: str) -> str:
    if ":" in value or value == S3_DATASET:
        raise ValueError(f"a dataset is not called {S3_DATASET!r} and has no ':', which separates the parts of an id")
    return value


def _time(value: Any) -> Any:
    return (parse_time(value) or value) if isinstance(value, str) else value


def _utc(value: datetime) -> datetime:
    moment = value.replace(tzinfo=UTC) if value.tzinfo is None else value
    if not 1900 <= moment.year < 2200:
        raise ValueError("is not between the years 1900 and 2200")
    return moment.astimezone(UTC)


Name = Annotated[str, Field(max_length=200), AfterValidator(_printable)]
Text = Annotated[str, Field(max_length=8192)]
Moment = Annotated[datetime, BeforeValidator(_time), AfterValidator(_utc)]


class _WireModel(BaseModel):
    """Unknown fields are kept, empty texts and nulls count as absent, numbers are no texts."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None and value != ""}


class NotificationMetadata(_WireModel):
    """`metadata` of contracts 1.1. `content_type` and `scraper_name` are ours, and optional."""

    publish_dtm: Moment
    source: Name
    data_type: Name
    url: Text | None = None
    s3_guid: Name | None = None
    original_file_size: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    original_file_md5sum: Text | None = None
    content_type: Name | None = None
    scraper_name: Name | None = None


class Notification(_WireModel):
    """A scraper's notification (contracts 1.1)."""

    dataset: Annotated[Name, AfterValidator(_dataset_name)]
    environment: Literal["dev", "staging", "prod"] = "prod"
    urn: Annotated[str, Field(max_length=1024), AfterValidator(_printable)]
    location: Text
    version: Name | None = None
    etag: Name | None = None
    scraper_name: Name | None = None
    metadata: NotificationMetadata


def parse_message(raw: RawMessage, settings: Settings) -> list[Work]:
    """The work that `raw` asks for. Raises BadDocument(NOT_JSON | SCHEMA_INVALID | UNKNOWN_VERSION | TOO_LARGE |
    LOCATION_REFUSED), and nothing else.

    The position of the work is the message's, or its original's where it is a copy (`origin_of`). A copy, and what the
    header `shoal.lane` says of, is a backfill.
    A tombstone deletes the document that its key names; a key that names none deletes nothing, which the
    writer finds out. A tombstone without a usable key is a bad record: it can't mean anything.
    """
    waiting, origin = outcome_id(raw), origin_of(raw)
    position = origin or raw.position
    if raw.value is None:
        return [Deletion(position, SCRAPER_COLLECTION, _tombstone_key(raw.key), outcome_id=waiting)]
    if len(raw.value) > settings.message_bytes_max:
        raise BadDocument(
            DeadReason.TOO_LARGE,
            f"a message of {len(raw.value)} bytes is over message_bytes_max ({settings.message_bytes_max})",
        )
    body = _json_object(raw.value)
    if raw.position.topic == settings.command_topic:
        return [validated(commands.CommandBody, body).to_command(position, waiting)]
    for _ in range(_WRAPPERS_MAX):
        if "dataset" in body or body.get("Type") not in _SNS_TYPES:
            break
        if body["Type"] != "Notification":
            return []  # SNS asks to be confirmed; that is its owner's to do
        message = body.get("Message")
        if not isinstance(message, str):
            raise BadDocument(DeadReason.SCHEMA_INVALID, "Message: an SNS notification carries its event as a text")
        body = _json_object(message.encode())
    if "dataset" not in body and (events := s3_events.events_of(body)) is not None:
        works = [
            work for event in events if (work := validated(s3_events.EVENTS[event.shape], event.body).to_work(
                position, settings.s3_event_rules
            ))
        ]  # fmt: skip
    else:
        works = [_announcement(validated(Notification, body), position, waiting)]
    is_backfill = (LANE_HEADER, b"backfill") in raw.headers
    if origin is not None or is_backfill:
        works = [
            replace(work, is_replay=origin is not None, is_backfill=True) if isinstance(work, Announcement) else work
            for work in works
        ]
    return _numbered(works, waiting)


Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], body: Any) -> Model:
    """`body` as `model`, or BadDocument(SCHEMA_INVALID) whose one line names the first wrong field."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "message"
        raise BadDocument(DeadReason.SCHEMA_INVALID, f"{where[:100]}: {first['msg'][:200]}") from None


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(data)  # strict: no NaN, no lone surrogates, UTF-8 only, bounded depth
    except orjson.JSONDecodeError as error:
        raise BadDocument(DeadReason.NOT_JSON, str(error)[:200]) from None
    if not isinstance(body, dict):
        raise BadDocument(DeadReason.SCHEMA_INVALID, f"message: expected a JSON object, found {type(body).__name__}")
    return body


def _tombstone_key(key: bytes | None) -> str:
    try:
        text = (key or b"").decode()
    except UnicodeDecodeError:
        text = ""
    if not text or len(text.encode()) > KEY_BYTES_MAX:
        raise BadDocument(DeadReason.SCHEMA_INVALID, "key: a tombstone's key is the id of the document to delete")
    return text


def _announcement(message: Notification, position: Position, waiting: str | None) -> Announcement:
    parse_location(message.location)
    metadata, warnings = message.metadata, []
    md5 = metadata.original_file_md5sum
    if md5 is not None and not _MD5.fullmatch(md5):
        warnings.append("original_file_md5sum is not an md5 and was ignored")
        md5 = None
    extra = _extra(message)
    if len(extra) > EXTRA_BYTES_MAX:
        warnings.append(f"unknown fields of {len(extra)} bytes were left out")
        extra = b"{}"
    return Announcement(
        position=position,
        collection=SCRAPER_COLLECTION,
        document_id=document_id(message.environment, message.dataset, message.urn),
        version=comparable(message.version),
        location=message.location,
        content=None,
        dataset=message.dataset,
        environment=message.environment,
        urn=message.urn,
        data_source=metadata.source.upper(),
        data_type=metadata.data_type,
        scraper_name=message.scraper_name or metadata.scraper_name or message.dataset,
        collected_at=metadata.publish_dtm,
        published_at=parse_time(message.version or ""),
        source_url=redact_url(metadata.url) if metadata.url else None,
        s3_guid=metadata.s3_guid,
        etag=message.etag,
        expected_size_bytes=metadata.original_file_size,
        expected_md5=md5.lower() if md5 else None,
        content_type=metadata.content_type,
        outcome_id=waiting,
        warnings=tuple(warnings),
        extra=extra.decode(),
    )


def _extra(message: Notification) -> bytes:
    unknown = dict(message.model_extra or {})
    if message.metadata.model_extra:
        unknown["metadata"] = message.metadata.model_extra
    return orjson.dumps(redact_json(unknown))


def _numbered(works: list[Announcement | Deletion], waiting: str | None) -> list[Work]:
    """Several records of one message have an outcome each: `{id}/1`, `{id}/2`, ..."""
    if waiting is None or not works:
        return list(works)
    if len(works) == 1:
        return [replace(works[0], outcome_id=waiting)]
    return [replace(work, outcome_id=f"{waiting}/{number}") for number, work in enumerate(works, start=1)]
