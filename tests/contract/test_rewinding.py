"""The readers' group is set back on a real broker, and only where nobody reads in it."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from shoal.errors import ConfigurationError
from shoal.settings import Settings, load
from shoal.sources.kafka import connection, consumer_config, ensure_topics, open_producer
from shoal.sources.log_reader import LogReader
from shoal.sources.rewinding import Rewound, rewind

JOIN_S = 60.0


@pytest.fixture
def settings(kafka_server: Any, tmp_path: Path) -> Settings:
    name = uuid.uuid4().hex[:8]
    return load(
        data_dir=tmp_path, kafka_brokers=kafka_server.bootstrap,
        kafka_topics=kafka_server.create_topic(f"in-{name}", 2),
        command_topic=f"commands-{name}", outcome_topic=f"outcomes-{name}", kafka_group_id=f"group-{name}",
    )  # fmt: skip


def member(settings: Settings) -> Consumer:
    """A static one, as the readers are, that holds the topic."""
    consumer = Consumer(consumer_config(settings, settings.kafka_brokers, "reader-0"))
    consumer.subscribe(list(settings.kafka_topics))
    deadline = time.monotonic() + JOIN_S
    while not consumer.assignment() and time.monotonic() < deadline:
        consumer.poll(0.1)
    assert consumer.assignment()
    return consumer


def test_what_the_tables_lack_is_read_again_and_only_once_the_group_is_empty(settings: Settings) -> None:
    place, (topic,) = connection(settings), settings.kafka_topics
    ensure_topics(settings, place)
    producer = open_producer(settings)
    for number in range(60):
        producer.send(topic, str(number).encode(), b"v", [])
    producer.flush(30)
    with LogReader(settings, place) as log:
        ends = {each.key: each.end for each in log.whole([topic])}
    reading = member(settings)
    reading.commit(offsets=[TopicPartition(*key, end) for key, end in ends.items()], asynchronous=False)
    done = {(topic, 0): 3}
    with pytest.raises(ConfigurationError, match="stop the Shoal that works in it first"):
        rewind(settings, place, (topic, settings.command_topic), done, empty_s=0)
    reading.close()  # a static member is missed only once its session has timed out
    waited: list[str] = []
    changed = rewind(settings, place, (topic, settings.command_topic), done, waited.append)
    assert changed == [Rewound(topic, 0, ends[topic, 0], 3), Rewound(topic, 1, ends[topic, 1], 0)]
    assert waited
    with LogReader(settings, place) as log:
        assert log.committed([(topic, 0), (topic, 1)]) == {(topic, 0): 3, (topic, 1): 0}
    assert rewind(settings, place, (topic,), done) == []
