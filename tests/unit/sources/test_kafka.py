from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, Producer

from shoal.errors import ConfigurationError, PermanentError, TransientError
from shoal.settings import Settings, load
from shoal.sources.journal import JournalProducer
from shoal.sources.kafka import (
    KafkaProducer,
    broker_file,
    connection,
    consumer_config,
    open_producer,
    producer_config,
    topics_of,
    translated,
)
from shoal.sources.log_producer import FailureMarks


def real(tmp_path: Path, **changed: object) -> Settings:
    return load(data_dir=tmp_path, kafka_brokers="127.0.0.1:1", **changed)


def test_nobody_but_us_commits_offsets(tmp_path):
    config = consumer_config(real(tmp_path), "b:1")
    assert config["enable.auto.commit"] is False
    assert config["enable.auto.offset.store"] is False


@pytest.mark.parametrize("name", ["enable.auto.commit", "enable.auto.offset.store"])
def test_a_property_that_would_lose_messages_is_refused(tmp_path, name):
    with pytest.raises(ConfigurationError, match=name):
        consumer_config(real(tmp_path, kafka_properties={name: "true"}), "b:1")


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_the_client_takes_our_configuration_with_either_protocol(tmp_path, protocol):
    for settings in (real(tmp_path, kafka_group_protocol=protocol), load(data_dir=tmp_path)):
        Consumer(consumer_config(settings, "127.0.0.1:1")).close()
    Producer(producer_config(real(tmp_path), "127.0.0.1:1"))


def test_a_protocol_given_as_a_property_drops_what_it_forbids(tmp_path):
    config = consumer_config(real(tmp_path, kafka_properties={"group.protocol": "consumer"}), "127.0.0.1:1")
    Consumer(config).close()


def test_any_property_passes_through_and_wins(tmp_path):
    settings = real(tmp_path, kafka_properties={"sasl.mechanism": "PLAIN", "session.timeout.ms": "30000"})
    config = consumer_config(settings, "b:1")
    assert (config["sasl.mechanism"], config["session.timeout.ms"]) == ("PLAIN", "30000")
    assert producer_config(settings, "b:1")["sasl.mechanism"] == "PLAIN"


def test_a_property_that_does_not_exist_names_the_setting(tmp_path):
    with pytest.raises(ConfigurationError, match="kafka_properties"):
        KafkaProducer(producer_config(real(tmp_path, kafka_properties={"no.such.thing": "1"}), "127.0.0.1:1"))


def test_the_embedded_broker_is_produced_to_through_the_journal(settings):
    producer = open_producer(settings)
    assert isinstance(producer, JournalProducer)


def test_a_broker_that_does_not_answer_is_no_durable_log(tmp_path):
    config = producer_config(real(tmp_path), "127.0.0.1:1") | {"log_level": 0}
    producer = KafkaProducer(config)
    producer.send("t", b"k", b"v")
    with pytest.raises(TransientError):
        producer.flush(0.05)


def test_without_a_running_embedded_broker_the_way_out_is_named(settings):
    with pytest.raises(TransientError, match="shoal up"):
        connection(settings)


def test_the_file_of_a_broker_that_died_is_not_believed(settings):
    place = broker_file(settings)
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps({"brokers": "127.0.0.1:1", "cluster": "c", "pid": os.getpid()}))
    assert connection(settings).cluster == "c"
    place.write_text(json.dumps({"brokers": "127.0.0.1:1", "cluster": "c", "pid": 2**22 + 1}))
    with pytest.raises(TransientError):
        connection(settings)


def test_every_topic_that_work_comes_from_has_one_for_its_dead_letters_and_one_for_their_states(tmp_path):
    topics = topics_of(load(data_dir=tmp_path, kafka_topics="a,b"))
    work = ("a", "b", "shoal_commands")
    beside = tuple(f"{name}{suffix}" for suffix in ("_dlq", "_dlq_state") for name in work)
    assert topics == (*work, *beside, "shoal_outcomes")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (KafkaError._ALL_BROKERS_DOWN, TransientError),
        (KafkaError._MSG_TIMED_OUT, TransientError),
        (KafkaError.NOT_ENOUGH_REPLICAS, TransientError),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, ConfigurationError),
        (KafkaError.SASL_AUTHENTICATION_FAILED, ConfigurationError),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, ConfigurationError),
        (KafkaError.MSG_SIZE_TOO_LARGE, PermanentError),
    ],
)
def test_an_error_of_kafka_says_whether_to_try_again(code, kind):
    error = translated(KafkaError(code), "feeds")
    assert type(error) is kind
    assert "feeds" in str(error)


def test_a_failure_is_told_to_every_thread_that_had_sent_and_to_no_later_one():
    """1. A and B send. 2. A message fails. 3. A is told. 4. B is told too. 5. Neither is told twice."""
    marks = FailureMarks()
    sent, failed = threading.Barrier(2), threading.Event()
    told: list[str] = []

    def sender() -> None:
        marks.sending()
        sent.wait(5)
        failed.wait(5)
        for _ in range(2):
            try:
                marks.raise_failures()
            except TransientError:
                told.append("b")

    thread = threading.Thread(target=sender)
    thread.start()
    marks.sending()
    sent.wait(5)
    marks.failed(TransientError("lost"))
    with pytest.raises(TransientError):
        marks.raise_failures()
    failed.set()
    thread.join(5)
    assert told == ["b"]

    marks.sending()
    marks.raise_failures()


def test_who_flushes_what_others_sent_is_told_once():
    marks = FailureMarks()
    sender = threading.Thread(target=marks.sending)
    sender.start()
    sender.join()
    marks.failed(TransientError("lost"))
    with pytest.raises(TransientError):
        marks.raise_failures()
    marks.raise_failures()
