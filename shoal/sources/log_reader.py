"""Reading a stretch of the log: from given offsets to the end as it is now, without a group.

For tools that look at the log beside the live readers (`shoal verify`, `shoal replay`): partitions are assigned
by offset, nothing is subscribed, committed or changed. A read is a stream: within a partition in order, between
partitions as they come, and bounded in memory by the client's prefetch. It ends at the bounds it was given,
however much is added meanwhile. What retention removed before it could be read is not there, and `earliest`
says so afterwards; gaps (compaction, transactions) are passed over.

Raises TransientError where the brokers stop answering, ConfigurationError where they refuse.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, TopicPartition

from shoal.errors import ConfigurationError, TransientError
from shoal.settings import Settings
from shoal.sources.kafka import METADATA_TIMEOUT_S, Connection, arrived, consumer_config, raw_message, translated
from shoal.sources.messages import RawMessage

Partition = tuple[str, int]
"""(topic, partition)."""

SILENCE_S = 30.0  # without a message or an end: the brokers are gone. Shorter, a rolling restart ends a long read
POLL_MESSAGES_MAX = 1_000
FETCH_WAIT_MS = 20  # more holds up what is asked after a read; less asks a broker that has nothing over and over
_GROUP_ONLY = ("group.protocol", "partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms")


@dataclass(frozen=True, slots=True)
class Stretch:
    """The messages of one partition from `start` up to, and without, `end`."""

    topic: str
    partition: int
    start: int
    end: int

    @property
    def key(self) -> Partition:
        return self.topic, self.partition

    @property
    def is_empty(self) -> bool:
        return self.start >= self.end


class LogReader:
    """Reads stretches of topics. One thread; use as a context manager."""

    def __init__(self, settings: Settings, connection: Connection, *, silence_s: float = SILENCE_S) -> None:
        self._cluster = connection.cluster
        self._silence_s = silence_s
        self._group = settings.kafka_group_id
        config = {name: value for name, value in _config(settings, connection).items() if name not in _GROUP_ONLY}
        self._config = config
        self._consumer = self._client(f"shoal-look-{uuid.uuid4()}")

    def _client(self, group: str) -> Any:
        try:
            return Consumer(self._config | {"group.id": group})
        except KafkaException as error:
            raise ConfigurationError(f"setting kafka_properties: {error.args[0].str()}") from error

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def whole(self, topics: Iterable[str]) -> list[Stretch]:
        """All of `topics` as they are now. Raises ConfigurationError for a topic that does not exist."""
        return [
            Stretch(topic, number, *self._bounds(topic, number)) for topic in topics for number in self._numbers(topic)
        ]

    def existing(self, topics: Iterable[str]) -> list[str]:
        """Those of `topics` that the cluster has."""
        known = _asked(lambda: self._consumer.list_topics(timeout=METADATA_TIMEOUT_S)).topics
        return [topic for topic in dict.fromkeys(topics) if topic in known]

    def since(self, stretches: Sequence[Stretch], time_ms: int) -> list[Stretch]:
        """`stretches` without what stands before the first message of `time_ms` or later. Where the broker keeps no
        times (the embedded one) they stay whole: look at each message's own time as well."""
        wanted = [TopicPartition(each.topic, each.partition, time_ms) for each in stretches]
        if not wanted or self._cluster.startswith("embedded-"):
            return list(stretches)
        found = _asked(lambda: self._consumer.offsets_for_times(wanted, timeout=METADATA_TIMEOUT_S))
        starts = {(at.topic, at.partition): at.offset for at in found if at.error is None}
        return [
            each
            if (start := starts.get(each.key)) is None
            else replace(each, start=max(each.start, _or_end(start, each)))
            for each in stretches
        ]

    def committed(self, keys: Sequence[Partition]) -> dict[Partition, int]:
        """Where the readers' group stands: its committed next offsets, of those partitions that have one."""
        if not keys:
            return {}
        asking = self._client(self._group)  # never subscribes: it is no member, and disturbs none
        try:
            wanted = [TopicPartition(*key) for key in keys]
            found = _asked(lambda: asking.committed(wanted, timeout=METADATA_TIMEOUT_S))
        finally:
            asking.close()
        for at in found:
            if at.error is not None:
                raise translated(at.error, at.topic)
        return {(at.topic, at.partition): at.offset for at in found if at.offset != OFFSET_INVALID and at.offset >= 0}

    def earliest(self, stretches: Iterable[Stretch]) -> dict[Partition, int]:
        """The first offsets that are still there."""
        return {each.key: self._bounds(each.topic, each.partition)[0] for each in stretches}

    def read(self, stretches: Sequence[Stretch]) -> Iterator[RawMessage]:
        """Every message of `stretches`, each partition in order."""
        open_ends = {each.key: each.end for each in stretches if not each.is_empty}
        self._consumer.assign(
            [TopicPartition(each.topic, each.partition, each.start) for each in stretches if each.key in open_ends]
        )
        heard = time.monotonic()
        try:
            while open_ends:
                for message in arrived(self._consumer, POLL_MESSAGES_MAX, 1.0):
                    heard = time.monotonic()
                    error = message.error()
                    if error is None:
                        raw = raw_message(message, self._cluster)
                        key, offset = (raw.position.topic, raw.position.partition), raw.position.offset
                        end = open_ends.get(key)
                        if end is None:
                            continue
                        if offset < end:
                            yield raw
                            heard = time.monotonic()  # whoever reads may take long
                        if offset + 1 >= end:
                            self._done(open_ends, key)
                    elif error.code() == KafkaError._PARTITION_EOF:
                        self._done(open_ends, (str(message.topic()), int(message.partition() or 0)))
                    elif not isinstance(ours := translated(error, str(message.topic() or "")), TransientError):
                        raise ours
                if time.monotonic() - heard > self._silence_s:
                    topic, partition = next(iter(open_ends))
                    raise TransientError(
                        f"Kafka topic {topic}: nothing of partition {partition} came within {self._silence_s:g} s"
                    )
        finally:
            self._consumer.unassign()

    def _done(self, open_ends: dict[Partition, int], key: Partition) -> None:
        if open_ends.pop(key, None) is not None:
            self._consumer.pause([TopicPartition(*key)])

    def _numbers(self, topic: str) -> list[int]:
        found = _asked(lambda: self._consumer.list_topics(topic, timeout=METADATA_TIMEOUT_S)).topics[topic]
        if found.error is not None:
            raise translated(found.error, topic)
        return sorted(found.partitions)

    def _bounds(self, topic: str, partition: int) -> tuple[int, int]:
        at = TopicPartition(topic, partition)
        found = _asked(lambda: self._consumer.get_watermark_offsets(at, timeout=METADATA_TIMEOUT_S))
        if found is None:
            raise TransientError(f"Kafka topic {topic}: partition {partition} does not say where it begins and ends")
        low, high = found
        return low, high


def _or_end(offset: int, stretch: Stretch) -> int:
    """-1 stands for: no message is that young."""
    return stretch.end if offset < 0 else offset


def _config(settings: Settings, connection: Connection) -> Mapping[str, Any]:
    return consumer_config(settings, connection.brokers) | {
        "auto.offset.reset": "earliest",  # of what retention took meanwhile the rest is read
        "enable.partition.eof": True,
        # A read ends where the log ended: there is nothing new to wait for. And a broker answers one connection in
        # order, so that each question beside a waiting fetch would wait with it.
        "fetch.wait.max.ms": FETCH_WAIT_MS,
    }


def _asked(call: Any) -> Any:
    """The brokers' answer. What may pass (a partition whose leader was just chosen) is asked again for a while."""
    deadline = time.monotonic() + METADATA_TIMEOUT_S
    while True:
        try:
            return call()
        except KafkaException as error:
            ours = translated(error.args[0])
            if not isinstance(ours, TransientError) or time.monotonic() > deadline:
                raise ours from error
        time.sleep(0.1)
