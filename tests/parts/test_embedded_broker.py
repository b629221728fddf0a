"""The embedded broker as others meet it: its own process, real clients over TCP, real kills."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from shoal.cluster import mock_kafka
from shoal.cluster.embedded_broker import BrokerHandle, start_broker
from shoal.errors import ConfigurationError, TransientError
from shoal.settings import Settings, load
from shoal.sources.journal import Journal
from shoal.sources.kafka import (
    TailReader,
    broker_file,
    connection,
    consumer_config,
    journal_path,
    open_direct_producer,
    open_producer,
)

TOPIC = "scraper-notifications"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(data_dir=tmp_path)


@pytest.fixture
def start(settings: Settings) -> Iterator[Callable[[], BrokerHandle]]:
    started: list[BrokerHandle] = []

    def begin() -> BrokerHandle:
        started.append(start_broker(settings))
        return started[-1]

    yield begin
    for broker in started:
        broker.stop()


@contextlib.contextmanager
def member(settings: Settings, broker: BrokerHandle) -> Iterator[Consumer]:
    consumer = Consumer(consumer_config(settings, broker.connection.brokers))
    consumer.subscribe([TOPIC])
    try:
        yield consumer
    finally:
        consumer.close()


def take(consumer: Consumer, count: int, within_s: float = 30.0) -> list[Message]:
    """`count` messages, or fewer when `within_s` is over."""
    taken: list[Message] = []
    deadline = time.monotonic() + within_s
    while len(taken) < count and time.monotonic() < deadline:
        for message in consumer.consume(min(100, count - len(taken)), timeout=0.1):
            assert message.error() is None, message.error()
            taken.append(message)
    return taken


def commit(consumer: Consumer, messages: list[Message]) -> None:
    newest = {message.partition(): message.offset() for message in messages}
    offsets = [TopicPartition(TOPIC, partition, offset + 1) for partition, offset in newest.items()]
    assert all(answer.error is None for answer in consumer.commit(offsets=offsets, asynchronous=False) or [])


def eventually(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def publish(settings: Settings, count: int, size: int = 100, first: int = 0) -> None:
    producer = open_producer(settings)
    for number in range(first, first + count):
        producer.send(TOPIC, f"id-{number % 17}".encode(), f"{number} ".encode().ljust(size, b"."))
    producer.flush(10)


def number_of(message: Message) -> int:
    return int((message.value() or b"").split()[0])


def fed(broker: BrokerHandle) -> int:
    """How many messages the broker holds or held."""
    asking = Consumer({"bootstrap.servers": broker.connection.brokers, "group.id": "asking"})
    ends = [asking.get_watermark_offsets(TopicPartition(TOPIC, number), timeout=5) for number in range(4)]
    asking.close()
    return sum(end[1] for end in ends if end)


def open_count(settings: Settings) -> int:
    with contextlib.closing(Journal(journal_path(settings))) as journal:
        return journal.open_count(TOPIC)


def test_what_was_published_before_and_after_the_start_arrives_with_key_headers_and_time(settings, start):
    producer = open_producer(settings)
    producer.send(TOPIC, b"early", b"1 ", [("h", b"\xff"), ("none", None)])
    producer.flush(10)
    sent_before_ms = time.time_ns() // 1_000_000
    broker = start()
    producer.send(TOPIC, b"late", None)
    producer.flush(10)
    with member(settings, broker) as consumer:
        by_key = {message.key(): message for message in take(consumer, 2)}
    assert by_key[b"early"].value() == b"1 "
    assert by_key[b"early"].headers() == [("h", b"\xff"), ("none", None)]
    assert by_key[b"early"].timestamp()[1] <= sent_before_ms
    assert by_key[b"late"].value() is None


def test_a_restart_announces_again_exactly_what_was_not_committed(settings, start):
    publish(settings, 60)
    first = start()
    with member(settings, first) as consumer:
        messages = take(consumer, 60)
        assert len(messages) == 60
        done = [message for message in messages if message.offset() < 5]
        commit(consumer, done)
        eventually(lambda: open_count(settings) == 60 - len(done))
    times = {number_of(message): message.timestamp()[1] for message in messages}
    first.stop()

    second = start()
    assert second.connection.cluster != first.connection.cluster
    with member(settings, second) as consumer:
        again = take(consumer, 60 - len(done))
        assert take(consumer, 1, within_s=0.5) == []
    assert {number_of(message) for message in again} == set(times) - {number_of(message) for message in done}
    assert all(message.timestamp()[1] == times[number_of(message)] for message in again)


def test_a_killed_broker_loses_nothing_that_was_flushed(settings, start):
    first = start()
    publish(settings, 500)
    first.process.kill()
    first.process.wait()
    with pytest.raises(TransientError):
        connection(settings)
    publish(settings, 500, first=500)
    with member(settings, start()) as consumer:
        assert {number_of(message) for message in take(consumer, 1000)} == set(range(1000))


def test_far_more_than_the_mock_can_keep_arrives_whole_and_in_order(settings, start):
    """30 MB through four partitions that drop their oldest beyond 5 MiB, to a consumer that commits as it goes."""
    count, size = 3000, 10_000
    producer = open_producer(settings)
    for number in range(count):
        producer.send(TOPIC, f"id-{number % 17}".encode(), f"{number} ".encode() + os.urandom(size))
    producer.flush(30)
    seen: list[Message] = []
    with member(settings, start()) as consumer:
        deadline = time.monotonic() + 60
        while len(seen) < count and time.monotonic() < deadline:
            messages = take(consumer, 200, within_s=0.2)
            if messages:
                commit(consumer, messages)
                seen += messages
    assert sorted(number_of(message) for message in seen) == list(range(count))
    for partition in range(settings.embedded_partitions):
        ours = [message for message in seen if message.partition() == partition]
        assert [message.offset() for message in ours] == list(range(len(ours)))
        assert [number_of(message) for message in ours] == sorted(number_of(message) for message in ours)
    eventually(lambda: open_count(settings) == 0)


def test_a_consumer_that_comes_late_finds_everything(settings, start):
    """Nobody commits while 20 MB wait: the rest stays in the journal, and nothing that was fed is dropped."""
    producer = open_producer(settings)
    for number in range(200):
        producer.send(TOPIC, b"one", f"{number} ".encode() + os.urandom(100_000))
    producer.flush(30)
    broker = start()
    eventually(lambda: fed(broker) > 0)
    with member(settings, broker) as consumer:
        seen: list[int] = []
        deadline = time.monotonic() + 60
        while len(seen) < 200 and time.monotonic() < deadline:
            messages = take(consumer, 10, within_s=0.5)
            seen += map(number_of, messages)
            if messages:
                commit(consumer, messages)
    assert seen == list(range(200))


def test_a_message_of_four_megabytes_arrives(settings, start):
    value = b"0 " + os.urandom(4_000_000)
    producer = open_producer(settings)
    for key, body in ((b"a", b"1 "), (b"a", value), (b"a", b"2 ")):
        producer.send(TOPIC, key, body)
    producer.flush(10)
    with member(settings, start()) as consumer:
        got = []
        for _ in range(3):
            (message,) = take(consumer, 1)
            commit(consumer, [message])
            got.append(message.value())
    assert got == [b"1 ", value, b"2 "]


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_two_members_share_the_partitions_and_one_takes_over_from_the_other(settings, start, protocol):
    settings = settings.model_copy(update={"kafka_group_protocol": protocol})
    broker = start()
    with member(settings, broker) as first, contextlib.ExitStack() as stack:
        eventually(lambda: first.consume(1, 0.05) == [] and len(first.assignment()) == 4)
        second = stack.enter_context(member(settings, broker))

        def shared() -> bool:
            for consumer in (first, second):
                consumer.consume(1, 0.05)
            return len(first.assignment()) == len(second.assignment()) == 2

        eventually(shared, within_s=20)
        stack.close()
        eventually(lambda: first.consume(1, 0.05) == [] and len(first.assignment()) == 4, within_s=20)


def test_outcomes_reach_whoever_listens_and_only_what_came_after(settings, start):
    broker = start()
    producer = open_direct_producer(settings, broker.connection)
    producer.send(settings.outcome_topic, b"before", b"v")
    producer.flush(10)
    tail = TailReader(settings, broker.connection, settings.outcome_topic)
    producer.send(settings.outcome_topic, b"after", b"v")
    producer.flush(10)
    heard = []
    eventually(lambda: bool(heard.extend(tail.poll(0.1)) or heard))
    tail.close()
    assert [raw.key for raw in heard] == [b"after"]
    assert heard[0].position.cluster == broker.connection.cluster


def test_dead_letters_are_listable_in_the_next_life(settings, start):
    producer = open_producer(settings)
    producer.send(f"{TOPIC}_dlq", b"id", b"value", [("shoal.dlq.reason", b"empty")])
    producer.flush(10)
    for _ in range(2):
        broker = start()
        consumer = Consumer({**consumer_config(settings, broker.connection.brokers), "group.id": "lister"})
        consumer.assign([TopicPartition(f"{TOPIC}_dlq", number, 0) for number in range(4)])
        (message,) = take(consumer, 1)
        assert message.headers() == [("shoal.dlq.reason", b"empty")]
        consumer.close()
        broker.stop()


def test_a_second_broker_for_the_same_data_ends_with_a_clear_message(settings, start):
    broker = start()
    with pytest.raises(ConfigurationError, match="already runs"):
        start_broker(settings)
    assert connection(settings) == broker.connection


def test_it_ends_within_a_second_of_sigterm_and_leaves_no_file(settings, start):
    broker = start()
    began = time.monotonic()
    broker.process.send_signal(signal.SIGTERM)
    assert broker.process.wait(5) == 0
    assert time.monotonic() - began < 1.0
    assert not broker_file(settings).exists()


def test_it_ends_when_whoever_started_it_is_killed(settings):
    """1. A parent starts a broker. 2. The parent is killed. 3. The broker ends, and its place is free."""
    program = (
        "import sys; from shoal.cluster.embedded_broker import start_broker; from shoal.settings import load;"
        f"b = start_broker(load(data_dir={str(settings.home)!r})); print(b.process.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdin is not None
    broker_pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    parent.stdin.close()
    eventually(lambda: not _alive(broker_pid))
    start_broker(settings).stop()


def test_where_the_c_api_is_not_to_be_had_a_client_hosts_the_mock(monkeypatch, caplog):
    def no_library() -> None:
        raise OSError("built otherwise")

    monkeypatch.setattr(mock_kafka, "_library", no_library)
    mock = mock_kafka.open_mock([TOPIC, "other"], 16)
    assert mock.partitions == mock_kafka.FALLBACK_PARTITIONS
    assert "built otherwise" in caplog.text
    client = Producer({"bootstrap.servers": mock.brokers})
    topics = client.list_topics(timeout=10).topics
    assert {name: len(topics[name].partitions) for name in (TOPIC, "other")} == {TOPIC: 4, "other": 4}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # An orphan in a container may stay a zombie where nobody reaps it.
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return False
