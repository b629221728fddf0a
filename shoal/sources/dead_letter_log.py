"""The dead letters of every topic as they stand now, with what was done about each: on Kafka and in the journal.

`open_dead_letters` fixes the moment: what lies in the dead-letter topics then is read, from their start, one
message at a time, and joined with the states recorded by then. Nothing is joined, committed or deleted. Memory:
what the client prefetches (16 MiB, and more of what was compressed well), and some 200 bytes for every letter that
has a state.

With the embedded broker they are read from its journal, whether it runs or not: there an id's partition is
always 0 and its offset the entry's number, since the broker's own begin anew with each of its lives.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from shoal.errors import TransientError
from shoal.records import Position
from shoal.settings import Settings
from shoal.sources.dead_letter_record import DeadLetter, dead_letter_id, is_original_of, read_back, value_bytes
from shoal.sources.dead_letter_state import (
    State,
    StateRecord,
    now_of,
    parse_id,
    parse_key,
    parse_state,
)
from shoal.sources.dead_letters import DEAD_LETTER_SUFFIX, STATE_SUFFIX
from shoal.sources.journal import JOURNAL_PARTITION, Entry, Journal
from shoal.sources.kafka import (
    METADATA_TIMEOUT_S,
    Connection,
    TailReader,
    connection,
    journal_path,
    lone_config,
    raw_message,
    translated,
)
from shoal.sources.messages import RawMessage

SILENCE_S = 30.0  # without a message or an end of a partition: the brokers are unwell
_ENDED = tuple(State)

Partition = tuple[str, int]
Bounds = Mapping[Partition, tuple[int, int]]
"""From the first offset that is there to the one after the last."""


class StateTail(Protocol):
    """The states that are recorded from now on. One thread at a time."""

    def poll(self, timeout_s: float) -> list[StateRecord]: ...

    def close(self) -> None: ...


class DeadLetterLog(Protocol):
    """The dead letters at one moment. A context manager; every method may raise TransientError, ConfigurationError."""

    def letters(self) -> Iterator[DeadLetter]:
        """All, in the order of each partition. May be read again: it yields the same, unless the log truncated."""

    def letter(self, id_: str, *, in_full: bool = False) -> DeadLetter | None:
        """The one of that id; None where there is none (any more). `in_full`: with all that its state says, which
        reads the states again."""

    def original(self, letter: DeadLetter) -> RawMessage | None:
        """The message that `letter` stands for, from its own topic; None where the log has it no more."""

    def tail(self) -> StateTail:
        """For whoever waits for outcomes: open it first, then send."""

    def __enter__(self) -> DeadLetterLog: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_dead_letters(settings: Settings) -> DeadLetterLog:
    """The dead letters of every topic of `settings`, now. Raises TransientError where Kafka does not answer."""
    topics = (*settings.kafka_topics, settings.command_topic)
    if settings.is_embedded:
        return _JournalLetters(settings, topics)
    return _KafkaLetters(settings, connection(settings), topics)


# --- states -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Known:
    """What the states say of one partition's letters: offset -> replays, or replays with the state."""

    sent: dict[int, int]
    ended: dict[int, tuple[int, int]]


class StateIndex:
    """The state in force of every dead letter, from the records in log order; for one of them in full."""

    def __init__(self, in_full: str | None = None) -> None:
        self._partitions: defaultdict[Partition, _Known] = defaultdict(lambda: _Known({}, {}))
        self._in_full = in_full
        self._full: dict[bool, StateRecord] = {}

    def take(self, raw: RawMessage) -> None:
        """The next message of a state topic; a null value takes back what was recorded under its key."""
        named = parse_key(raw.key)
        if named is None:
            return
        id_, sent = named
        record = parse_state(raw)
        if record is None and raw.value is not None:
            return
        place = parse_id(id_)
        assert place is not None
        topic, partition, offset = place
        known = self._partitions[topic, partition]
        if record is None:
            (known.sent if sent else known.ended).pop(offset, None)
        elif sent:
            known.sent[offset] = record.replays
        else:
            known.ended[offset] = (record.replays, _ENDED.index(record.state))
        if id_ == self._in_full:
            if record is None:
                self._full.pop(sent, None)
            else:
                self._full[sent] = record

    def of(self, id_: str) -> StateRecord | None:
        """The state of that dead letter, None where it is open. Only that of `in_full` has more than the number."""
        if id_ == self._in_full:
            return now_of(self._full.get(True), self._full.get(False))
        place = parse_id(id_)
        known = self._partitions.get(place[:2]) if place else None
        if place is None or known is None:
            return None
        sent, ended = known.sent.get(place[2]), known.ended.get(place[2])
        return now_of(
            None if sent is None else StateRecord(id_, State.REPLAYED, sent),
            None if ended is None else StateRecord(id_, _ENDED[ended[1]], ended[0]),
        )


def _index(messages: Iterable[RawMessage], in_full: str | None = None) -> StateIndex:
    index = StateIndex(in_full)
    for raw in messages:
        index.take(raw)
    return index


# --- Kafka ------------------------------------------------------------------------------------


class _KafkaLetters:
    def __init__(self, settings: Settings, place: Connection, topics: Iterable[str]) -> None:
        self._settings, self._place = settings, place
        with _ours():
            self._asking: Consumer = Consumer(lone_config(settings, place.brokers))
        self._states: StateIndex | None = None
        try:
            # The letters' end first: whatever was recorded of them by then stands in the states read later.
            self._letters = self._bounds([topic + DEAD_LETTER_SUFFIX for topic in topics])
            self._recorded = self._bounds([topic + STATE_SUFFIX for topic in topics])
        except BaseException:
            self._asking.close()
            raise

    def __enter__(self) -> DeadLetterLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._asking.close()

    def letters(self) -> Iterator[DeadLetter]:
        states = self._index()
        for raw in self._span(self._letters):
            yield read_back(raw, states.of(dead_letter_id(raw)))

    def letter(self, id_: str, *, in_full: bool = False) -> DeadLetter | None:
        place = parse_id(id_)
        raw = self._at(*place) if place and place[:2] in self._letters else None
        if raw is None:
            return None
        states = _index(self._span(self._recorded), id_) if in_full else self._index()
        return read_back(raw, states.of(id_))

    def original(self, letter: DeadLetter) -> RawMessage | None:
        if letter.source_partition is None or letter.source_offset is None:
            return None
        raw = self._at(letter.topic, letter.source_partition, letter.source_offset)
        return raw if raw is not None and is_original_of(letter, raw) else None

    def tail(self) -> StateTail:
        topics = sorted({topic for topic, _ in self._recorded})
        return _KafkaTail([TailReader(self._settings, self._place, topic) for topic in topics])

    def _index(self) -> StateIndex:
        if self._states is None:
            self._states = _index(self._span(self._recorded))
        return self._states

    def _bounds(self, topics: Iterable[str]) -> dict[Partition, tuple[int, int]]:
        with _ours():
            known = self._asking.list_topics(timeout=METADATA_TIMEOUT_S).topics
            found = [(topic, number) for topic in topics if topic in known for number in known[topic].partitions]
            return {key: self._watermarks(*key) for key in found}

    def _watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        low_high = self._asking.get_watermark_offsets(TopicPartition(topic, partition), timeout=METADATA_TIMEOUT_S)
        if low_high is None:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return low_high

    def _at(self, topic: str, partition: int, offset: int) -> RawMessage | None:
        """The message at exactly that place, or None."""
        with _ours():
            known = self._asking.list_topics(timeout=METADATA_TIMEOUT_S).topics
            if topic not in known or partition not in known[topic].partitions:
                return None
            low, high = self._watermarks(topic, partition)
        if not low <= offset < high:
            return None
        with contextlib.closing(self._span({(topic, partition): (offset, offset + 1)})) as found:
            return next(found, None)

    def _span(self, bounds: Bounds) -> Generator[RawMessage, None, None]:
        """Every message within `bounds` that is there (compaction and transactions leave gaps)."""
        waiting = {key: high for key, (low, high) in bounds.items() if low < high}
        if not waiting:
            return
        # Its own client: callers look up single messages in between. It tells the end of a partition, where the
        # last offsets may be none that one can read.
        with _ours():
            consumer = Consumer({**lone_config(self._settings, self._place.brokers), "enable.partition.eof": True})
        try:
            with _ours():
                consumer.assign([TopicPartition(*key, bounds[key][0]) for key in waiting])
            heard_at = time.monotonic()
            while waiting:
                message = consumer.poll(0.5)
                if time.monotonic() - heard_at > SILENCE_S and (message is None or message.error()):
                    raise TransientError(f"Kafka sent nothing for {SILENCE_S:g} s: try again when it is well")
                if message is None:
                    continue
                topic, partition, offset = message.topic(), message.partition(), message.offset()
                error = message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    ours = translated(error, topic or "")
                    if not isinstance(ours, TransientError):
                        raise ours
                    continue
                heard_at = time.monotonic()
                assert topic is not None
                assert partition is not None
                assert offset is not None
                high = waiting.get((topic, partition))
                if high is None:
                    continue  # past its end: what was on its way when it was paused
                if error is None and offset < high:
                    yield raw_message(message, self._place.cluster)
                    heard_at = time.monotonic()  # the caller's time is not the brokers' silence
                if error is not None or offset >= high - 1:
                    del waiting[topic, partition]
                    with _ours():
                        consumer.pause([TopicPartition(topic, partition)])
        finally:
            consumer.close()


class _KafkaTail:
    def __init__(self, readers: list[TailReader]) -> None:
        self._readers = readers

    def poll(self, timeout_s: float) -> list[StateRecord]:
        share = timeout_s / max(len(self._readers), 1)
        return [record for reader in self._readers for raw in reader.poll(share) if (record := parse_state(raw))]

    def close(self) -> None:
        for reader in self._readers:
            reader.close()


@contextlib.contextmanager
def _ours() -> Iterator[None]:
    try:
        yield
    except KafkaException as error:
        raise translated(error.args[0]) from error


# --- the embedded broker's journal ------------------------------------------------------------


class _JournalLetters:
    def __init__(self, settings: Settings, topics: Iterable[str]) -> None:
        place = journal_path(settings)
        self._letter_topics = [topic + DEAD_LETTER_SUFFIX for topic in topics]
        self._state_topics = [topic + STATE_SUFFIX for topic in topics]
        # Asking must not make a data directory.
        self._journal = Journal(place) if place.exists() else None
        self._end = self._journal.last_seq() + 1 if self._journal else 0
        self._states: StateIndex | None = None

    def __enter__(self) -> DeadLetterLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._journal is not None:
            self._journal.close()

    def letters(self) -> Iterator[DeadLetter]:
        states = self._index()
        for raw in self._messages(self._letter_topics, 0, self._end):
            yield read_back(raw, states.of(dead_letter_id(raw)))

    def letter(self, id_: str, *, in_full: bool = False) -> DeadLetter | None:
        place = parse_id(id_)
        if place is None or place[0] not in self._letter_topics or place[1] != JOURNAL_PARTITION:
            return None
        if place[2] >= self._end:
            return None
        with contextlib.closing(self._messages([place[0]], place[2], place[2] + 1)) as found:
            raw = next(found, None)
        if raw is None:
            return None
        states = _index(self._messages(self._state_topics, 0, self._end), id_) if in_full else self._index()
        return read_back(raw, states.of(id_))

    def original(self, letter: DeadLetter) -> RawMessage | None:
        """Found by its size and its hash: the offset in its headers is of some life of the broker."""
        size = value_bytes(letter)
        if self._journal is None or size is None:
            return None
        with contextlib.closing(self._journal.entries_of_size(letter.topic, size)) as entries:
            candidates = (_raw(entry) for entry in entries)
            return next((raw for raw in candidates if is_original_of(letter, raw)), None)

    def tail(self) -> StateTail:
        assert self._journal is not None, "nothing is sent where there is nothing"
        # Its own connection: while letters are being read, this one sees the journal as it was.
        return _JournalTail(Journal(self._journal.path), self._state_topics)

    def _index(self) -> StateIndex:
        if self._states is None:
            self._states = _index(self._messages(self._state_topics, 0, self._end))
        return self._states

    def _messages(self, topics: Iterable[str], from_seq: int, to_seq: int) -> Generator[RawMessage, None, None]:
        if self._journal is None:
            return
        for topic in topics:
            with contextlib.closing(self._journal.entries_between(topic, from_seq, to_seq)) as entries:
                yield from map(_raw, entries)


class _JournalTail:
    def __init__(self, journal: Journal, topics: list[str], pause: Callable[[float], None] = time.sleep) -> None:
        self._journal, self._topics, self._pause = journal, topics, pause
        self._next = journal.last_seq() + 1
        self._version: int | None = None

    def poll(self, timeout_s: float) -> list[StateRecord]:
        deadline = time.monotonic() + timeout_s
        while True:
            version = self._journal.version()
            if version != self._version:
                self._version = version
                if found := self._read():
                    return found
            left = deadline - time.monotonic()
            if left <= 0:
                return []
            self._pause(min(left, 0.1))

    def _read(self) -> list[StateRecord]:
        end = self._journal.last_seq() + 1
        messages = (
            _raw(entry) for topic in self._topics for entry in self._journal.entries_between(topic, self._next, end)
        )
        found = [record for raw in messages if (record := parse_state(raw))]
        self._next = end
        return found

    def close(self) -> None:
        self._journal.close()


def _raw(entry: Entry) -> RawMessage:
    position = Position("journal", entry.topic, JOURNAL_PARTITION, entry.seq, entry.created_ms)
    return RawMessage(position, entry.key, entry.value, entry.headers)
