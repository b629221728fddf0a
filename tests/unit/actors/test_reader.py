"""The reader on a scripted consumer: what is committed, held back and abandoned, and when."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import orjson
import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from shoal.actors import reader as module
from shoal.actors.reader import Reader
from shoal.records import Ack, Deletion, Failure, Outcome
from shoal.settings import Settings
from shoal.sources.kafka import Connection
from shoal.sources.messages import RawMessage

T = "scraper-notifications"
P0, P1 = (T, 0), (T, 1)


class FakeMessage:
    def __init__(self, key: tuple[str, int], offset: int) -> None:
        self._key, self._offset = key, offset

    def error(self) -> None:
        return None

    def topic(self) -> str:
        return self._key[0]

    def partition(self) -> int:
        return self._key[1]

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes:
        return b"{}"

    def headers(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return 1, 1_700_000_000_000


class FakeConsumer:
    """Does in the consumer's thread what the test asks for; a broker that answers commits in the next turn."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.on_commit = config["on_commit"]
        self.script: queue.SimpleQueue[Callable[[], list[FakeMessage]]] = queue.SimpleQueue()
        self.owned: set[tuple[str, int]] = set()
        self.paused: set[tuple[str, int]] = set()
        self.commits: list[tuple[tuple[str, int], int, bool]] = []  # key, offset, synchronous
        self.unanswered: list[Sequence[TopicPartition]] = []
        self.refuse = self.is_closed = self.is_away = False
        self.error_cb = config["error_cb"]
        self.slow_questions = 0
        self.silence: threading.Event | None = None  # the brokers answer no question before it is set
        self.group_offset = -1001
        self.turns: list[float] = []
        self.member_id, self.is_heard = "member-1", True
        self.member_id_at_close: str | None = None

    def subscribe(self, topics: list[str], on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        self.on_assign, self.on_revoke, self.on_lost = on_assign, on_revoke, on_lost

    def consume(self, _: int, timeout: float) -> list[FakeMessage]:
        self.turns.append(time.monotonic())
        answered, self.unanswered = self.unanswered, []
        for offsets in answered:
            self.on_commit(KafkaError(KafkaError.REBALANCE_IN_PROGRESS) if self.refuse else None, offsets)
        try:
            return self.script.get(timeout=0.005)()
        except queue.Empty:
            return []

    def commit(self, offsets: Sequence[TopicPartition], asynchronous: bool) -> Sequence[TopicPartition] | None:
        self.commits += [((tp.topic, tp.partition), tp.offset, not asynchronous) for tp in offsets]
        if asynchronous:
            self.unanswered.append(offsets)
            return None
        if self.refuse:
            raise KafkaException(KafkaError(KafkaError.ILLEGAL_GENERATION))
        return offsets

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self.paused |= {(tp.topic, tp.partition) for tp in partitions}

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        self.paused -= {(tp.topic, tp.partition) for tp in partitions}

    def committed(self, partitions: Sequence[TopicPartition], timeout: float) -> Sequence[TopicPartition]:
        return [TopicPartition(tp.topic, tp.partition, self.group_offset) for tp in partitions]

    def get_watermark_offsets(self, _: TopicPartition, timeout: float, cached: bool) -> tuple[int, int]:
        if self.refuse and not cached:
            self.slow_questions += 1
            if self.silence is not None:
                self.silence.wait(10)
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return (-1001, -1001) if self.refuse else (0, 100)

    def list_topics(self, topic: str, timeout: float) -> None:
        if self.is_away:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    def unsubscribe(self) -> None:
        def act() -> None:
            self.on_revoke(self, [TopicPartition(*key) for key in self.owned])
            self.owned.clear()
            self.member_id = "" if self.is_heard else self.member_id

        self.do(act)

    def memberid(self) -> str:
        return self.member_id

    def close(self) -> None:
        self.member_id_at_close = self.member_id
        if self.owned:
            self.on_revoke(self, [TopicPartition(*key) for key in self.owned])
        self.is_closed = True

    # --- what a test asks for -----------------------------------------------------------------

    def do(self, action: Callable[[], list[FakeMessage] | None]) -> None:
        self.script.put(lambda: action() or [])

    def assign(self, *keys: tuple[str, int]) -> None:
        def act() -> None:
            self.on_assign(self, [TopicPartition(*key) for key in keys])  # the binding assigns after it
            self.owned |= set(keys)

        self.do(act)

    def revoke(self, *keys: tuple[str, int], lost: bool = False) -> None:
        def act() -> None:
            (self.on_lost if lost else self.on_revoke)(self, [TopicPartition(*key) for key in keys])
            self.owned -= set(keys)
            self.paused -= set(keys)

        self.do(act)

    def deliver(self, key: tuple[str, int], *offsets: int) -> None:
        self.do(lambda: [FakeMessage(key, offset) for offset in offsets])


class GatedStages:
    """Writes end when the test lets them: `held` names the offsets that must wait."""

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.started: list[int] = []
        self.written: list[int] = []
        self.cancelled: list[int] = []

    async def write(self, writable: Deletion) -> Ack:
        offset = writable.position.offset
        self.started.append(offset)
        try:
            while offset in self.held:
                await asyncio.sleep(0.002)
        except asyncio.CancelledError:
            self.cancelled.append(offset)
            raise
        self.written.append(offset)
        return Ack(Outcome.DELETED)

    async def settle(self, raw: RawMessage, outcome: Outcome | None, failure: Failure | None) -> None:
        pass


class Scene:
    def __init__(self, reader: Reader, consumer: FakeConsumer, stages: GatedStages) -> None:
        self.reader, self.consumer, self.stages = reader, consumer, stages

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < deadline, what
            await asyncio.sleep(0.002)

    async def committed(self, key: tuple[str, int], offset: int) -> None:
        await self.until(lambda: any(c[:2] == (key, offset) for c in self.consumer.commits), f"{offset} is committed")


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    stages, made = GatedStages(), []

    def consumer(config: dict[str, Any]) -> FakeConsumer:
        made.append(FakeConsumer(config))
        return made[0]

    def parse(raw: RawMessage, _: Settings) -> list[Deletion]:
        return [Deletion(raw.position, "scraper", f"d{raw.position.partition}:{raw.position.offset}")]

    for name, fake in {
        "Consumer": consumer, "parse_message": parse, "RayStages": lambda *_: stages,
        "open_producer": lambda _: None, "open_direct_producer": lambda *_: None,
        "COMMIT_INTERVAL_S": 0.01, "WATERMARK_INTERVAL_S": 0.01, "REVOKE_DRAIN_S": 0.3,
    }.items():  # fmt: skip
        monkeypatch.setattr(module, name, fake)
    settings = Settings(in_flight_items_max=4, kafka_brokers="x", _env_file=None)
    reader = Reader("reader-0", settings, Connection("x", "c"), 64)
    await reader.start()
    await reader.start()  # the supervisor asks every second
    while not made:
        await asyncio.sleep(0.002)
    yield Scene(reader, made[0], stages)
    stages.held.clear()
    made[0].refuse = False
    await reader.drain(5)
    assert len(made) == 1, "one consumer, however often it was started"


async def test_what_is_done_is_committed_and_what_is_not_is_not(scene: Scene) -> None:
    scene.stages.held = {11}
    scene.consumer.assign(P0)
    scene.consumer.deliver(P0, 10, 11, 12)
    await scene.committed(P0, 11)
    await scene.until(lambda: 12 in scene.stages.written, "12 is done out of order")
    await asyncio.sleep(0.05)
    assert max(offset for _, offset, _ in scene.consumer.commits) == 11
    scene.stages.held = set()
    await scene.committed(P0, 13)


async def test_a_refused_commit_is_made_again(scene: Scene) -> None:
    scene.consumer.assign(P0)
    scene.consumer.refuse = True
    scene.consumer.deliver(P0, 0)
    await scene.until(lambda: len(scene.consumer.commits) > 2, "it keeps trying")
    assert {offset for _, offset, _ in scene.consumer.commits} == {1}
    scene.consumer.refuse = False
    scene.consumer.deliver(P0, 1)
    await scene.committed(P0, 2)


async def test_a_revoked_partition_is_finished_and_committed_before_it_goes(scene: Scene) -> None:
    scene.stages.held = {0}
    scene.consumer.assign(P0)
    scene.consumer.deliver(P0, 0, 1)
    await scene.until(lambda: 1 in scene.stages.written, "1 is done")
    scene.consumer.revoke(P0)
    await asyncio.sleep(0.02)
    scene.stages.held = set()
    await scene.until(lambda: not scene.consumer.owned, "the revocation ends")
    assert scene.consumer.commits[-1] == (P0, 2, True)


async def test_a_lost_partition_is_never_committed(scene: Scene) -> None:
    scene.stages.held = {0}
    scene.consumer.assign(P0)
    scene.consumer.deliver(P0, 0)
    await scene.until(lambda: scene.stages.started == [0], "it began")
    scene.consumer.revoke(P0, lost=True)
    await scene.until(lambda: not scene.consumer.owned, "the loss is noted")
    scene.stages.held = set()
    await asyncio.sleep(0.05)
    assert scene.consumer.commits == []


async def test_work_of_a_partition_that_went_is_abandoned_and_gives_its_credits_back(scene: Scene) -> None:
    # Otherwise it would be done twice, write after its next owner, and hold this reader's credits while it waits.
    scene.stages.held = {0, 1, 2, 3}
    scene.consumer.assign(P0)
    scene.consumer.deliver(P0, 0, 1, 2, 3)
    await scene.until(lambda: len(scene.stages.started) == 4, "all run")
    scene.consumer.revoke(P0, lost=True)
    await scene.until(lambda: sorted(scene.stages.cancelled) == [0, 1, 2, 3], "all are abandoned")
    await scene.until(lambda: scene.reader._credits.items == 0, "the credits are back")
    assert scene.stages.written == []


async def test_work_abandoned_before_its_first_step_gives_its_credits_back_too(scene: Scene) -> None:
    scene.consumer.assign(P0)
    loop, both = asyncio.get_running_loop(), threading.Event()

    def deliver_and_lose() -> None:  # while the event loop is busy, so that both meet it in one turn
        for offset in range(3):
            scene.reader._take(FakeMessage(P0, offset))  # type: ignore[arg-type]
        scene.consumer.on_lost(scene.consumer, [TopicPartition(*P0)])
        both.set()

    scene.consumer.do(deliver_and_lose)
    loop.call_soon(both.wait, 5)
    await scene.until(lambda: both.is_set() and scene.reader._credits.items == 0, "nothing is held")
    assert scene.stages.started == []


async def test_a_partition_that_comes_back_starts_over_and_its_old_work_moves_nothing(scene: Scene) -> None:
    scene.stages.held = {5}
    scene.consumer.assign(P0)
    scene.consumer.deliver(P0, 5)
    await scene.until(lambda: scene.stages.started == [5], "it began")
    scene.consumer.revoke(P0, lost=True)
    scene.consumer.assign(P0)
    scene.consumer.deliver(P0, 5, 6)
    await scene.until(lambda: scene.stages.written == [6], "6 is done, 5 not")
    await asyncio.sleep(0.05)
    assert scene.consumer.commits == []
    scene.stages.held = set()
    await scene.committed(P0, 7)


async def test_a_full_reader_pauses_and_a_kept_partition_is_resumed_after_a_rebalance(scene: Scene) -> None:
    # 1. P0 is paused at the bound; 2. its items end in the very turn in which P1 is assigned; 3. P0 must run again.
    scene.stages.held = {0, 1, 2, 3}
    scene.consumer.assign(P0)
    scene.consumer.deliver(P0, 0, 1, 2, 3)
    await scene.until(lambda: scene.consumer.paused == {P0}, "held back at the bound")

    def ends_while_assigning() -> None:
        scene.stages.held = set()
        deadline = time.monotonic() + 60
        while scene.reader._finished.qsize() < 4 and time.monotonic() < deadline:
            time.sleep(0.002)
        scene.consumer.on_assign(scene.consumer, [TopicPartition(*P1)])
        scene.consumer.owned.add(P1)

    scene.consumer.do(ends_while_assigning)
    await scene.until(lambda: P1 in scene.consumer.owned, "the rebalance ended")
    await scene.until(lambda: not scene.consumer.paused, "every partition runs")


async def test_brokers_that_do_not_answer_hold_up_no_turn(scene: Scene) -> None:
    scene.consumer.refuse = True
    scene.consumer.silence = threading.Event()
    scene.consumer.assign(*((T, number) for number in range(30)))
    await scene.until(lambda: scene.consumer.slow_questions == 1, "somebody asks, and waits")
    turns = len(scene.consumer.turns)
    await scene.until(lambda: len(scene.consumer.turns) > turns + 10, "the consumer's thread goes on meanwhile")
    assert scene.consumer.slow_questions == 1
    scene.consumer.silence.set()


async def test_a_committed_offset_that_only_the_broker_knows_shows_in_the_status(scene: Scene) -> None:
    scene.consumer.group_offset = 42
    scene.consumer.assign(P0)

    async def committed() -> list[int | None]:
        return [partition.committed_offset for partition in (await scene.reader.statistics()).partitions]

    deadline = time.monotonic() + 60
    while await committed() != [42]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


async def test_a_lost_broker_is_shown_and_forgotten_when_messages_come_again(scene: Scene) -> None:
    scene.consumer.is_away = True
    scene.consumer.do(lambda: scene.consumer.error_cb(KafkaError(KafkaError._ALL_BROKERS_DOWN)))
    scene.consumer.assign(P0)

    async def error() -> str:
        return (await scene.reader.statistics()).last_error or ""

    while "kafka" not in await error():
        await asyncio.sleep(0.002)
    scene.consumer.deliver(P0, 0)
    await scene.committed(P0, 1)
    assert not await error()


async def test_a_broker_that_is_back_is_heard_also_where_no_message_comes(scene: Scene) -> None:
    async def away_s() -> float:
        return (await scene.reader.statistics()).broker_unreachable_s

    assert await away_s() == 0
    # 1. it goes, and the reader has no partition that would tell of its return
    scene.consumer.is_away = True
    scene.consumer.do(lambda: scene.consumer.error_cb(KafkaError(KafkaError._ALL_BROKERS_DOWN)))
    while not (first := await away_s()):
        await asyncio.sleep(0.002)
    turns = len(scene.consumer.turns)
    await scene.until(lambda: len(scene.consumer.turns) > turns + 20, "it turns on")
    assert await away_s() > first
    # 2. it comes back, silently
    scene.consumer.is_away = False
    while await away_s():
        await asyncio.sleep(0.002)
    assert (await scene.reader.statistics()).last_error is None


async def test_a_commit_that_is_refused_at_a_revoke_ends_nobody(scene: Scene) -> None:
    scene.consumer.assign(P0)
    scene.consumer.deliver(P0, 0)
    await scene.until(lambda: scene.stages.written == [0], "it is done")
    scene.consumer.refuse = True
    scene.consumer.revoke(P0)
    await scene.until(lambda: not scene.consumer.owned, "it went")
    scene.consumer.refuse = False
    scene.consumer.assign(P1)
    scene.consumer.deliver(P1, 5)
    await scene.committed(P1, 6)


async def test_a_drain_finishes_what_is_in_flight_commits_it_and_leaves_the_group(scene: Scene) -> None:
    scene.stages.held = {0}
    scene.consumer.assign(P0)
    scene.consumer.deliver(P0, 0)
    await scene.until(lambda: scene.stages.started == [0], "it began")
    drain = asyncio.create_task(scene.reader.drain(5))
    await asyncio.sleep(0.02)
    scene.consumer.deliver(P0, 1)
    await asyncio.sleep(0.4)  # longer than a revoke would wait
    assert not scene.consumer.is_closed
    scene.stages.held = set()
    assert await drain == 0
    assert scene.stages.started == [0], "nothing new is taken"
    assert scene.consumer.is_closed
    assert scene.consumer.commits[-1][:2] == (P0, 1)


async def test_one_that_leaves_for_good_closes_only_when_the_group_knows_it_no_more(scene: Scene) -> None:
    scene.consumer.assign(P0)
    scene.stages.held = {0}
    scene.consumer.deliver(P0, 0, 1)
    await scene.until(lambda: scene.stages.started == [0, 1], "both are under way")
    leaving = asyncio.create_task(scene.reader.leave(5))
    await scene.until(lambda: scene.reader._stopping.is_set(), "it was told")
    assert (await scene.reader.statistics()).is_leaving
    scene.stages.held.clear()
    assert await leaving == 0
    await scene.committed(P0, 2)
    assert scene.consumer.member_id_at_close == ""
    assert scene.consumer.owned == set()


async def test_one_that_leaves_for_good_waits_for_a_silent_group_no_longer_than_its_bound(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEAVE_GROUP_S", 0.05)
    scene.consumer.is_heard = False
    assert await scene.reader.leave(5) == 0
    await scene.until(lambda: scene.consumer.is_closed, "it closes all the same")
    assert scene.consumer.member_id_at_close == "member-1"


async def test_a_drain_ends_at_its_bound_and_tells_what_it_left(scene: Scene) -> None:
    scene.stages.held = {1}
    scene.consumer.assign(P0)
    scene.consumer.deliver(P0, 0, 1)
    await scene.until(lambda: scene.stages.written == [0], "the first is done")
    assert await scene.reader.drain(0.05) == 1
    assert scene.consumer.is_closed
    assert scene.consumer.commits[-1][:2] == (P0, 1), "what was done is committed, what was not is not"


async def test_the_statistics_are_json_with_plain_names(scene: Scene) -> None:
    scene.consumer.assign(P0)
    scene.consumer.deliver(P0, 0)
    await scene.committed(P0, 1)
    statistics = await scene.reader.statistics()
    assert orjson.loads(orjson.dumps(statistics))["outcomes"] == {"deleted": 1}
