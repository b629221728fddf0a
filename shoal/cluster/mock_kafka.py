"""librdkafka's mock cluster, hosted in this process: a Kafka broker on a loopback port, all in memory.

`open_mock` drives the C API of the library inside confluent_kafka's wheel, which lets us choose partitions and
cut the group's rebalance delays. That API is declared experimental and a wheel may be built otherwise, so on
any failure it falls back to the cluster that an ordinary client can be asked to host: four partitions, and
three seconds before a group's first assignment. Limits measured: 5 MiB and 100,000 batches per partition
(older ones dropped without a word), batches over 5 MiB unreadable, no admin calls, offsets by time or TLS.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Collection, Sequence
from ctypes import c_char_p, c_int, c_size_t, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import confluent_kafka
from confluent_kafka import Producer

FALLBACK_PARTITIONS = 4  # librdkafka's constant for topics that the mock creates by itself
GROUP_HEARTBEAT_MS = 200  # group.protocol=consumer: a partition moves within a heartbeat or two; default 3 s
PRODUCER = 0

log = logging.getLogger("shoal.broker")


@dataclass(frozen=True, slots=True)
class MockKafka:
    """A running mock cluster; it lives as long as `keep` and this process."""

    brokers: str
    partitions: int
    keep: Any


def open_mock(topics: Sequence[str], partitions: int, single: Collection[str] = ()) -> MockKafka:
    """Start the cluster with `topics`, those of `single` with one partition. Raises OSError where neither way works."""
    try:
        return _by_library(topics, partitions, single)
    except (OSError, AttributeError, RuntimeError) as error:
        log.warning("mock cluster by client, with %d partitions: %s", FALLBACK_PARTITIONS, error)
        return _by_client(topics)


def _library() -> ctypes.CDLL:
    site = Path(confluent_kafka.__file__).parent
    patterns = ("../confluent_kafka.libs/librdkafka*", "../confluent_kafka.dylibs/librdkafka*", ".dylibs/librdkafka*")
    for pattern in patterns:
        # The wheel may carry librdkafka++ too, which has none of these symbols.
        for path in sorted(site.glob(pattern)):
            if "++" not in path.name:
                return ctypes.CDLL(str(path))
    raise OSError("no librdkafka beside confluent_kafka")


def _by_library(topics: Sequence[str], partitions: int, single: Collection[str]) -> MockKafka:
    library = _library()

    def function(name: str, result: Any, *arguments: Any) -> Any:
        found = getattr(library, name)
        found.restype, found.argtypes = result, list(arguments)
        return found

    error = ctypes.create_string_buffer(512)
    conf = function("rd_kafka_conf_new", c_void_p)()
    client = function("rd_kafka_new", c_void_p, c_int, c_void_p, c_char_p, c_size_t)(PRODUCER, conf, error, len(error))
    if not client:
        raise RuntimeError(error.value.decode(errors="replace"))
    cluster = function("rd_kafka_mock_cluster_new", c_void_p, c_void_p, c_int)(client, 1)
    if not cluster:
        raise RuntimeError("librdkafka refused a mock cluster")
    function("rd_kafka_mock_group_initial_rebalance_delay_ms", None, c_void_p, ctypes.c_int32)(cluster, 0)
    function("rd_kafka_mock_set_group_consumer_heartbeat_interval_ms", None, c_void_p, c_int)(
        cluster, GROUP_HEARTBEAT_MS
    )
    function("rd_kafka_mock_set_controller_id", c_int, c_void_p, ctypes.c_int32)(cluster, 1)
    create = function("rd_kafka_mock_topic_create", c_int, c_void_p, c_char_p, c_int, c_int)
    for topic in topics:
        if create(cluster, topic.encode(), 1 if topic in single else partitions, 1):
            raise RuntimeError(f"topic {topic} was refused")
    brokers = function("rd_kafka_mock_cluster_bootstraps", c_char_p, c_void_p)(cluster)
    return MockKafka(brokers.decode(), partitions, (library, client, cluster))


def _by_client(topics: Sequence[str]) -> MockKafka:
    host = Producer({"bootstrap.servers": "mock:1", "test.mock.num.brokers": 1, "log_level": 3})
    brokers = ",".join(f"{broker.host}:{broker.port}" for broker in host.list_topics(timeout=10).brokers.values())
    for topic in topics:
        host.list_topics(topic, timeout=10)  # asked for, a topic comes to be
    return MockKafka(brokers, FALLBACK_PARTITIONS, host)
