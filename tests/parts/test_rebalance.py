"""Readers of one group on a real Kafka: what a rebalance and a loss do to partitions and offsets.

The readers are those of production, their stages scripted: which offset was handled by whom, and how often.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

import shoal.actors.reader as module
from shoal.actors.reader import Reader
from shoal.records import Ack, Deletion, Failure, Outcome
from shoal.settings import Settings, load
from shoal.sources.kafka import Connection, consumer_config, ensure_topics, open_producer
from shoal.sources.messages import RawMessage
from tests.fixtures.kafka_server import KafkaServer

PARTITIONS = 6
HANG_S = 60.0
SESSION_MS = 6_000  # where it is waited out; shorter, a busy machine loses members that live


class Stages:
    """Handles deletions at once, but for those of `held` partitions, which wait."""

    def __init__(self) -> None:
        self.handled: list[tuple[int, int]] = []  # (partition, offset), in order
        self.held: set[int] = set()

    async def write(self, writable: Deletion) -> Ack:
        position = writable.position
        while position.partition in self.held:
            await asyncio.sleep(0.01)
        self.handled.append((position.partition, position.offset))
        return Ack(Outcome.DELETED)

    async def settle(self, raw: RawMessage, outcome: Outcome | None, failure: Failure | None) -> None:
        pass


class Group:
    """The readers of one group, and the log they read."""

    def __init__(self, settings: Settings, bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings, self.topic = settings, settings.kafka_topics[0]
        self.connection = Connection(bootstrap, "c")
        self.readers: dict[str, Reader] = {}
        self.stages: dict[str, Stages] = {}
        self._producer = open_producer(settings)
        self._making: list[Stages] = []
        monkeypatch.setattr(module, "RayStages", lambda *_: self._making[-1])

    def set(self, *properties: str, to_ms: int) -> None:
        """Of the readers that join from now on."""
        changed = self.settings.kafka_properties | dict.fromkeys(properties, str(to_ms))
        self.settings = self.settings.model_copy(update={"kafka_properties": changed})

    async def join(self, name: str) -> Stages:
        stages = self.stages[name] = Stages()
        self._making.append(stages)
        self.readers[name] = Reader(name, self.settings, self.connection, 64)
        await self.readers[name].start()
        return stages

    def send(self, count: int) -> None:
        """`count` tombstones to each partition."""
        for _ in range(count):
            for partition in range(PARTITIONS):
                self._producer._client().produce(  # type: ignore[attr-defined]
                    self.topic, key=b"prod:d:%d" % partition, value=None, partition=partition
                )
        self._producer.flush(30)

    def owned(self, name: str) -> set[int]:
        return {partition for topic, partition in self.readers[name]._offsets.owned() if topic == self.topic}

    def lags(self, name: str) -> dict[int, int | None]:
        """Of the partitions whose end it knows."""
        marks = [mark for mark in self.readers[name]._marks.copy().values() if mark.topic == self.topic]
        return {mark.partition: mark.lag_records for mark in marks if mark.end_offset is not None}

    def handled(self) -> Counter[tuple[int, int]]:
        return Counter(done for stages in self.stages.values() for done in stages.handled)

    def committed(self) -> dict[int, int]:
        asker = Consumer({"bootstrap.servers": self.connection.brokers, "group.id": self.settings.kafka_group_id})
        try:
            found = asker.committed([TopicPartition(self.topic, n) for n in range(PARTITIONS)], timeout=10)
            return {tp.partition: tp.offset for tp in found}
        finally:
            asker.close()

    async def until(self, holds: Callable[[], object], what: str) -> None:
        deadline = asyncio.get_running_loop().time() + HANG_S
        while not holds():
            assert asyncio.get_running_loop().time() < deadline, f"{what}: {self.__dict__} {self.handled()}"
            await asyncio.sleep(0.05)

    async def all_handled(self, count: int) -> None:
        everything = {(partition, offset) for partition in range(PARTITIONS) for offset in range(count)}
        await self.until(lambda: everything <= set(self.handled()), f"{count} of each partition are handled")

    async def all_committed(self, count: int) -> None:
        for _ in range(200):
            if await asyncio.to_thread(self.committed) == dict.fromkeys(range(PARTITIONS), count):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"committed {self.committed()}, not {count}")


@pytest.fixture(params=["classic", "consumer"])
async def group(
    request: pytest.FixtureRequest, kafka_server: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Group]:
    topic = kafka_server.create_topic(f"scrapes-{uuid.uuid4().hex[:8]}", PARTITIONS)
    settings = load(
        data_dir=tmp_path,
        kafka_brokers=kafka_server.bootstrap,
        kafka_topics=(topic,),
        kafka_group_id=f"group-{topic}",
        kafka_group_protocol=request.param,
        command_topic=f"commands-{topic}",
        # A member hears of a rebalance with its next heartbeat, and a cooperative one takes two of them.
        kafka_properties={"heartbeat.interval.ms": "300"},
    )
    ensure_topics(settings, Connection(kafka_server.bootstrap, "c"))
    made = Group(settings, kafka_server.bootstrap, monkeypatch)
    yield made
    for stages in made.stages.values():
        stages.held.clear()
    for reader in made.readers.values():
        await reader.drain(20)


async def test_a_reader_that_is_killed_and_begins_again_has_its_partitions_back_without_a_rebalance(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    if group.settings.kafka_group_protocol == "consumer":
        pytest.skip("such groups hold a dead member's name until its session times out")
    monkeypatch.setattr(module.os, "_exit", lambda _: None)
    await group.join("a")
    other = await group.join("b")
    await group.until(lambda: group.owned("a") and group.owned("b"), "both have their share")
    await group.until(lambda: group.owned("a").isdisjoint(group.owned("b")), "each its own")
    group.send(5)
    await group.all_handled(5)
    kept, moved = group.owned("b"), group.owned("a")
    killed = group.readers["a"]
    killed._stopping.set()
    monkeypatch.setattr(killed, "_leave", lambda _: killed._stopped.set())  # as kill -9: nobody is told
    await group.until(killed._stopped.is_set, "its thread is gone")
    again = await group.join("a")
    group.send(5)
    expected = {(partition, offset) for partition in moved for offset in range(5, 10)}
    await group.until(lambda: expected <= set(again.handled), "it goes on where it was")
    assert group.owned("a") == moved
    assert group.owned("b") == kept
    assert {partition for partition, _ in other.handled} == kept, "the other one never had to step in"


GIVES_UP_AND_NEVER_SAYS_SO = """
import json, sys, time
from confluent_kafka import Consumer
consumer = Consumer(json.loads(sys.argv[1]))
def given_up(*_):
    print("gives up", flush=True)
    time.sleep(600)
consumer.subscribe(sys.argv[2:], on_assign=lambda *_: print("has some", flush=True), on_revoke=given_up)
while True:
    consumer.poll(0.1)
"""


async def test_partitions_given_up_by_a_reader_killed_in_a_hand_over_are_read_again_once_one_joins_anew(
    group: Group,
) -> None:
    if group.settings.kafka_group_protocol == "consumer":
        pytest.skip("such groups have no static members here, and the broker itself hands over")
    config = consumer_config(group.settings, group.connection.brokers, "a")
    config = {name: value for name, value in config.items() if name != "logger"}
    command = [sys.executable, "-c", GIVES_UP_AND_NEVER_SAYS_SO, json.dumps(config), group.topic]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert await asyncio.to_thread(first.stdout.readline) == "has some\n"
        await group.join("b")
        assert await asyncio.to_thread(first.stdout.readline) == "gives up\n"
        first.kill()
    await group.join("a")
    await group.until(lambda: group.owned("a"), "it has what it had not given up")
    given_up = set(range(PARTITIONS)) - group.owned("a") - group.owned("b")
    assert given_up, "nobody has them: the broker saw a member that has only begun again"
    group.send(3)
    await group.readers["b"].rejoin()
    await group.all_handled(3)
    assert given_up <= group.owned("a") | group.owned("b")


async def test_partitions_that_stay_are_neither_lost_nor_handled_twice_when_a_reader_joins_and_leaves(
    group: Group,
) -> None:
    group.set("session.timeout.ms", to_ms=SESSION_MS)  # one that leaves keeps its partitions until it is over
    await group.join("a")
    group.send(20)
    await group.all_handled(20)
    await group.join("b")
    await group.until(
        lambda: bool(group.owned("b")) and group.owned("a").isdisjoint(group.owned("b")), "b has its share"
    )
    kept = group.owned("a")
    assert kept, "a keeps some"
    assert group.owned("a") | group.owned("b") == set(range(PARTITIONS))
    group.send(20)
    await group.all_handled(40)
    await group.readers.pop("b").drain(20)
    await group.until(lambda: group.owned("a") == set(range(PARTITIONS)), "a has them all again")
    group.send(20)
    await group.all_handled(60)
    await group.all_committed(60)
    assert {done for done, times in group.handled().items() if times > 1 and done[0] in kept} == set()
    assert [offset for partition, offset in group.stages["a"].handled if partition in kept] != []


async def test_a_reader_that_leaves_for_good_hands_over_at_once_and_one_of_its_name_may_come_again(
    group: Group,
) -> None:
    """1. b leaves, and nobody waits for its session; 2. a has all that it had, and nothing was done twice; 3. another b
    joins as a stranger: it is given partitions of its own."""
    # A place that is kept would be kept for ever.
    group.set("session.timeout.ms", "max.poll.interval.ms", to_ms=int(10 * HANG_S * 1000))
    await group.join("a")
    await group.join("b")
    await group.until(lambda: group.owned("b") and group.owned("a").isdisjoint(group.owned("b")), "each has its share")
    group.send(20)
    await group.all_handled(20)
    group.stages["b"].held = group.owned("b")
    group.send(20)
    await group.until(lambda: group.readers["b"]._credits.items == 20 * len(group.owned("b")), "they are in flight")
    await group.until(
        lambda: {group.lags("a").get(partition) for partition in group.owned("a")} == {0}, "a's own are done"
    )
    leaving = asyncio.create_task(group.readers["b"].leave(HANG_S))
    await group.until(group.readers["b"]._stopping.is_set, "it takes nothing new")
    group.stages["b"].held = set()
    assert await leaving == 0
    await group.until(lambda: group.owned("a") == set(range(PARTITIONS)), "a has them all")
    await group.until(lambda: set(group.lags("a")) == set(range(PARTITIONS)), "and has looked at them")
    assert set(group.lags("a").values()) <= {0, None}, "what b had done is no lag"
    group.send(20)
    await group.all_handled(60)
    await group.all_committed(60)
    assert set(group.handled().values()) == {1}
    del group.readers["b"]
    await group.join("b")
    await group.until(lambda: group.owned("b") and group.owned("a").isdisjoint(group.owned("b")), "it has its share")


async def test_what_is_in_flight_of_a_revoked_partition_is_done_again_by_its_next_owner_and_never_skipped(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REVOKE_DRAIN_S", 0.3)
    stages = await group.join("a")
    group.send(5)
    await group.all_handled(5)
    await group.all_committed(5)
    stages.held = set(range(PARTITIONS))  # from now on nothing of a's ends
    group.send(5)
    await group.until(lambda: group.readers["a"]._credits.items == 5 * PARTITIONS, "all are in flight")
    await group.join("b")
    await group.until(lambda: bool(group.owned("b")), "b has its share")
    moved = group.owned("b")
    expected = {(partition, offset) for partition in moved for offset in range(5, 10)}
    await group.until(lambda: expected <= set(group.stages["b"].handled), "b does them")
    before = group.committed()
    assert all(before[partition] == 5 for partition in range(PARTITIONS) if partition not in moved)
    stages.held = set()
    await group.all_handled(10)
    await group.all_committed(10)
    assert not any((partition, 5) in stages.handled for partition in moved), "abandoned where they were"


async def test_a_reader_whose_thread_is_stuck_loses_its_partitions_and_moves_nothing_when_it_wakes(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(module.os, "_exit", ended.append)  # a client that was fenced ends its process
    # A thread that is stuck for so long has lost its partitions.
    group.set("session.timeout.ms", "max.poll.interval.ms", to_ms=SESSION_MS)
    stages = await group.join("a")
    group.send(5)
    await group.all_handled(5)
    await group.all_committed(5)
    stages.held = set(range(PARTITIONS))
    group.send(5)
    await group.until(lambda: group.readers["a"]._credits.items == 5 * PARTITIONS, "all are in flight")
    arrived, stuck = threading.Event(), threading.Event()
    collect = group.readers["a"]._collect
    monkeypatch.setattr(group.readers["a"], "_collect", lambda: (arrived.set(), stuck.wait(120), collect()))
    await group.until(arrived.is_set, "its thread is stuck, and not in a callback of the client")
    await group.join("b")
    everything = {(partition, offset) for partition in range(PARTITIONS) for offset in range(5, 10)}
    try:
        await group.until(lambda: group.owned("b") == set(range(PARTITIONS)), "b has them all")
        await group.until(lambda: everything <= set(group.stages["b"].handled), "b has done them")
        await group.all_committed(10)
        stages.held = set()
    finally:
        stuck.set()
    await group.until(
        lambda: ended or not group.owned("a") or group.owned("a").isdisjoint(group.owned("b")), "a knows it"
    )
    if ended:
        del group.readers["a"]
    group.send(1)
    await group.all_handled(11)
    await group.all_committed(11)
