"""The real broker of the tests: what is produced is consumed, groups share it, and a crash keeps it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from tests.fixtures.kafka_server import KafkaServer


def produce(server: KafkaServer, topic: str, count: int) -> None:
    producer = Producer({"bootstrap.servers": server.bootstrap, "enable.idempotence": True, "compression.type": "zstd"})
    for number in range(count):
        producer.produce(topic, key=f"key-{number}", value=f"value-{number}")
    assert producer.flush(30) == 0


def consumer(server: KafkaServer, group: str, **properties: str) -> Consumer:
    config = {"enable.auto.commit": False, "auto.offset.reset": "earliest", **properties}
    return Consumer({"bootstrap.servers": server.bootstrap, "group.id": group, **config})


def take(source: Consumer, count: int, within_s: float = 30.0) -> list[Message]:
    taken: list[Message] = []
    deadline = time.monotonic() + within_s
    while len(taken) < count and time.monotonic() < deadline:
        batch = source.consume(count - len(taken), timeout=0.5)
        assert not [message.error() for message in batch if message.error()]
        taken += batch
    return taken


@pytest.fixture
def topic(kafka_server: KafkaServer) -> Iterator[str]:
    name = kafka_server.create_topic(f"test-{uuid4().hex[:8]}")
    yield name
    kafka_server.delete_topic(name)


def test_the_broker_is_kafka_4_with_the_cluster_id_it_was_given(kafka_server: KafkaServer) -> None:
    assert kafka_server.admin().list_topics(timeout=10).cluster_id == kafka_server.cluster_id


@pytest.mark.parametrize("protocol", ["classic", "consumer"])  # `consumer` is KIP-848
def test_a_group_resumes_after_what_it_committed(kafka_server: KafkaServer, topic: str, protocol: str) -> None:
    produce(kafka_server, topic, 40)
    group = f"group-{uuid4().hex[:8]}"
    first = consumer(kafka_server, group, **{"group.protocol": protocol})
    first.subscribe([topic])
    before = take(first, 25)
    for message in before:
        first.commit(message=message, asynchronous=False)
    first.close()
    second = consumer(kafka_server, group, **{"group.protocol": protocol})
    second.subscribe([topic])
    after = take(second, 15)
    second.close()
    values = sorted(message.value() or b"" for message in before + after)
    assert values == sorted(b"value-%d" % number for number in range(40))


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_two_members_share_the_partitions(kafka_server: KafkaServer, topic: str, protocol: str) -> None:
    group = f"group-{uuid4().hex[:8]}"
    strategy = {"partition.assignment.strategy": "cooperative-sticky"} if protocol == "classic" else {}
    members = [consumer(kafka_server, group, **{"group.protocol": protocol}, **strategy) for _ in range(2)]
    for member in members:
        member.subscribe([topic])
    deadline = time.monotonic() + 30
    shares: list[list[TopicPartition]] = []
    while sorted(len(share) for share in shares) != [2, 2] and time.monotonic() < deadline:
        for member in members:
            member.poll(0.1)
        shares = [member.assignment() for member in members]
    for member in members:
        member.close()
    assert sorted(part.partition for share in shares for part in share) == [0, 1, 2, 3]
    assert [len(share) for share in shares] == [2, 2]


def test_what_was_acknowledged_survives_kill_9(kafka_server: KafkaServer, tmp_path: Path) -> None:
    # 1. a broker of our own, since the shared one must not be killed under the other tests
    server = KafkaServer(tmp_path / "kafka")
    try:
        topic = server.create_topic("durable")
        produce(server, topic, 30)
        address, pid = server.bootstrap, server.pid
        # 2. it dies without a word, and comes back at the same address
        server.kill()
        assert not server.is_alive
        server.start()
        assert (server.bootstrap, server.pid != pid) == (address, True)
        # 3. everything acknowledged is there
        reader = consumer(server, "after-the-crash")
        reader.subscribe([topic])
        assert len(take(reader, 30)) == 30
        reader.close()
    finally:
        server.close()
    assert not (tmp_path / "kafka").exists()
