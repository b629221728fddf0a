"""Dead letters on a real Kafka and on the embedded broker; the test plays the reader."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import ConfigResource, ResourceType
from typer.testing import CliRunner

from shoal.cluster.cli import app
from shoal.cluster.embedded_broker import start_broker
from shoal.errors import DeadReason
from shoal.records import Failure, Outcome, Position
from shoal.settings import Settings, load
from shoal.sources.dead_letter_choice import Choice, Selection, choose
from shoal.sources.dead_letter_log import open_dead_letters
from shoal.sources.dead_letter_record import DeadLetter
from shoal.sources.dead_letter_replaying import Replayer
from shoal.sources.dead_letter_state import settled
from shoal.sources.dead_letters import VALUE_BYTES_MAX, dead_letter
from shoal.sources.kafka import TailReader, connection, consumer_config, ensure_topics, open_producer
from shoal.sources.messages import RawMessage, origin_of

WHY = Failure(DeadReason.EMPTY, "there is nothing in it", "fetch")


@pytest.fixture
def settings(kafka_server, tmp_path: Path) -> Settings:
    name = uuid.uuid4().hex[:8]
    made = load(
        data_dir=tmp_path,
        kafka_brokers=kafka_server.bootstrap,
        kafka_topics=f"in-{name}",
        command_topic=f"commands-{name}",
        outcome_topic=f"outcomes-{name}",
        kafka_properties={"client.id": name},
    )
    ensure_topics(made, connection(made))
    return made


def bury(settings: Settings, *messages: RawMessage, failure: Failure = WHY, count: int = 0) -> None:
    producer = open_producer(settings)
    for raw in messages:
        producer.send(*dead_letter(raw, failure, datetime.now(UTC), count))
    producer.flush(30)


def message(settings: Settings, number: int, value: bytes | None = None) -> RawMessage:
    position = Position("c", settings.kafka_topics[0], 0, number, 1_737_383_400_000)
    body = json.dumps({"dataset": f"d{number % 2}", "n": number}).encode() if value is None else value
    return RawMessage(position, f"k{number}".encode(), body, (("h", b"\xff"),))


def letters(settings: Settings) -> list[DeadLetter]:
    with open_dead_letters(settings) as log:
        return list(log.letters())


def states(settings: Settings) -> list[str | None]:
    return [letter.state.state.value if letter.state else None for letter in letters(settings)]


def settle(settings: Settings, raw: RawMessage, outcome: Outcome) -> None:
    record = settled(raw, outcome, datetime.now(UTC), WHY if outcome is Outcome.DEAD_LETTERED else None)
    assert record is not None
    producer = open_producer(settings)
    producer.send(*record)
    producer.flush(30)


def dlq(settings: Settings, *arguments: str) -> tuple[int, str, str]:
    environment = {
        "SHOAL_DATA_DIR": str(settings.home), "KAFKA_BROKERS": settings.kafka_brokers,
        "KAFKA_TOPIC": ",".join(settings.kafka_topics), "SHOAL_COMMAND_TOPIC": settings.command_topic,
        "SHOAL_OUTCOME_TOPIC": settings.outcome_topic,
    }  # fmt: skip
    done = CliRunner().invoke(app, ["dlq", *arguments], env=environment)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def take(tail: TailReader, count: int) -> list[RawMessage]:
    taken: list[RawMessage] = []
    deadline = time.monotonic() + 30
    while len(taken) < count and time.monotonic() < deadline:
        taken += tail.poll(0.2)
    return taken


def eventually(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.2)


# --- a real Kafka -----------------------------------------------------------------------------


def test_the_topics_of_states_are_compacted_and_the_others_are_not(settings, kafka_server):
    admin = kafka_server.admin()
    for suffix, policy in (("_dlq_state", "compact"), ("_dlq", "delete"), ("", "delete")):
        asked = ConfigResource(ResourceType.TOPIC, settings.kafka_topics[0] + suffix)
        assert admin.describe_configs([asked])[asked].result(30)["cleanup.policy"].value == policy


def test_all_dead_letters_of_all_partitions_are_read_once(settings):
    count = 2_000
    bury(settings, *(message(settings, number) for number in range(count)))
    found = letters(settings)
    assert len(found) == len({letter.id for letter in found}) == count
    assert {int(letter.source_offset or 0) for letter in found} == set(range(count))
    assert {letter.raw.position.partition for letter in found} == {0, 1, 2, 3}
    with open_dead_letters(settings) as log:
        again = log.letter(found[77].id)
        assert again == found[77]
        for partition, offset in ((0, 10**6), (99, 0)):
            assert log.letter(f"{settings.kafka_topics[0]}_dlq/{partition}/{offset}") is None


def test_the_moment_is_fixed_when_it_is_opened(settings):
    bury(settings, message(settings, 1))
    with open_dead_letters(settings) as log:
        bury(settings, *(message(settings, number) for number in range(2, 30)))
        assert [letter.source_offset for letter in log.letters()] == [1]
        assert [letter.source_offset for letter in log.letters()] == [1], "it may be read again"


def test_offsets_that_hold_no_message_do_not_keep_it_waiting(settings, kafka_server):
    """A transaction ends in a marker, which takes an offset, and an aborted one is not read."""
    producer = Producer({"bootstrap.servers": kafka_server.bootstrap, "transactional.id": uuid.uuid4().hex})
    producer.init_transactions(30)
    for end in (producer.commit_transaction, producer.abort_transaction):
        producer.begin_transaction()
        producer.produce(f"{settings.kafka_topics[0]}_dlq", b"foreign", partition=0)
        producer.flush(30)
        end(30)
    (letter,) = letters(settings)
    assert (letter.reason, letter.raw.value) == (None, b"foreign")


def test_a_replay_is_sent_recorded_and_settled(settings):
    """1. Two letters are replayed. 2. One succeeds, one dies again. 3. Whoever waits hears both; so does a listing."""
    topic = settings.kafka_topics[0]
    bury(settings, message(settings, 1), message(settings, 2))
    originals = {letter.raw.key: letter for letter in letters(settings)}
    sent = TailReader(settings, connection(settings), topic)
    with open_dead_letters(settings) as log, closing(log.tail()) as tail:
        replayer = Replayer(log, lambda: open_producer(settings), tail, replays_max=5)
        for letter in choose(log, Selection(topics=frozenset([topic])), Choice()):
            replayer.add(letter)
        replayer.flush()
        assert states(settings) == ["replayed", "replayed"]
        replays = {raw.key: raw for raw in take(sent, 2)}
        for key, outcome in ((b"k1", Outcome.INDEXED), (b"k2", Outcome.DEAD_LETTERED)):
            raw = replays[key]
            assert raw.value == message(settings, int(key[1:])).value
            assert [header for header in raw.headers if header[0] != "shoal.replay.of"] == [
                ("shoal.dlq.id", originals[key].id.encode()), ("shoal.dlq.replayed", b"1"), ("h", b"\xff"),
            ]  # fmt: skip
            assert origin_of(raw) == message(settings, int(key[1:])).position
            settle(settings, raw, outcome)
        bury(settings, replays[b"k2"], count=1)
        assert replayer.wait(30)
    sent.close()
    assert (replayer.tally.succeeded, replayer.tally.returned) == (1, 1)
    found = letters(settings)
    old = {letter.raw.key: letter for letter in found if letter.replay_of is None}
    (new,) = (letter for letter in found if letter.replay_of is not None)
    assert {key: letter.state.state.value for key, letter in old.items() if letter.state} == {
        b"k1": "succeeded", b"k2": "returned",
    }  # fmt: skip
    assert (new.state, new.retry_count, new.replays, new.replay_of) == (None, 1, 1, old[b"k2"].id)


def test_a_stub_is_replayed_from_the_source_topic_and_not_from_another_message_at_its_place(settings):
    topic, value = settings.kafka_topics[0], b"x" * (VALUE_BYTES_MAX + 1)
    producer = open_producer(settings)
    tail = TailReader(settings, connection(settings), topic)
    for body in (b"other", value):
        producer.send(topic, b"key", body, [("h", b"1")])
    producer.flush(30)
    other, raw = take(tail, 2)
    bury(settings, raw)
    bury(settings, RawMessage(other.position, b"key", b"y" * len(value)))  # the topic was made anew since
    code, stdout, _ = dlq(settings, "replay", "--topic", topic, "-o", "json")
    told = json.loads(stdout)
    assert (code, told["replayed"], told["not_replayable"]) == (1, 1, 1)
    (again,) = take(tail, 1)
    tail.close()
    assert (again.key, again.value) == (b"key", value)
    assert sorted(map(str, states(settings))) == ["None", "replayed"]


def test_a_value_that_is_only_in_the_log_is_lost_when_the_log_has_truncated_it(settings, kafka_server):
    topic, value = settings.kafka_topics[0], b"x" * (VALUE_BYTES_MAX + 1)
    producer = open_producer(settings)
    tail = TailReader(settings, connection(settings), topic)
    producer.send(topic, b"key", value)
    producer.flush(30)
    (raw,) = take(tail, 1)
    tail.close()
    bury(settings, raw)
    admin = kafka_server.admin()
    place = TopicPartition(topic, raw.position.partition, raw.position.offset + 1)
    for future in admin.delete_records([place]).values():
        future.result(30)
    code, stdout, _ = dlq(settings, "replay", "--topic", topic)
    assert code == 1
    assert "not in the log any more" in " ".join(stdout.split())


def test_purge_marks_and_the_logs_own_truncation_removes(settings, kafka_server):
    topic = f"{settings.kafka_topics[0]}_dlq"
    bury(settings, *(message(settings, number) for number in range(6)))
    code, stdout, _ = dlq(settings, "purge", "--dataset", "d0", "--yes", "-o", "json")
    assert (code, json.loads(stdout)["purged"]) == (0, 3)
    _, stdout, said = dlq(settings, "list", "-o", "json")
    assert json.loads(stdout)["matching"] == 3
    assert "3 purged" in said
    assert len(letters(settings)) == 6
    admin = kafka_server.admin()
    for future in admin.delete_records([TopicPartition(topic, number, -1) for number in range(4)]).values():
        future.result(30)
    assert letters(settings) == []


def test_compaction_keeps_every_state(settings, kafka_server):
    """1. States of many letters, each recorded several times. 2. Kafka compacts. 3. Every state is the same."""
    topic = settings.kafka_topics[0]
    admin = kafka_server.admin()
    admin.delete_topics([f"{topic}_dlq_state"])[f"{topic}_dlq_state"].result(30)
    eventually(lambda: f"{topic}_dlq_state" not in kafka_server.admin().list_topics(timeout=10).topics)
    hasty = {
        "cleanup.policy": "compact",
        "segment.ms": "100",
        "min.cleanable.dirty.ratio": "0.01",
        "max.compaction.lag.ms": "100",
    }
    kafka_server.create_topic(f"{topic}_dlq_state", 1, **hasty)
    bury(settings, *(message(settings, number) for number in range(20)))
    for _ in range(3):
        dlq(settings, "replay", "--topic", topic, "--all")
    for letter in letters(settings)[:5]:
        raw = RawMessage(message(settings, 0).position, b"k", b"{}", (
            ("shoal.dlq.id", letter.id.encode()), ("shoal.dlq.replayed", b"3"),
        ))  # fmt: skip
        settle(settings, raw, Outcome.INDEXED)
    dlq(settings, "purge", *(letter.id for letter in letters(settings)[5:8]), "--all", "--yes")
    before = states(settings)
    assert sorted(map(str, before)) == ["purged"] * 3 + ["replayed"] * 12 + ["succeeded"] * 5

    def records() -> tuple[int, int]:
        """How many were written, and how many of them are there."""
        consumer = Consumer({**consumer_config(settings, kafka_server.bootstrap), "group.id": "count",
                             "enable.partition.eof": True})  # fmt: skip
        place = TopicPartition(f"{topic}_dlq_state", 0, 0)
        consumer.assign([place])
        written = consumer.get_watermark_offsets(place, timeout=10)
        assert written is not None
        count = 0
        while (found := consumer.poll(10)) is not None and found.error() is None:
            count += 1
        consumer.close()
        return written[1], count

    producer = open_producer(settings)

    def compacted() -> bool:
        producer.send(f"{topic}_dlq_state", b"garbage", b"rolls the segment")  # only closed segments are compacted
        producer.flush(30)
        return records()[1] < 40

    assert records()[0] >= 68
    eventually(compacted)
    assert states(settings) == before


def test_a_topic_that_is_not_there_yet_has_no_dead_letters(kafka_server, tmp_path):
    name = uuid.uuid4().hex[:8]
    bare = load(data_dir=tmp_path, kafka_brokers=kafka_server.bootstrap, kafka_topics=f"none-{name}",
                command_topic=f"nor-{name}")  # fmt: skip
    assert letters(bare) == []
    assert f"none-{name}_dlq" not in kafka_server.admin().list_topics(timeout=10).topics


# --- the embedded broker ----------------------------------------------------------------------


def test_on_the_embedded_broker_ids_and_states_outlive_its_lives(tmp_path):
    """1. Two letters; one is replayed and succeeds. 2. New lives of the broker. 3. Same ids, same states."""
    settings = load(data_dir=tmp_path)
    topic = settings.kafka_topics[0]
    bury(settings, message(settings, 1), message(settings, 2))
    broker = start_broker(settings)
    try:
        listening = TailReader(settings, broker.connection, topic)
        first = letters(settings)[0]
        assert dlq(settings, "replay", first.id)[0] == 0
        (raw,) = take(listening, 1)
        listening.close()
        assert (raw.key, dict(raw.headers)["shoal.dlq.id"]) == (b"k1", first.id.encode())
        settle(settings, raw, Outcome.INDEXED)
    finally:
        broker.process.kill()
        broker.stop()
    before = [(letter.id, letter.state) for letter in letters(settings)]
    assert [state.state.value if state else None for _, state in before] == ["succeeded", None]
    for _ in range(2):
        broker = start_broker(settings)
        try:
            assert [(letter.id, letter.state) for letter in letters(settings)] == before
            tail = Consumer({**consumer_config(settings, broker.connection.brokers), "group.id": "looking"})
            tail.assign([TopicPartition(f"{topic}_dlq_state", number, 0) for number in range(4)])
            keys = {tail.poll(10).key() for _ in range(2)}
            tail.close()
            assert keys == {first.id.encode(), f"{first.id}#replayed".encode()}
        finally:
            broker.stop()


def test_on_the_embedded_broker_whoever_waits_hears_the_end(tmp_path):
    """1. `dlq replay --wait` runs. 2. The reader settles what arrives. 3. It returns, and tells both outcomes."""
    settings = load(data_dir=tmp_path)
    topic = settings.kafka_topics[0]
    bury(settings, message(settings, 1), message(settings, 2))
    broker = start_broker(settings)
    try:
        listening = TailReader(settings, broker.connection, topic)
        told: list[tuple[int, str, str]] = []
        command = threading.Thread(
            target=lambda: told.append(dlq(settings, "replay", "--topic", topic, "--wait", "--timeout", "30"))
        )
        command.start()
        for raw, outcome in zip(take(listening, 2), (Outcome.UNCHANGED, Outcome.DEAD_LETTERED), strict=True):
            settle(settings, raw, outcome)
        listening.close()
        command.join(60)
    finally:
        broker.stop()
    ((code, stdout, _),) = told
    assert code == 1
    assert "1 unchanged" in stdout
    assert "there is nothing in it" in stdout
