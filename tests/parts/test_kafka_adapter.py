"""The Kafka adapter on a real broker."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from shoal.errors import ConfigurationError, PermanentError, TransientError
from shoal.settings import Settings, load
from shoal.sources.kafka import (
    KafkaProducer,
    TailReader,
    connection,
    ensure_topics,
    open_producer,
    producer_config,
    topics_of,
)


@pytest.fixture
def settings(kafka_server, tmp_path: Path) -> Settings:
    name = uuid.uuid4().hex[:8]
    return load(
        data_dir=tmp_path,
        kafka_brokers=kafka_server.bootstrap,
        kafka_topics=f"in-{name}",
        command_topic=f"commands-{name}",
        outcome_topic=f"outcomes-{name}",
    )


def test_the_cluster_is_known_by_its_own_id(kafka_server, settings):
    assert connection(settings).cluster == kafka_server.cluster_id


def test_missing_topics_are_created_once(settings, kafka_server):
    place = connection(settings)
    assert ensure_topics(settings, place) == ()
    assert set(topics_of(settings)) <= set(kafka_server.admin().list_topics(timeout=10).topics)
    assert ensure_topics(settings, place) == ()


def test_what_was_flushed_is_read_by_whoever_listened(settings):
    place = connection(settings)
    ensure_topics(settings, place)
    tail = TailReader(settings, place, settings.outcome_topic)
    producer = open_producer(settings)
    for number in range(500):
        producer.send(settings.outcome_topic, b"k", str(number).encode(), [("h", b"\xff"), ("none", None)])
    producer.flush(30)
    heard = []
    for _ in range(100):
        heard += tail.poll(0.3)
        if len(heard) >= 500:
            break
    tail.close()
    assert sorted(int(raw.value or b"") for raw in heard) == list(range(500))
    assert heard[0].headers == (("h", b"\xff"), ("none", None))


def test_a_message_that_the_topic_refuses_is_hopeless_and_the_next_one_is_not(settings, kafka_server):
    topic = kafka_server.create_topic(f"small-{uuid.uuid4().hex[:8]}", 1, **{"max.message.bytes": "2000"})
    producer = KafkaProducer(producer_config(settings, kafka_server.bootstrap) | {"compression.type": "none"})
    producer.send(topic, b"k", b"x" * 10_000)
    with pytest.raises(PermanentError) as caught:
        producer.flush(30)
    assert not isinstance(caught.value, ConfigurationError)
    assert topic in str(caught.value)
    producer.send(topic, b"k", b"x")
    producer.flush(30)


def test_a_broker_that_does_not_answer_says_which_setting_to_check(tmp_path):
    with pytest.raises(TransientError, match="KAFKA_BROKERS"):
        connection(load(data_dir=tmp_path, kafka_brokers="127.0.0.1:1"), timeout_s=1.0)
