"""A dead letter read back: what its headers say, and the message that a replay of it sends.

Pure. Others write to these topics too: a header that is missing, or is not what it should be, is None or 0, and
the letter is listed as what it is. Nothing a letter says decides where a replay goes: that is the topic whose
dead letters it lies among.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson

from shoal.records import Position
from shoal.sources.dead_letter_state import StateRecord, count_of, header, id_of
from shoal.sources.dead_letters import (
    DEAD_LETTER_SUFFIX,
    ID_HEADER,
    OWN_HEADERS,
    REPLAYED_HEADER,
    STUB_HEAD_BYTES,
    Header,
)
from shoal.sources.messages import REPLAY_HEADER, RawMessage, origin_text
from shoal.sources.versions import parse_time

TEXT_CHARS_MAX = 2000
REASON_CHARS_MAX = 60
CLUSTER_CHARS_MAX = 300
# A stub holds the first bytes of what it stands for, each at most six characters (\u0000) of JSON.
_STUB_BYTES_MAX = 6 * STUB_HEAD_BYTES + 1024


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter; None for what it does not say. `raw` is the message as it lies in the dead-letter topic."""

    id: str
    raw: RawMessage
    topic: str  # where the message came from, and a replay goes
    source_partition: int | None
    source_offset: int | None
    reason: str | None
    stage: str | None
    message: str | None
    failed_at: datetime | None  # by its header, else when it was written
    retry_count: int
    replays: int  # how often the message was replayed before it died here
    replay_of: str | None  # the dead letter that it was a replay of
    original_timestamp_ms: int | None
    cluster: str | None  # the Kafka cluster of the source
    value_sha256: str | None  # of the original value, where this one is a stub
    is_incomplete: bool  # value, key or headers were too large: only the source topic has the message
    state: StateRecord | None = None

    @property
    def attempts(self) -> int:
        """How often the message was replayed, be it before this death or after it."""
        return max(self.replays, self.state.replays if self.state else 0)


def dead_letter_id(raw: RawMessage) -> str:
    """The id of a message of a dead-letter topic."""
    return f"{raw.position.topic}/{raw.position.partition}/{raw.position.offset}"


def read_back(raw: RawMessage, state: StateRecord | None = None) -> DeadLetter:
    """`raw`, a message of a dead-letter topic, as the dead letter that it is. Never fails."""
    headers = raw.headers
    sha256 = _text(headers, "shoal.dlq.value_sha256", 64) or _stub_sha256(raw.value)
    left_out = any(header(headers, f"shoal.dlq.{name}") is not None for name in ("key_bytes", "headers_left_out"))
    return DeadLetter(
        id=dead_letter_id(raw),
        raw=raw,
        topic=raw.position.topic.removesuffix(DEAD_LETTER_SUFFIX),
        source_partition=_number(headers, "__connect.errors.partition", 2**31),
        source_offset=_number(headers, "__connect.errors.offset", 2**63),
        reason=_text(headers, "shoal.dlq.reason", REASON_CHARS_MAX),
        stage=_text(headers, "__connect.errors.stage", REASON_CHARS_MAX),
        message=_text(headers, "__connect.errors.exception.message", TEXT_CHARS_MAX),
        failed_at=parse_time(_text(headers, "shoal.dlq.failed_at", 40) or "") or _moment(raw.position.timestamp_ms),
        retry_count=_number(headers, "shoal.dlq.retry_count", 2**31) or 0,
        replays=count_of(headers),
        replay_of=id_of(headers),
        original_timestamp_ms=_number(headers, "shoal.dlq.original_timestamp", 2**63),
        cluster=_text(headers, "shoal.dlq.cluster", CLUSTER_CHARS_MAX),
        value_sha256=sha256,
        is_incomplete=sha256 is not None or left_out,
        state=state,
    )


def replay_message(
    letter: DeadLetter, original: RawMessage | None = None
) -> tuple[str, bytes | None, bytes | None, list[Header]]:
    """(topic, key, value, headers) of the next replay of `letter`; `original` where the letter is incomplete.

    It stands in the order of versions and deletions where the message stood at first: what was announced or deleted
    since is not undone by a replay. Ours come first: what has no room in a dead letter is cut from the end.
    """
    source = original or letter.raw
    own: list[Header] = [
        (ID_HEADER, letter.id.encode()),
        (REPLAYED_HEADER, str(letter.attempts + 1).encode()),
    ]
    at = (letter.cluster, letter.source_partition, letter.source_offset, letter.original_timestamp_ms)
    if header(source.headers, REPLAY_HEADER) is None and None not in at:
        cluster, partition, offset, timestamp_ms = at
        first = Position(str(cluster), letter.topic, int(partition or 0), int(offset or 0), int(timestamp_ms or 0))
        own.append((REPLAY_HEADER, origin_text(first).encode()))
    kept = [(name, data) for name, data in source.headers if not name.startswith(OWN_HEADERS)]
    return letter.topic, source.key, source.value, own + kept


def is_original_of(letter: DeadLetter, found: RawMessage) -> bool:
    """Whether `found` is the message that `letter` stands for: offsets alone don't say so, topics are made anew."""
    value, key = found.value or b"", found.key or b""
    same_key = found.key == letter.raw.key or hashlib.sha256(key).hexdigest().encode() == letter.raw.key
    if letter.value_sha256 is not None:
        return same_key and hashlib.sha256(value).hexdigest() == letter.value_sha256
    return same_key and found.value == letter.raw.value


def value_bytes(letter: DeadLetter) -> int | None:
    """How many bytes the original value has; None where the letter does not say, or it had no value."""
    if letter.value_sha256 is None:
        return None if letter.raw.value is None else len(letter.raw.value)
    return _number(letter.raw.headers, "shoal.dlq.value_bytes", 2**31)


def dataset_of(letter: DeadLetter) -> str | None:
    """The dataset of the notification in it, or by the key, which is `{environment}:{dataset}:{urn}`."""
    try:
        found = orjson.loads(letter.raw.value or b"")
    except ValueError:
        found = None
    if isinstance(found, dict) and isinstance(dataset := found.get("dataset"), str):
        return dataset
    parts = (letter.raw.key or b"").decode(errors="replace").split(":", 2)
    return parts[1] if len(parts) == 3 else None


def _stub_sha256(value: bytes | None) -> str | None:
    if value is None or len(value) > _STUB_BYTES_MAX or b'"shoal_stub"' not in value:
        return None
    try:
        found = orjson.loads(value)
    except ValueError:
        return None
    if not isinstance(found, dict) or found.get("shoal_stub") is not True:
        return None
    sha256 = found.get("sha256")
    return sha256 if isinstance(sha256, str) else ""


def _text(headers: tuple[Header, ...], name: str, chars_max: int) -> str | None:
    data = header(headers, name)
    return data[: 4 * chars_max].decode(errors="replace")[:chars_max] if data else None


def _number(headers: tuple[Header, ...], name: str, below: int) -> int | None:
    data = header(headers, name) or b""
    if not (data.isdigit() and len(data) <= 20):
        return None
    return number if (number := int(data)) < below else None


def _moment(timestamp_ms: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(timestamp_ms / 1000, UTC) if timestamp_ms > 0 else None
    except (ValueError, OverflowError, OSError):
        return None
