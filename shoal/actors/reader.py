"""The partition reader: owns messages from poll to commit.

One thread owns the Kafka consumer and every decision about offsets; the actor's event loop drives the
documents (shoal.actors.pipeline). They meet in two queues. The thread never blocks: while credits are used up
its partitions are paused and it keeps polling, so that the broker keeps it in the group.

An offset is committed only when everything below it is done, and counts as committed only when the broker
said so. On revoke the partition's work is drained for a bounded time and committed synchronously; after a
loss nothing is committed. Whatever can't be proven ends the process: its messages are delivered again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import ray
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from shoal.actors.backpressure import Credits
from shoal.actors.logs import configure_logging
from shoal.actors.offsets import OffsetTracker
from shoal.actors.offsets import TopicPartition as Key
from shoal.actors.pipeline import Item, Pipeline
from shoal.actors.stages import RayStages
from shoal.metrics import PartitionStatistics, ReaderStatistics
from shoal.records import Progress
from shoal.settings import Settings
from shoal.sources.kafka import (
    Connection,
    consumer_config,
    open_direct_producer,
    open_producer,
    raw_message,
)
from shoal.sources.messages import RawMessage, outcome_id, parse_message
from shoal.sources.s3_events import is_s3_event_id

POLL_S = 0.05  # how long a completion may wait for the thread
POLL_MESSAGES_MAX = 100
COMMIT_INTERVAL_S = 0.5
WATERMARK_INTERVAL_S = 1.0
ASK_S = 1.0  # bound of a question to the brokers: completions wait as long
REVOKE_DRAIN_S = 5.0  # well under the session timeout: slower work is redone by the next owner

log = logging.getLogger("shoal.reader")


class Reader:
    """Plain class; `ReaderActor` is its Ray shell."""

    def __init__(self, name: str, settings: Settings, connection: Connection) -> None:
        self._name, self._settings, self._connection = name, settings, connection
        configure_logging(settings)
        self._started = time.monotonic()
        self._offsets = OffsetTracker()
        self._credits = Credits(settings.in_flight_items_max, settings.in_flight_bytes_max)
        self._finished: queue.SimpleQueue[tuple[Item, int]] = queue.SimpleQueue()
        self._items: dict[tuple[Key, int], Item] = {}  # in flight; owned by the thread
        self._progress: tuple[Progress, ...] = ()  # swapped whole, read by the loop
        self._marks: dict[Key, PartitionStatistics] = {}
        self._paused: bool | None = False  # None: what the client does is not known
        self._stopping = threading.Event()
        self._stopped = threading.Event()
        self._consumer_error: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        stages = RayStages(
            settings,
            open_producer(settings),
            open_direct_producer(settings, connection),
            lambda: self._progress,
            lambda: datetime.now(UTC),
        )
        self._pipeline = Pipeline(
            stages,
            lambda raw: parse_message(raw, settings),
            settings.transient_retry_s,
            is_s3_event_id=is_s3_event_id,
            outcome_id_of=outcome_id,
        )

    async def start(self) -> None:
        """Join the group. May be called again."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            threading.Thread(target=self._main, name="consumer", daemon=True).start()

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, finish and commit what is in flight within `timeout_s`, leave the group."""
        self._stopping.set()
        if self._loop is not None:
            await asyncio.to_thread(self._stopped.wait, timeout_s)

    @ray.method(concurrency_group="health")
    async def statistics(self) -> ReaderStatistics:
        now = time.monotonic()
        items = sorted(self._items.copy().values(), key=lambda item: item.started_at)
        return ReaderStatistics(
            name=self._name,
            pid=os.getpid(),
            uptime_s=now - self._started,
            partitions=tuple(self._marks.copy().values()),
            in_flight_items=self._credits.items,
            in_flight_bytes=self._credits.bytes,
            oldest_item_s=now - items[0].started_at if items else None,
            oldest_item_stage=items[0].stage if items else None,
            outcomes={str(name): count for name, count in self._pipeline.outcomes.copy().items()},
            dead_letters={str(name): count for name, count in self._pipeline.dead_letters.copy().items()},
            retries=self._pipeline.retries,
            last_error=self._consumer_error or self._pipeline.last_error,
        )

    # --- the consumer thread ------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._consume()
        except BaseException:  # the actor must not live on without its consumer
            log.exception("%s: the consumer thread failed; the process ends and is restarted", self._name)
            logging.shutdown()
            os._exit(1)

    def _consume(self) -> None:
        consumer = Consumer(consumer_config(self._settings, self._connection.brokers) | {"on_commit": self._on_commit})
        topics = [*self._settings.kafka_topics, self._settings.command_topic]
        consumer.subscribe(topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)
        committed_at = watermarks_at = 0.0
        while not self._stopping.is_set():
            room = max(1, self._settings.in_flight_items_max - self._credits.items)
            for message in consumer.consume(min(POLL_MESSAGES_MAX, room), timeout=POLL_S):
                self._take(message)
            self._collect()
            now = time.monotonic()
            if now - committed_at >= COMMIT_INTERVAL_S:
                committed_at = now
                self._commit(consumer)
            if now - watermarks_at >= WATERMARK_INTERVAL_S:
                watermarks_at = now
                self._measure(consumer)
            self._hold_back(consumer)
        self._leave(consumer)

    def _leave(self, consumer: Consumer) -> None:
        """Finish what is in flight, then close: closing revokes, and revoking drains and commits."""
        owned = [TopicPartition(*key) for key in self._offsets.owned()]
        if owned:
            consumer.pause(owned)
        consumer.close()
        self._stopped.set()

    def _take(self, message: Message) -> None:
        error = message.error()
        if error is not None:
            self._consumer_error = f"kafka: {error.str()}"
            log.warning("%s: %s", self._name, error)
            if error.fatal():
                raise KafkaException(error)
            return
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        assert topic is not None
        assert partition is not None
        assert offset is not None
        self._consumer_error = None
        key = (topic, partition)
        epoch = self._offsets.epoch(key)
        if epoch is None or self._stopping.is_set():
            return  # revoked between fetch and delivery, or leaving: its next owner gets it
        raw = raw_message(message, self._connection.cluster)
        item = Item(raw, epoch, time.monotonic())
        self._offsets.start(key, offset)
        self._credits.take(_size(raw))
        self._items[key, offset] = item
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._begin, item)

    def _collect(self) -> None:
        """Take note of what the pipeline finished."""
        moved = False
        while True:
            try:
                item, epoch = self._finished.get_nowait()
            except queue.Empty:
                break
            position = item.raw.position
            key = (position.topic, position.partition)
            self._credits.give(_size(item.raw))
            if self._items.get((key, position.offset)) is item:
                del self._items[key, position.offset]
            moved |= self._offsets.finish(key, epoch, position.offset)
        if moved:
            self._publish_progress()

    def _publish_progress(self) -> None:
        marks = ((key, self._offsets.next_offset(key)) for key in self._offsets.owned())
        cluster = self._connection.cluster
        self._progress = tuple(Progress(cluster, *key, mark) for key, mark in marks if mark is not None)

    def _commit(self, consumer: Consumer, *, keys: Iterable[Key] | None = None, wait: bool = False) -> None:
        due = self._offsets.to_commit(keys)
        if not due:
            return
        offsets = [TopicPartition(*key, offset) for key, offset in due.items()]
        self._offsets.sent(due)
        try:
            if wait:
                self._answered(None, consumer.commit(offsets=offsets, asynchronous=False) or [])
            else:
                consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self._answered(error, offsets)

    def _on_commit(self, error: Any, offsets: Sequence[TopicPartition]) -> None:
        self._answered(error, offsets)

    def _answered(self, error: Any, offsets: Sequence[TopicPartition]) -> None:
        for tp in offsets:
            ok = error is None and tp.error is None
            self._offsets.answered((tp.topic, tp.partition), tp.offset, ok)
        if error is not None:
            log.info("%s: commit refused, will be made again: %s", self._name, error)

    def _on_assign(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        self._offsets.assign((tp.topic, tp.partition) for tp in partitions)
        # New partitions run, kept ones stay as they were: decide anew for all of them.
        self._paused = None
        log.info("%s: assigned %s", self._name, [(tp.topic, tp.partition) for tp in partitions])

    def _on_revoke(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        keys = [(tp.topic, tp.partition) for tp in partitions]
        deadline = time.monotonic() + REVOKE_DRAIN_S
        while any(self._offsets.in_flight(key) for key in keys) and time.monotonic() < deadline:
            self._collect()
            time.sleep(POLL_S / 5)
        for key in keys:  # an asynchronous commit under way must not keep the last one from being sent
            sent = self._offsets.committed_offset(key)
            self._offsets.answered(key, sent if sent is not None else -1, ok=False)
        self._commit(consumer, keys=keys, wait=True)
        self._release(keys)

    def _on_lost(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        log.warning("%s: lost %s", self._name, [(tp.topic, tp.partition) for tp in partitions])
        self._release([(tp.topic, tp.partition) for tp in partitions])

    def _release(self, keys: Sequence[Key]) -> None:
        """Forget `keys`. Their next owner does again what is in flight: going on would only do it twice."""
        self._offsets.release(keys)
        left = [item for (key, _), item in self._items.items() if key in keys]
        if left and self._loop is not None:
            self._loop.call_soon_threadsafe(_abandon, left)
        for key in keys:
            self._marks.pop(key, None)
        self._publish_progress()

    def _hold_back(self, consumer: Consumer) -> None:
        pause = self._credits.should_pause()
        if pause == self._paused:
            return
        owned = [TopicPartition(*key) for key in self._offsets.owned()]
        if owned:
            (consumer.pause if pause else consumer.resume)(owned)
        self._paused = pause

    def _measure(self, consumer: Consumer) -> None:
        """Where each partition stands, for the status; uses only what the client already knows."""
        oldest: dict[Key, int] = {}
        for (key, _), item in self._items.items():
            oldest[key] = min(oldest.get(key, item.raw.position.timestamp_ms), item.raw.position.timestamp_ms)
        answers = True  # of the brokers: once they don't, this turn asks nothing more
        for key in self._offsets.owned():
            known = self._marks.get(key)
            next_offset = self._offsets.next_offset(key)
            committed = self._offsets.committed_offset(key)
            if committed is None and known:
                committed = known.committed_offset
            elif committed is None and answers:
                committed, answers = _committed(consumer, key)
            low, high = _watermarks(consumer, key, cached=True)
            if answers and (high < 0 or self._paused):  # what the client knows stands still without fetches
                asked = _watermarks(consumer, key, cached=False)
                answers = asked[1] >= 0
                low, high = asked if answers else (low, high)
            done = next_offset if next_offset is not None else committed if committed is not None else low
            lag = max(0, high - done) if high >= 0 and done >= 0 else None
            age_s = max(0.0, time.time() - oldest[key] / 1000) if key in oldest else None
            self._marks[key] = PartitionStatistics(
                cluster=self._connection.cluster,
                topic=key[0],
                partition=key[1],
                next_offset=next_offset,
                committed_offset=committed,
                end_offset=high if high >= 0 else None,
                lag_records=lag,
                lag_s=0.0 if lag == 0 else age_s,
                in_flight=self._offsets.in_flight(key),
                paused_because="in-flight bound reached" if self._paused else None,
            )

    # --- the event loop -----------------------------------------------------------------------

    def _begin(self, item: Item) -> None:
        assert self._loop is not None
        item.task = self._loop.create_task(self._run(item))

    async def _run(self, item: Item) -> None:
        try:
            await self._pipeline.run(item)
        except BaseException:  # a bug of ours: this message can't be proven done, so the process ends
            if not item.abandoned:
                log.exception("%s: unexpected failure at %s", self._name, item.raw.position)
                logging.shutdown()
                os._exit(1)
        self._finished.put((item, item.epoch))


def _abandon(items: Sequence[Item]) -> None:
    for item in items:
        item.abandoned = True
        if item.task is not None:
            item.task.cancel()


def _size(raw: RawMessage) -> int:
    return len(raw.value or b"") + len(raw.key or b"") + 1024


def _committed(consumer: Consumer, key: Key) -> tuple[int | None, bool]:
    """The group's offset or None, and whether the brokers answered."""
    try:
        offset = consumer.committed([TopicPartition(*key)], timeout=ASK_S)[0].offset
    except KafkaException:
        return None, False
    return (offset if offset >= 0 else None), True


def _watermarks(consumer: Consumer, key: Key, *, cached: bool) -> tuple[int, int]:
    """(low, high), what the client saw last or what the broker says; (-1, -1) where that is unknown."""
    try:
        found: tuple[int, int] | None = consumer.get_watermark_offsets(
            TopicPartition(*key), timeout=ASK_S, cached=cached
        )
    except KafkaException:
        return (-1, -1)
    return (-1, -1) if found is None else found


# "health" has an event loop of its own: statistics answer while work blocks.
ReaderActor = ray.remote(concurrency_groups={"health": 2})(Reader)  # type: ignore[call-overload]
