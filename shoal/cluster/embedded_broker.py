"""The embedded broker: a Kafka for one machine, in a process of its own, when none is configured.

librdkafka's mock cluster (shoal.cluster.mock_kafka) speaks the protocol and forgets everything; the journal
(shoal.sources.journal) remembers. This process hosts the one and feeds it from the other. Where it listens
stands in `{home}/run/broker.json`; one at a time runs per data directory, held by a lock that dies with it.
Each start is a new cluster (`embedded-<uuid>`), whose topics begin with what is not yet done.

It ends within a second of SIGTERM, or of the death of whoever started it (its standard input closes), and at
the first thing it can't prove: a delivery that failed, a journal that can't be read. Nothing is lost by that.

    python -m shoal.cluster.embedded_broker --data-dir .shoal
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from shoal.cluster.journal_feed import JournalFeed, PartitionKey
from shoal.cluster.mock_kafka import open_mock
from shoal.errors import ConfigurationError, ShoalError, TransientError
from shoal.settings import Settings, load
from shoal.sources.journal import MESSAGE_BYTES_MAX, Entry, Journal
from shoal.sources.kafka import Connection, broker_file, connection, journal_path, topics_of

READY_S = 20.0
STOP_S = 3.0
TICK_S = 0.02  # how long an appended entry may wait; below, an idle broker burns CPU
SETTLE_S = 0.2  # how often the group's commits are looked at
LOG_BYTES_MAX = 1024 * 1024

log = logging.getLogger("shoal.broker")


@dataclass(slots=True)
class BrokerHandle:
    """A broker that this process started."""

    process: subprocess.Popen[bytes]
    connection: Connection

    def stop(self) -> None:
        """End it, and wait until it is gone. May be called again."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


def start_broker(settings: Settings, ready_s: float = READY_S) -> BrokerHandle:
    """Start the broker of `settings.home` and wait until it answers; it ends with this process.

    Raises ConfigurationError where one runs already or its start is refused, TransientError after `ready_s`.
    """
    logs = settings.home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    output = logs / "broker.log"
    mode = "ab" if output.exists() and output.stat().st_size < LOG_BYTES_MAX else "wb"
    command = [sys.executable, "-m", __name__, "--stop-with-stdin", "--data-dir", str(settings.home)]
    command += ["--topics", ",".join(settings.kafka_topics), "--command-topic", settings.command_topic]
    command += ["--outcome-topic", settings.outcome_topic, "--group", settings.kafka_group_id]
    command += ["--partitions", str(settings.embedded_partitions)]
    with output.open(mode) as sink:
        start = sink.tell()
        # Its own session: Ctrl-C in a terminal must reach it last, when everyone has drained.
        process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=sink, stderr=sink, start_new_session=True
        )
    handle = BrokerHandle(process, Connection("", ""))
    deadline = time.monotonic() + ready_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            handle.stop()
            raise ConfigurationError(f"the embedded broker did not start: {_last_line(output, start)} (see {output})")
        with contextlib.suppress(OSError, ValueError, TransientError):
            if json.loads(broker_file(settings).read_bytes())["pid"] == process.pid:
                handle.connection = connection(settings)
                return handle
        time.sleep(TICK_S)
    handle.stop()
    raise TransientError(f"the embedded broker was not ready within {ready_s:g} s (see {output})")


def _last_line(output: Path, start: int) -> str:
    with output.open("rb") as lines:
        lines.seek(start)
        text = lines.read(64 * 1024).decode(errors="replace").strip()
    return text.splitlines()[-1] if text else "it said nothing"


# --- the host process -------------------------------------------------------------------------


class _MockLog:
    """`FedLog` on the mock cluster, over TCP like every other client."""

    def __init__(self, brokers: str, group: str) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": brokers,
                "enable.idempotence": True,
                "compression.type": "zstd",  # what the mock keeps counts as sent
                "linger.ms": 5,  # it serves one batch per fetch: single messages would be slow
                "message.max.bytes": MESSAGE_BYTES_MAX + 64 * 1024,
                "batch.size": 512 * 1024,
                "message.timeout.ms": 30_000,
                "logger": log,
            }
        )
        # Never subscribes: it only asks what the readers' group has committed.
        self._group = Consumer(
            {"bootstrap.servers": brokers, "group.id": group, "enable.auto.commit": False, "logger": log}
        )

    def produce(self, entry: Entry, partition: int, delivered: Callable[[int], None]) -> None:
        def report(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                raise KafkaException(error)
            offset = message.offset()
            assert offset is not None
            delivered(offset)

        arguments: dict[str, Any] = {
            "value": entry.value,
            "key": entry.key,
            "headers": list(entry.headers),
            "timestamp": entry.created_ms,
            "on_delivery": report,
        }
        while True:
            try:
                self._producer.produce(entry.topic, partition=partition, **arguments)
                return
            except BufferError:
                self._producer.poll(TICK_S)

    def committed(self, keys: Collection[PartitionKey]) -> Mapping[PartitionKey, int]:
        found = self._group.committed([TopicPartition(*key) for key in keys], timeout=5.0)
        return {(tp.topic, tp.partition): tp.offset for tp in found if tp.error is None and tp.offset >= 0}

    def poll(self, timeout_s: float) -> None:
        """Serve delivery reports. Raises KafkaException for one that failed."""
        self._producer.poll(timeout_s)


@contextlib.contextmanager
def _only_one(settings: Settings) -> Iterator[IO[str]]:
    place = broker_file(settings).with_name("broker.lock")
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigurationError(
                f"an embedded broker already runs for {settings.home}: use that one, or stop it, or set SHOAL_DATA_DIR"
            ) from None
        yield held


def _write_atomically(place: Path, content: dict[str, Any]) -> None:
    draft = place.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(json.dumps(content))
    draft.replace(place)


def host(settings: Settings, stopping: Callable[[], bool]) -> None:
    """Run the broker until `stopping()`. Raises ConfigurationError, TransientError, KafkaException."""
    with _only_one(settings):
        place = broker_file(settings)
        place.unlink(missing_ok=True)
        journal = Journal(journal_path(settings))
        single = (settings.command_topic,)
        mock = open_mock(topics_of(settings), settings.embedded_partitions, single)
        work_topics = (*settings.kafka_topics, settings.command_topic)
        mock_log = _MockLog(mock.brokers, settings.kafka_group_id)
        feed = JournalFeed(journal, mock_log, work_topics, mock.partitions, single)
        journal.begin_life(_now_ms())
        cluster = f"embedded-{uuid.uuid4()}"
        _write_atomically(place, {"brokers": mock.brokers, "cluster": cluster, "pid": os.getpid()})
        log.info("broker %s at %s", cluster, mock.brokers)
        settled_at = 0.0
        try:
            while not stopping():
                feed.step()
                mock_log.poll(TICK_S)
                if time.monotonic() - settled_at >= SETTLE_S:
                    settled_at = time.monotonic()
                    feed.settle(_now_ms())
        finally:
            place.unlink(missing_ok=True)
        feed.settle(_now_ms())
        journal.close()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of the host process; returns its exit code."""
    parser = argparse.ArgumentParser(prog="shoal.cluster.embedded_broker", description="Shoal's embedded broker.")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--topics")
    parser.add_argument("--command-topic")
    parser.add_argument("--outcome-topic")
    parser.add_argument("--group")
    parser.add_argument("--partitions", type=int)
    parser.add_argument("--stop-with-stdin", action="store_true", help="end when standard input closes")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    given = {
        "data_dir": options.data_dir,
        "kafka_topics": options.topics,
        "command_topic": options.command_topic,
        "outcome_topic": options.outcome_topic,
        "kafka_group_id": options.group,
        "embedded_partitions": options.partitions,
    }
    signalled = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: signalled.append(received))

    def stopping() -> bool:
        return bool(signalled) or (options.stop_with_stdin and _closed(sys.stdin.fileno()))

    try:
        host(load(kafka_brokers="", **{name: value for name, value in given.items() if value is not None}), stopping)
    except (ShoalError, KafkaException, OSError) as error:
        log.error("%s", error)
        return 1
    return 0


def _closed(descriptor: int) -> bool:
    readable, _, _ = select.select([descriptor], [], [], 0)
    return bool(readable) and not os.read(descriptor, 4096)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # the mock cluster's threads would hold the process for seconds
