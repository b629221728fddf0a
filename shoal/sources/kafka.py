"""Kafka: client configuration, producing, topics, and reading a topic's tail. The adapter for confluent_kafka.

Besides this module only the reader (its group), whoever reads a topic back (dead_letter_log) and the embedded
broker (its own client) touch the SDK.
`translated` turns a Kafka error into ours, once. Where no broker is configured, producing goes to the journal
of the embedded broker, so that a sender never needs to know which it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from shoal.errors import ConfigurationError, PermanentError, ShoalError, TransientError
from shoal.records import Position
from shoal.settings import Settings
from shoal.sources.dead_letters import DEAD_LETTER_SUFFIX, STATE_SUFFIX
from shoal.sources.journal import Journal, JournalProducer
from shoal.sources.log_producer import FailureMarks, Headers
from shoal.sources.log_producer import LogProducer as LogProducer  # what callers name: they open it here
from shoal.sources.messages import RawMessage
from shoal.tracing import carried

MIB = 1024 * 1024
METADATA_TIMEOUT_S = 10.0
# The embedded broker's classic groups rebalance only after session.timeout - 1 s (librdkafka's mock), and it
# notices a dead member by its closed connection; a real broker notices only by this timeout.
SESSION_TIMEOUT_MS, EMBEDDED_SESSION_TIMEOUT_MS = 10_000, 2_000
# Set by KIP-848 brokers; librdkafka refuses them with group.protocol=consumer.
_CLASSIC_ONLY = ("partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms", "group.protocol.type")
# An offset that the client commits or stores by itself is a message lost at the next crash (G1).
_OURS = ("enable.auto.commit", "enable.auto.offset.store")

log = logging.getLogger("shoal.kafka")


@dataclass(frozen=True, slots=True)
class Connection:
    """A reachable log: `cluster` is the Kafka cluster's id, new in every life of the embedded broker."""

    brokers: str
    cluster: str


def broker_file(settings: Settings) -> Path:
    """Where the embedded broker says where it listens: {brokers, cluster, pid} as JSON."""
    return settings.home / "run" / "broker.json"


def journal_path(settings: Settings) -> Path:
    """The embedded broker's journal."""
    return settings.home / "journal.sqlite"


def connection(settings: Settings, timeout_s: float = METADATA_TIMEOUT_S) -> Connection:
    """Where the log is now. Raises TransientError where it does not answer, ConfigurationError where it refuses."""
    if settings.is_embedded:
        try:
            found = json.loads(broker_file(settings).read_bytes())
            os.kill(found["pid"], 0)
        except (OSError, ValueError, KeyError, TypeError):
            raise TransientError(f"no embedded broker runs for {settings.home}: start it with `shoal up`") from None
        return Connection(found["brokers"], found["cluster"])
    admin = admin_client(settings, settings.kafka_brokers)
    try:
        metadata = admin.list_topics(timeout=timeout_s)
    except KafkaException as error:
        raise _told(error, settings) from error
    return Connection(settings.kafka_brokers, metadata.cluster_id or settings.kafka_brokers)


def admin_client(settings: Settings, brokers: str) -> AdminClient:
    """For asking and changing what the brokers keep. Hold it while its futures are waited for: they die with it.
    Raises ConfigurationError."""
    return AdminClient(_client(settings, brokers))


def _client(settings: Settings, brokers: str) -> dict[str, Any]:
    forbidden = [name for name in _OURS if settings.kafka_properties.get(name, "false").lower() != "false"]
    if forbidden:
        raise ConfigurationError(f"setting kafka_properties: {forbidden[0]} must stay false, or messages are lost")
    return {
        "bootstrap.servers": brokers,
        "client.id": "shoal",
        "logger": log,
        **({} if settings.is_embedded else settings.kafka_properties),
    }


def consumer_config(settings: Settings, brokers: str, member: str | None = None) -> dict[str, Any]:
    """For a member of the readers' group. Offsets are committed by the caller and by nobody else.

    `member` makes it a static one (KIP-345): killed and started again under that name it has its partitions back at
    once, where a stranger would wait until the session of the dead one has timed out. The price: a member that
    leaves for good keeps its partitions for that long. Classic groups only: with KIP-848 a broker refuses the name
    until the session of the dead one has timed out, and the client takes that for the end.
    """
    embedded = settings.is_embedded
    session_ms = EMBEDDED_SESSION_TIMEOUT_MS if embedded else SESSION_TIMEOUT_MS
    config: dict[str, Any] = {
        "group.id": settings.kafka_group_id,
        "group.protocol": settings.kafka_group_protocol,
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": session_ms,
        "heartbeat.interval.ms": session_ms // 6,
        "max.poll.interval.ms": 60_000,  # the reader's thread never blocks: one that does has hung
        # An embedded broker begins each life empty and without offsets: from the start is all there is.
        "auto.offset.reset": "earliest" if embedded else settings.kafka_auto_offset_reset,
        "allow.auto.create.topics": False,
        "topic.metadata.refresh.interval.ms": 30_000,
        **_fetch_bounds(settings),
        **_client(settings, brokers),
        **dict.fromkeys(_OURS, False),
    }
    # The embedded broker misses its members as soon as their connection closes.
    if member is not None and not embedded and config["group.protocol"] == "classic":
        # Two services of one name would push each other out in turn; a local path is the same on many machines.
        place = settings.tables_uri if "://" in settings.tables_uri else f"{socket.gethostname()}{settings.tables_uri}"
        ours = hashlib.sha256(place.encode()).hexdigest()[:8]
        config["group.instance.id"] = f"shoal-{ours}-{member}"
    if config["group.protocol"] == "consumer":
        for name in _CLASSIC_ONLY:
            config.pop(name, None)
    return config


def lone_config(settings: Settings, brokers: str) -> dict[str, Any]:
    """For a reader beside the group, which assigns itself partitions, joins nothing and commits nothing."""
    return {
        "group.id": f"shoal-beside-{uuid.uuid4()}",  # the client wants one
        "auto.offset.reset": "earliest",
        "allow.auto.create.topics": False,
        **_fetch_bounds(settings),
        **_client(settings, brokers),
        **dict.fromkeys(_OURS, False),
    }


def _fetch_bounds(settings: Settings) -> dict[str, Any]:
    fetch_bytes = max(16 * MIB, settings.message_bytes_max + MIB)
    return {
        "queued.max.messages.kbytes": 16_384,  # prefetched per consumer; the default is 64 MiB
        "queued.min.messages": 1_000,
        "fetch.max.bytes": fetch_bytes,
        # A message over our limit must still arrive, to become a dead letter instead of a stuck partition.
        "receive.message.max.bytes": max(100_000_000, 2 * fetch_bytes),
    }


def producer_config(settings: Settings, brokers: str) -> dict[str, Any]:
    """Idempotent, acknowledged by all replicas, compressed."""
    return {
        "enable.idempotence": True,
        "acks": "all",
        "compression.type": "zstd",
        "linger.ms": 5,
        "message.max.bytes": settings.message_bytes_max + MIB,
        "queue.buffering.max.kbytes": max(65_536, 2 * settings.message_bytes_max // 1024),
        "message.timeout.ms": 60_000,
        **_client(settings, brokers),
    }


class KafkaProducer:
    """A `LogProducer` on a Kafka cluster. Made anew by itself after a fatal error of the idempotent producer."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._producer: Producer | None = None
        self._marks = FailureMarks()
        self._client()  # a wrong property is told now

    def _client(self) -> Producer:
        with self._lock:
            if self._producer is None:
                self._producer = _made(Producer, self._config)
            return self._producer

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> None:
        """Take a message, with the current trace. Raises TransientError where the queue stays full for 10 s."""
        self._marks.sending()
        producer, deadline = self._client(), time.monotonic() + 10.0
        sent: list[tuple[str, str | bytes | None]] = [*carried(headers)]
        while True:
            try:
                producer.produce(topic, value=value, key=key, headers=sent, on_delivery=self._delivered)
                producer.poll(0)
                return
            except BufferError:
                if time.monotonic() > deadline:
                    raise TransientError("the Kafka producer's queue is full: the brokers take no messages") from None
                producer.poll(0.1)
            except KafkaException as error:
                raise self._failed(error.args[0]) from error

    def flush(self, timeout_s: float) -> None:
        """Return once everything sent is acknowledged by all in-sync replicas; else raise."""
        left = self._client().flush(timeout_s)
        self._marks.raise_failures()
        if left:
            raise TransientError(f"Kafka did not acknowledge {left} messages within {timeout_s:g} s")

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failed(error, str(message.topic()))

    def _failed(self, error: KafkaError, topic: str = "") -> ShoalError:
        ours = translated(error, topic)
        if error.fatal():
            with self._lock:
                self._producer = None
        self._marks.failed(ours)
        return ours


def open_producer(settings: Settings) -> LogProducer:
    """The durable producer: Kafka, or the journal of the embedded broker. Raises ConfigurationError."""
    if settings.is_embedded:
        return JournalProducer(Journal(journal_path(settings)))
    return KafkaProducer(producer_config(settings, settings.kafka_brokers))


def open_direct_producer(settings: Settings, connection: Connection) -> LogProducer:
    """A producer past the journal, for what only someone listening now needs (outcomes)."""
    return KafkaProducer(producer_config(settings, connection.brokers))


def topics_of(settings: Settings) -> tuple[str, ...]:
    """Every topic that Shoal reads or writes."""
    work = (*settings.kafka_topics, settings.command_topic)
    beside = (topic + suffix for suffix in (DEAD_LETTER_SUFFIX, STATE_SUFFIX) for topic in work)
    return (*work, *beside, settings.outcome_topic)


def _new_topic(name: str, settings: Settings) -> NewTopic:
    # Of the states of dead letters only the last of each counts, and must not expire before its letter does.
    config = {"cleanup.policy": "compact"} if name.endswith(STATE_SUFFIX) else {}
    # Commands are few. With as many partitions as the work, the assignor, which only counts partitions, was seen to
    # give one reader all the work and the other all the commands.
    return NewTopic(name, num_partitions=1 if name == settings.command_topic else -1, config=config)


def ensure_topics(settings: Settings, connection: Connection) -> tuple[str, ...]:
    """Create the topics that a real Kafka lacks, with the broker's defaults (states of dead letters: compacted,
    commands: one partition); returns those still missing.

    Not being allowed to is no error here: topics are often an administrator's. What is missing is logged.
    """
    admin = admin_client(settings, connection.brokers)
    missing = _unknown_topics(admin, settings)
    refused = set()
    if missing:
        made = admin.create_topics(
            [_new_topic(name, settings) for name in missing], operation_timeout=METADATA_TIMEOUT_S
        )
        for name, future in made.items():
            try:
                future.result(timeout=2 * METADATA_TIMEOUT_S)
                log.info("created topic %s", name)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    refused.add(name)
                    log.warning("topic %s is missing and could not be created: %s", name, error.args[0].str())
    # A broker may answer for a topic a moment later than the controller has made it.
    deadline = time.monotonic() + METADATA_TIMEOUT_S
    while (missing := _unknown_topics(admin, settings)) and set(missing) != refused and time.monotonic() < deadline:
        time.sleep(0.05)
    return missing


def missing_topics(settings: Settings, connection: Connection) -> tuple[str, ...]:
    """Those of ours that the brokers don't know; looks only. Raises TransientError, ConfigurationError."""
    return _unknown_topics(admin_client(settings, connection.brokers), settings)


def _unknown_topics(admin: AdminClient, settings: Settings) -> tuple[str, ...]:
    try:
        known = admin.list_topics(timeout=METADATA_TIMEOUT_S).topics
    except KafkaException as error:
        raise _told(error, settings) from error
    return tuple(name for name in dict.fromkeys(topics_of(settings)) if name not in known)


class TailReader:
    """Reads what is added to a topic from now on: all partitions, no group, nothing committed.

    For whoever waits for outcomes: open it first, then send. One thread at a time.
    """

    def __init__(self, settings: Settings, connection: Connection, topic: str) -> None:
        """Returns once it stands at the end of every partition. Raises TransientError, ConfigurationError."""
        self._cluster = connection.cluster
        self._consumer: Consumer = _made(Consumer, lone_config(settings, connection.brokers))
        deadline = time.monotonic() + METADATA_TIMEOUT_S
        while True:
            try:
                self._consumer.assign(self._ends(topic))
                return
            except KafkaException as error:
                ours = translated(error.args[0], topic)
                # A topic just made has no leader for a moment.
                if not isinstance(ours, TransientError) or time.monotonic() > deadline:
                    self._consumer.close()
                    raise ours from error
                time.sleep(0.1)

    def _ends(self, topic: str) -> list[TopicPartition]:
        found = self._consumer.list_topics(topic, timeout=METADATA_TIMEOUT_S).topics[topic]
        if found.error is not None:
            raise KafkaException(found.error)
        partitions = [TopicPartition(topic, number) for number in found.partitions]
        for partition in partitions:
            low_high = self._consumer.get_watermark_offsets(partition, timeout=METADATA_TIMEOUT_S)
            if low_high is None:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
            partition.offset = low_high[1]
        return partitions

    def poll(self, timeout_s: float, messages_max: int = 500) -> list[RawMessage]:
        """What has arrived, waiting up to `timeout_s` for the first; fewer or none while the brokers are unwell.

        Raises ConfigurationError where they refuse."""
        messages = []
        for message in arrived(self._consumer, messages_max, timeout_s):
            error = message.error()
            if error is None:
                messages.append(raw_message(message, self._cluster))
            elif not isinstance(ours := translated(error, str(message.topic())), TransientError):
                raise ours
        return messages

    def close(self) -> None:
        """Stop reading."""
        self._consumer.close()


def arrived(consumer: Consumer, messages_max: int, timeout_s: float) -> list[Message]:
    """Up to `messages_max` of what has arrived, errors among them, waiting up to `timeout_s` for the first only:
    `consume` by itself waits that long in full unless it comes to `messages_max`."""
    first = consumer.consume(1, timeout=timeout_s)
    return first + consumer.consume(messages_max - 1, timeout=0) if first and messages_max > 1 else first


def raw_message(message: Message, cluster: str) -> RawMessage:
    """A polled message, which must be free of error, as ours."""
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None
    assert partition is not None
    assert offset is not None
    headers: Any = message.headers() or ()  # what the client decodes is a list of (str, bytes or None)
    position = Position(cluster, topic, partition, offset, message.timestamp()[1])
    return RawMessage(position, message.key(), message.value(), tuple(headers))


_REFUSALS = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "allow it in the cluster's ACLs",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "allow it in the cluster's ACLs",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "allow it in the cluster's ACLs",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "allow it in the cluster's ACLs",
    KafkaError.SASL_AUTHENTICATION_FAILED: "check the sasl.* entries of kafka_properties",
    KafkaError._AUTHENTICATION: "check the sasl.* entries of kafka_properties",
    KafkaError._SSL: "check the ssl.* entries of kafka_properties",
    KafkaError._INVALID_ARG: "check kafka_properties",
    KafkaError.UNKNOWN_TOPIC_OR_PART: "create the topic, or let Shoal's user create it",
    KafkaError._UNKNOWN_TOPIC: "create the topic, or let Shoal's user create it",
    KafkaError.TOPIC_EXCEPTION: "the topic's name is invalid",
}
_HOPELESS = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD, KafkaError._BAD_MSG)


def translated(error: KafkaError, topic: str = "") -> ShoalError:
    """Our error for Kafka's: what a person must mend, what will never go through, else what may pass."""
    text = f"kafka{f' topic {topic}' if topic else ''}: {error.str()}"
    if (remedy := _REFUSALS.get(error.code())) is not None:
        return ConfigurationError(f"{text}; {remedy}")
    if error.code() in _HOPELESS:
        return PermanentError(f"{text}; raise max.message.bytes of the topic")
    return TransientError(text)


def _told(error: KafkaException, settings: Settings) -> ShoalError:
    ours = translated(error.args[0])
    if isinstance(ours, TransientError):
        return TransientError(
            f"Kafka at {settings.kafka_brokers} does not answer ({ours.message}); check KAFKA_BROKERS"
        )
    return ours


def _made(client: Any, config: dict[str, Any]) -> Any:
    try:
        return client(config)
    except KafkaException as error:  # an unknown or contradictory property
        raise ConfigurationError(f"setting kafka_properties: {error.args[0].str()}") from error
