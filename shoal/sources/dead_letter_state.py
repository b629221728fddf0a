"""What was done about a dead letter: how a replay is known, and the records of `{topic}_dlq_state`.

Pure: bytes and times in, records out. A dead letter is named by its id, `{dlq topic}/{partition}/{offset}`. Two
kinds of records tell its state, under keys of their own:

* under the id: `succeeded` and `returned`, written by the reader when the replay has ended, and `purged`;
* under `{id}#replayed`: `replayed`, written by whoever sends replays, after the message was sent.

Under one key the later record wins, which is all that a compacted topic keeps. Two keys, because the reader may
be done with a replay before its sender records that it was sent: under one key, that late `replayed` would hide
the outcome for ever. `now_of` joins the two by the number of the replay.

Anyone can write to these topics and headers: what is no record is None here, never an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import orjson

from shoal.records import Failure, Outcome
from shoal.sources.dead_letters import DEAD_LETTER_SUFFIX, ID_HEADER, REPLAYED_HEADER, STATE_SUFFIX, Header
from shoal.sources.messages import RawMessage
from shoal.sources.versions import parse_time

COUNT_MAX = 1_000_000  # a number above is not a count of replays but somebody's garbage
MESSAGE_CHARS_MAX = 500
RECORD_BYTES_MAX = 64 * 1024
_REPLAYED_KEY = "#replayed"
_ID = re.compile(rf"([a-zA-Z0-9._-]{{1,249}}{DEAD_LETTER_SUFFIX})/(\d{{1,9}})/(\d{{1,19}})", re.ASCII)
_COUNT = re.compile(rb"\d{1,7}")


class State(StrEnum):
    """What was done about a dead letter; one without any is open."""

    REPLAYED = "replayed"  # sent again, outcome not known (yet)
    SUCCEEDED = "succeeded"
    RETURNED = "returned"  # died again: a new dead letter stands for it, with its count raised
    PURGED = "purged"


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replayed message says of itself; `count`: the how manieth replay of the original message it is."""

    dead_letter_id: str
    count: int


@dataclass(frozen=True, slots=True)
class StateRecord:
    """One state of one dead letter. `replays`: how often the message had been replayed when it was recorded."""

    dead_letter_id: str
    state: State
    replays: int
    at: datetime | None = None
    outcome: str | None = None
    reason: str | None = None
    message: str | None = None


def parse_id(text: str) -> tuple[str, int, int] | None:
    """(dead-letter topic, partition, offset) that an id names, or None."""
    match = _ID.fullmatch(text)
    return (match[1], int(match[2]), int(match[3])) if match else None


def header(headers: Sequence[Header], name: str) -> bytes | None:
    """The last value under `name` (Kafka Connect appends what it adds), or None."""
    return next((value for found, value in reversed(headers) if found == name), None)


def count_of(headers: Sequence[Header]) -> int:
    """How often the message was replayed; 0 where it was not, or what is said is no count."""
    return _count(header(headers, REPLAYED_HEADER)) or 0


def _count(text: bytes | None) -> int | None:
    if text is None or not _COUNT.fullmatch(text) or int(text) > COUNT_MAX:
        return None
    return int(text)


def id_of(headers: Sequence[Header]) -> str | None:
    """The id of the dead letter that the message replays, if it names one."""
    text = (header(headers, ID_HEADER) or b"").decode(errors="replace")
    return text if parse_id(text) else None


def replay_of(raw: RawMessage) -> Replay | None:
    """Which dead letter `raw` replays; None for any other message, and for one that names a foreign topic's."""
    dead_letter_id, count = id_of(raw.headers), count_of(raw.headers)
    if dead_letter_id is None or count == 0:
        return None
    if dead_letter_id.split("/")[0] != raw.position.topic + DEAD_LETTER_SUFFIX:
        return None
    return Replay(dead_letter_id, count)


def state_topic(dead_letter_topic: str) -> str:
    """Where the states of that topic's dead letters are recorded."""
    return dead_letter_topic.removesuffix(DEAD_LETTER_SUFFIX) + STATE_SUFFIX


def settled(
    raw: RawMessage, outcome: Outcome | None, at: datetime, failure: Failure | None = None
) -> tuple[str, bytes, bytes] | None:
    """(topic, key, value) of the record that the replay `raw` has ended; None where `raw` is no replay.

    `outcome` is that of the whole message: DEAD_LETTERED if any of its records died, None where it asked for
    nothing. Record it before the offset is done: recorded twice, it says the same.
    """
    replay = replay_of(raw)
    if replay is None:
        return None
    died = outcome is Outcome.DEAD_LETTERED
    about: dict[str, Any] = {"outcome": outcome}
    if failure is not None:
        about |= {"reason": failure.reason, "message": failure.message[:MESSAGE_CHARS_MAX]}
    position = raw.position
    about |= {"topic": position.topic, "partition": position.partition, "offset": position.offset}
    state = State.RETURNED if died else State.SUCCEEDED
    return _record(replay.dead_letter_id, replay.dead_letter_id, state, replay.count, at, about)


def replayed(dead_letter_id: str, count: int, at: datetime) -> tuple[str, bytes, bytes]:
    """(topic, key, value) of the record that a replay, the `count`th, was sent. `dead_letter_id` must be one."""
    return _record(dead_letter_id, dead_letter_id + _REPLAYED_KEY, State.REPLAYED, count, at, {})


def purged(dead_letter_id: str, count: int, at: datetime) -> tuple[str, bytes, bytes]:
    """(topic, key, value) of the record that it needs nothing more, after `count` replays."""
    return _record(dead_letter_id, dead_letter_id, State.PURGED, count, at, {})


def _record(
    dead_letter_id: str, key: str, state: State, count: int, at: datetime, about: dict[str, Any]
) -> tuple[str, bytes, bytes]:
    moment = at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    value = orjson.dumps({"state": state, "at": moment, "replays": count, **about})
    return state_topic(dead_letter_id.split("/")[0]), key.encode(), value


def parse_key(key: bytes | None) -> tuple[str, bool] | None:
    """(id, whether it is the key of `replayed`) of a record's key, or None where it is none of ours."""
    text = (key or b"").decode(errors="replace")
    dead_letter_id = text.removesuffix(_REPLAYED_KEY)
    return (dead_letter_id, dead_letter_id != text) if parse_id(dead_letter_id) else None


def parse_state(raw: RawMessage) -> StateRecord | None:
    """The state that a message of a state topic records, or None where it is no such record."""
    named = parse_key(raw.key)
    if named is None or raw.value is None or len(raw.value) > RECORD_BYTES_MAX:
        return None
    dead_letter_id, sent = named
    try:
        found = orjson.loads(raw.value)
        state = State(found["state"])
        replays = found["replays"]
    except (ValueError, KeyError, TypeError):
        return None
    if state_topic(dead_letter_id.split("/")[0]) != raw.position.topic or (state is State.REPLAYED) != sent:
        return None
    if type(replays) is not int or not 0 <= replays <= COUNT_MAX:
        return None
    texts = {name: text for name in ("outcome", "reason", "message") if isinstance(text := found.get(name), str)}
    at = found.get("at")
    return StateRecord(dead_letter_id, state, replays, parse_time(at) if isinstance(at, str) else None, **texts)


def now_of(sent: StateRecord | None, ended: StateRecord | None) -> StateRecord | None:
    """The state in force, of the last record under each key; an outcome outweighs the replay that it answers."""
    if sent is None or ended is None:
        return ended or sent
    return sent if sent.replays > ended.replays else ended
