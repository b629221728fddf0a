"""Choosing among dead letters, and what may be shown of one: for `shoal dlq` and for REST.

Everything read here was written by others. What is shown is redacted and holds no character that a terminal
would obey. Reads the log that it is given, writes nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from shoal.errors import ConfigurationError
from shoal.redaction import REDACTED, is_secret, printable, redact_json, redact_text
from shoal.sources.dead_letter_log import DeadLetterLog
from shoal.sources.dead_letter_record import DeadLetter, dataset_of

NO_REASON = "none"  # what others wrote into the topic says no reason of ours
READ_A_STEP = 500  # letters between two lines of progress
HEADER_CHARS_MAX = 400
_AGE = re.compile(r"(\d{1,6})\s*([smhdw])", re.ASCII)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_RFC_3339 = re.compile(r"\d{4}-\d{2}-\d{2}([Tt ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?([Zz]|[+-]\d{2}:\d{2})?)?", re.ASCII)
FIRST = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters are meant: all conditions hold; an empty one always does."""

    ids: tuple[str, ...] = ()
    reasons: frozenset[str] = frozenset()
    topics: frozenset[str] = frozenset()  # where the messages came from
    since: datetime | None = None
    until: datetime | None = None
    dataset: str = ""
    handled: bool = False  # also those with a state

    @property
    def is_empty(self) -> bool:
        return not (self.ids or self.reasons or self.topics or self.since or self.until or self.dataset)

    def fits(self, letter: DeadLetter) -> bool:
        """Whether it is meant, handled or not. The cheapest questions come first."""
        if self.reasons and (letter.reason or NO_REASON) not in self.reasons:
            return False
        if self.topics and letter.topic not in self.topics:
            return False
        at = letter.failed_at or FIRST
        if (self.since and at < self.since) or (self.until and at >= self.until):
            return False
        return not self.dataset or dataset_of(letter) == self.dataset


def moment(text: str, now: datetime) -> datetime | None:
    """The time that an option names: RFC 3339 (without a zone: UTC), or an age (`90s`, `30m`, `2h`, `3d`, `1w`).

    Raises ConfigurationError for anything else; None where it is empty.
    """
    if not text:
        return None
    try:
        if match := _AGE.fullmatch(text.strip()):
            return now - timedelta(seconds=int(match[1]) * _UNITS[match[2]])
        if not _RFC_3339.fullmatch(text.strip()):
            raise ValueError
        found = datetime.fromisoformat(text.strip())
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):  # no time, or one before the first year
        raise ConfigurationError(
            f"{text!r} is no time: write it as 2025-01-20T14:30:00Z, or as an age: 90s, 30m, 2h, 3d"
        ) from None


@dataclass(slots=True)
class Choice:
    """What a selection met: counts for the summary line. `missing` are ids that no dead letter has."""

    read: int = 0
    chosen: int = 0
    handled: Counter[str] = field(default_factory=Counter)  # meant, but left out since they have a state
    missing: list[str] = field(default_factory=list)


def choose(
    log: DeadLetterLog, wanted: Selection, choice: Choice, progress: Callable[[Choice], None] = lambda _: None
) -> Iterator[DeadLetter]:
    """The letters of `log` that are wanted, in log order (or that of the ids); `choice` is counted on the way."""
    for letter in _named(log, wanted.ids, choice) if wanted.ids else log.letters():
        choice.read += 1
        if choice.read % READ_A_STEP == 0:
            progress(choice)
        if not wanted.fits(letter):
            continue
        if letter.state is not None and not wanted.handled:
            choice.handled[letter.state.state.value] += 1
            continue
        choice.chosen += 1
        yield letter


def _named(log: DeadLetterLog, ids: Iterable[str], choice: Choice) -> Iterator[DeadLetter]:
    for id_ in ids:
        letter = log.letter(id_)
        if letter is None:
            choice.missing.append(id_)
        else:
            yield letter


# --- showing ----------------------------------------------------------------------------------


def row(letter: DeadLetter) -> dict[str, Any]:
    """What a listing tells of a dead letter: all but its headers and its value; safe to show."""
    return {
        "id": letter.id,
        "topic": letter.topic,
        "partition": letter.source_partition,
        "offset": letter.source_offset,
        "failed_at": shown_time(letter.failed_at),
        "reason": shown_reason(letter),
        "stage": None if letter.stage is None else printable(letter.stage),
        "message": None if letter.message is None else printable(redact_text(letter.message)),
        "retry_count": letter.retry_count,
        "replays": letter.attempts,
        "state": str(letter.state.state) if letter.state else "open",
        "replay_of": letter.replay_of,
        "key": None if letter.raw.key is None else text_of(letter.raw.key)[:HEADER_CHARS_MAX],
        "value_bytes": None if letter.raw.value is None else len(letter.raw.value),
        "stub": letter.is_incomplete,
    }


def shown_reason(letter: DeadLetter) -> str:
    """Its reason, or that it says none."""
    return printable(letter.reason) if letter.reason else NO_REASON


def shown_time(at: datetime | None) -> str | None:
    """RFC 3339, or None."""
    if at is None or at == FIRST:
        return None
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def shown_milliseconds(timestamp_ms: int | None) -> str | None:
    try:
        return None if timestamp_ms is None else shown_time(datetime.fromtimestamp(timestamp_ms / 1000, UTC))
    except (ValueError, OverflowError, OSError):
        return None


def header_text(name: str, value: bytes | None) -> str | None:
    if value is None:
        return None
    text = text_of(value)
    return REDACTED if is_secret(name, text) and not name.startswith("shoal.dlq.") else text[:HEADER_CHARS_MAX]


def text_of(data: bytes) -> str:
    """Bytes as redacted, printable text; what is no UTF-8 as hexadecimal digits."""
    try:
        return printable(redact_text(data.decode()))
    except UnicodeDecodeError:
        return f"0x{data[: HEADER_CHARS_MAX // 2].hex()}" + ("..." if len(data) > HEADER_CHARS_MAX // 2 else "")


def value_of(value: bytes | None) -> Any:
    """A message's value to show: JSON redacted, other text too, bytes that are no text as hexadecimal digits."""
    if value is None:
        return None
    try:
        found = orjson.loads(value)
    except ValueError:
        return text_of(value)
    return _safe(redact_json(found))


def _safe(value: Any) -> Any:
    """Its texts redacted once more, as text (a stub's head is broken JSON), and printable."""
    if isinstance(value, str):
        return printable(redact_text(value))
    if isinstance(value, dict):
        return {printable(name): _safe(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_safe(item) for item in value]
    return value
