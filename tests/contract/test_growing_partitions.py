"""A topic that grows while it is read: what is sent to a partition that readers don't know yet is read, too."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import NewPartitions

from shoal.settings import load
from shoal.sources.kafka import consumer_config, producer_config

HANG_S = 60.0


def test_messages_of_a_new_partition_are_read_from_its_first_one(kafka_server: Any, tmp_path: Path) -> None:
    topic = kafka_server.create_topic(f"growing-{uuid.uuid4().hex[:8]}", 1)
    # The readers look every 30 s; here each second.
    settings = load(
        data_dir=tmp_path, kafka_brokers=kafka_server.bootstrap, kafka_topics=topic, kafka_group_id=f"group-{topic}",
        kafka_properties={"topic.metadata.refresh.interval.ms": "1000"},
    )  # fmt: skip
    consumer = Consumer(consumer_config(settings, settings.kafka_brokers, "reader-0"))
    consumer.subscribe([topic])
    producer = Producer(producer_config(settings, settings.kafka_brokers))
    producer.produce(topic, b"old", b"k", partition=0)
    producer.flush(30)
    heard = read_until(consumer, {(0, b"old")})
    admin = kafka_server.admin()  # its answers end with it
    (grown,) = admin.create_partitions([NewPartitions(topic, 2)]).values()
    grown.result(30)
    producer = Producer(producer_config(settings, settings.kafka_brokers))  # knows the new one at once
    producer.produce(topic, b"new", b"k", partition=1)
    assert producer.flush(30) == 0
    heard |= read_until(consumer, {(1, b"new")})
    assert heard == {(0, b"old"), (1, b"new")}
    assert {at.partition for at in consumer.assignment()} == {0, 1}
    consumer.close()


def read_until(consumer: Consumer, wanted: set[tuple[int, bytes]]) -> set[tuple[int, bytes]]:
    heard: set[tuple[int, bytes]] = set()
    deadline = time.monotonic() + HANG_S
    while not wanted <= heard:
        assert time.monotonic() < deadline, heard
        message = consumer.poll(0.5)
        if message is not None and message.error() is None:
            heard.add((message.partition(), message.value()))
    return heard
