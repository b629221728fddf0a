"""Dead letters: a message that could not be used, with why, ready to be sent beside its topic (contracts 1.5).

The same key, value and headers, so that it can be replayed as it was; the headers of Kafka Connect, so that
existing tools read it; and ours. Headers of an earlier death are replaced, not piled up. What would be too
large for a topic with default limits is replaced by a stub that names its hash and begins with its beginning;
the original stands in the source topic at the position in the headers.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import orjson

from shoal.records import Failure
from shoal.sources.messages import RawMessage

Header = tuple[str, bytes | None]

DEAD_LETTER_SUFFIX = "_dlq"
STATE_SUFFIX = DEAD_LETTER_SUFFIX + "_state"  # what was done about them (shoal.sources.dead_letter_state)

# Kafka's default max.message.bytes is 1,048,588 for the whole batch: this leaves room for key and headers.
VALUE_BYTES_MAX = 900_000
KEY_BYTES_MAX = 16 * 1024
KEPT_HEADERS_BYTES_MAX = 64 * 1024
STUB_HEAD_BYTES = 1024
MESSAGE_CHARS_MAX = 1000

_CONNECT, _OURS = "__connect.errors.", "shoal.dlq."
OWN_HEADERS = (_CONNECT, _OURS)  # what a dead letter adds to a message's headers begins so
REPLAYED_HEADER = _OURS + "replayed"  # counts replays, so that they can be bounded; survives the next death
ID_HEADER = _OURS + "id"  # of the dead letter that a message replays; survives too: it tells what came back
_SURVIVING = (REPLAYED_HEADER, ID_HEADER)


def dead_letter(
    raw: RawMessage,
    failure: Failure,
    failed_at: datetime,
    retry_count: int = 0,
    *,
    value_bytes_max: int = VALUE_BYTES_MAX,
) -> tuple[str, bytes | None, bytes | None, list[Header]]:
    """(topic, key, value, headers) of the dead letter for `raw`."""
    position = raw.position
    about: dict[str, object] = {
        _CONNECT + "topic": position.topic,
        _CONNECT + "partition": position.partition,
        _CONNECT + "offset": position.offset,
        _CONNECT + "stage": failure.stage,
        _CONNECT + "exception.class.name": "shoal.errors.BadDocument",
        _CONNECT + "exception.message": failure.message[:MESSAGE_CHARS_MAX],
        _OURS + "reason": failure.reason,
        _OURS + "failed_at": failed_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        _OURS + "retry_count": retry_count,
        _OURS + "original_timestamp": position.timestamp_ms,
        _OURS + "cluster": position.cluster,
    }
    key, value = raw.key, raw.value
    if value is not None and len(value) > value_bytes_max:
        about |= {_OURS + "value_sha256": hashlib.sha256(value).hexdigest(), _OURS + "value_bytes": len(value)}
        value = _stub(value)
    if key is not None and len(key) > KEY_BYTES_MAX:
        about[_OURS + "key_bytes"] = len(key)
        key = hashlib.sha256(key).hexdigest().encode()
    kept, left_out = _kept(raw.headers)
    if left_out:
        about[_OURS + "headers_left_out"] = left_out
    encoded: list[Header] = [(name, str(text).encode(errors="replace")) for name, text in about.items()]
    return position.topic + DEAD_LETTER_SUFFIX, key, value, kept + encoded


def _stub(value: bytes) -> bytes:
    return orjson.dumps(
        {
            "shoal_stub": True,
            "sha256": hashlib.sha256(value).hexdigest(),
            "bytes": len(value),
            "head": value[:STUB_HEAD_BYTES].decode(errors="replace"),
        }
    )


def _kept(headers: tuple[Header, ...]) -> tuple[list[Header], int]:
    """The message's own headers within the bound, and how many were left out."""
    kept: list[Header] = []
    room, left_out = KEPT_HEADERS_BYTES_MAX, 0
    for name, data in headers:
        if name.startswith(OWN_HEADERS) and name not in _SURVIVING:
            continue
        room -= len(name) + len(data or b"")
        if room >= 0:
            kept.append((name, data))
        else:
            left_out += 1
    return kept, left_out
