"""The partition reader: owns messages from poll to commit.

One thread owns the Kafka consumer and every decision about offsets (shoal.actors.intake); the actor's event loop
drives the documents (shoal.actors.pipeline). They meet in two queues. The thread never blocks: while credits are
used up its partitions are paused and it keeps polling, so that the broker keeps it in the group; what only a broker
can tell, for the status, another thread asks. The one wait is the bounded drain of a partition that is taken away.

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
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from shoal import tracing
from shoal.actors.backpressure import Credits
from shoal.actors.intake import Held, Intake
from shoal.actors.lease import LeaseKeeper
from shoal.actors.logs import configure_logging
from shoal.actors.offsets import TopicPartition as Key
from shoal.actors.pipeline import Item, Pipeline
from shoal.actors.pulse import Pulse
from shoal.actors.stages import RayStages
from shoal.actors.survey import Survey, Surveyed, watermarks
from shoal.faults import reach
from shoal.log_format import about
from shoal.metrics import PartitionStatistics, ReaderStatistics
from shoal.records import Position, Progress
from shoal.settings import Settings
from shoal.sources.dead_letter_state import replay_of
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
CHUNK_BYTES = 16 * 1024
"""Of a chunk's text: what a fetch reserves per chunk, beside the vector. A thousand tokens of prose are 5 KB, of
rules and blanks 16 KB."""
KEY_CHARS_MAX = 200  # of a document's key, in logs and traces
LEAVE_GROUP_S = 5.0  # for the brokers to be told; else they miss a member that left when its session times out
REVOKE_DRAIN_S = 2.0  # partitions that stay get nothing new meanwhile; slower work is redone by the next owner

log = logging.getLogger("shoal.reader")


class Reader:
    """Plain class; `ReaderActor` is its Ray shell."""

    def __init__(self, name: str, settings: Settings, connection: Connection, width: int) -> None:
        self._name, self._settings, self._connection = name, settings, connection
        configure_logging(settings)
        self._started = time.monotonic()
        self._lease = LeaseKeeper(name, settings.lease_s)
        self._credits = Credits(settings.in_flight_items_max, settings.in_flight_bytes_max)
        self._intake: Intake[Item] = Intake(self._credits)  # owned by the thread
        self._offsets = self._intake.offsets
        self._finished: queue.SimpleQueue[Held[Item]] = queue.SimpleQueue()
        self._progress: tuple[Progress, ...] = ()  # swapped whole, read by the loop
        self._marks: dict[Key, PartitionStatistics] = {}
        self._paused: bool | None = False  # None: what the client does is not known
        self._survey: Survey | None = None
        self._ended = 0
        self._messages = self._message_bytes = self._rebalances = 0  # the thread's
        self._offset_commits = self._offset_commits_refused = 0
        self._fatal: KafkaError | None = None
        self._turns, self._loop_pulse = Pulse(), Pulse()
        self._rejoining = threading.Event()
        self._stopping = threading.Event()
        self._is_leaving = False
        self._stopped = threading.Event()
        self._drain_until = 0.0
        self._is_static = False
        self._consumer_error: str | None = None
        self._unreachable_at: float | None = None  # since when no broker was heard
        self._loop: asyncio.AbstractEventLoop | None = None
        stages = RayStages(
            settings,
            open_producer(settings),
            open_direct_producer(settings, connection),
            lambda: self._progress,
            lambda: datetime.now(UTC),
        )
        self._stages = stages
        self._pipeline = Pipeline(
            stages,
            lambda raw: parse_message(raw, settings),
            settings.transient_retry_s,
            is_s3_event_id=is_s3_event_id,
            outcome_id_of=outcome_id,
            credits=self._credits,
            is_replay=lambda raw: replay_of(raw) is not None,
            payload_bytes=settings.chunks_per_document_max * (CHUNK_BYTES + 4 * width),
        )

    async def start(self) -> None:
        """Join the group. May be called again."""
        self._loop_pulse.follow_loop()
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            threading.Thread(target=self._main, name="consumer", daemon=True).start()

    async def rejoin(self) -> None:
        """Leave the group and join it anew, so that it assigns every partition (shoal.cluster.ownership)."""
        self._rejoining.set()

    async def drain(self, timeout_s: float) -> int:
        """Take nothing new, finish and commit what is in flight within `timeout_s`, leave the group. A static member
        keeps its place there, and its partitions, until its session times out: for whoever begins again in its name.

        Returns how many messages did not end in time: the group's next member gets them again.
        """
        self._drain_until = time.monotonic() + timeout_s
        self._stopping.set()
        if self._loop is not None:
            await asyncio.to_thread(self._stopped.wait, timeout_s + REVOKE_DRAIN_S + self._is_leaving * LEAVE_GROUP_S)
        return self._credits.items

    async def leave(self, timeout_s: float) -> int:
        """As `drain`, for good: nobody begins again in its name, and the other members have its partitions at once."""
        self._is_leaving = True
        return await self.drain(timeout_s)

    async def route(self, fetchers: tuple[str, ...]) -> tuple[str, ...]:
        """Have documents fetched by these from now on; returns them."""
        self._stages.route(fetchers)
        return fetchers

    @ray.method(concurrency_group="health")
    async def statistics(self) -> ReaderStatistics:
        self._lease.renew()
        now = time.monotonic()
        unreachable_at = self._unreachable_at  # the thread's
        items = sorted((held.what for held in self._intake.in_flight()), key=lambda item: item.started_at)
        return ReaderStatistics(
            name=self._name,
            pid=os.getpid(),
            uptime_s=now - self._started,
            partitions=tuple(self._marks.copy().values()),
            cluster=self._connection.cluster,
            in_flight_items=self._credits.items,
            in_flight_bytes=self._credits.message_bytes,
            held_bytes=self._credits.held_bytes,
            held_bytes_max=self._credits.bytes_max,
            paused_because=self._why_paused() if self._paused else None,
            breakers=self._pipeline.breakers(),
            ended=self._ended,
            stalled_s=max(self._turns.stalled_s(), self._loop_pulse.stalled_s()),
            oldest_item_s=now - items[0].started_at if items else None,
            oldest_item_stage=items[0].stage if items else None,
            oldest_item_position=_shown(items[0].raw.position) if items else None,
            outcomes={str(name): count for name, count in self._pipeline.outcomes.copy().items()},
            dead_letters={str(name): count for name, count in self._pipeline.dead_letters.copy().items()},
            retries=self._pipeline.retries,
            retried=dict(self._pipeline.retried.copy()),
            messages=self._messages,
            message_bytes=self._message_bytes,
            offset_commits=self._offset_commits,
            offset_commits_refused=self._offset_commits_refused,
            rebalances=self._rebalances,
            broker_unreachable_s=0.0 if unreachable_at is None else now - unreachable_at,
            durations=self._pipeline.durations.counts(),
            last_error=self._consumer_error or (items[0].error if items else None),
            is_leaving=self._is_leaving,
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
        callbacks = {"on_commit": self._on_commit, "error_cb": self._on_error}
        config = consumer_config(self._settings, self._connection.brokers, self._name) | callbacks
        self._is_static = "group.instance.id" in config
        consumer = Consumer(config)
        self._survey = Survey(consumer, self._settings.command_topic)
        self._subscribe(consumer)
        committed_at = watermarks_at = 0.0
        while not self._stopping.is_set():
            self._turns.beat()
            if self._fatal is not None:
                raise KafkaException(self._fatal)
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
            if self._rejoining.is_set():
                self._rejoining.clear()
                log.warning("%s: joins the group anew, since a partition has no owner", self._name)
                consumer.unsubscribe()  # what it has is drained, committed and given up, as in any rebalance
                self._subscribe(consumer)
        self._leave(consumer)

    def _subscribe(self, consumer: Consumer) -> None:
        topics = [*self._settings.kafka_topics, self._settings.command_topic]
        consumer.subscribe(topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)

    def _leave(self, consumer: Consumer) -> None:
        """Finish what is in flight, then close: closing revokes, and revoking drains and commits."""
        self._turns.stop()  # closing waits for the brokers
        owned = [TopicPartition(*key) for key in self._offsets.owned()]
        if owned:
            consumer.pause(owned)
        while self._credits.items and time.monotonic() < self._drain_until:
            for message in consumer.consume(POLL_MESSAGES_MAX, timeout=POLL_S):  # stays in the group
                self._take(message)
            self._collect()
        assert self._survey is not None
        self._survey.stop()
        if self._is_leaving:
            self._unsubscribe(consumer)
        consumer.close()
        self._turns.stop()  # the revoke of the closing has beaten again
        self._stopped.set()

    def _unsubscribe(self, consumer: Consumer) -> None:
        """Closing alone tells the brokers nothing of a static member's end (KIP-345); unsubscribing does, once what it
        has is given up. It has no name there any more then."""
        consumer.unsubscribe()
        deadline = time.monotonic() + LEAVE_GROUP_S
        while self._is_static and consumer.memberid() and time.monotonic() < deadline:
            consumer.consume(1, timeout=POLL_S)

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
        self._consumer_error = self._unreachable_at = None
        if self._stopping.is_set():
            return  # its next owner gets it
        raw = raw_message(message, self._connection.cluster)
        self._messages += 1
        self._message_bytes += len(raw.value or b"")
        item = Item(raw, time.monotonic())
        held = self._intake.deliver((topic, partition), offset, _size(raw), item)
        if held is None:
            return  # revoked between fetch and delivery
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._begin, held)

    def _collect(self) -> None:
        """Take note of what the pipeline finished."""
        moved = False
        while True:
            try:
                held = self._finished.get_nowait()
            except queue.Empty:
                break
            self._ended += not held.what.abandoned
            moved |= self._intake.end(held)
        if moved:
            self._publish_progress()

    def _publish_progress(self) -> None:
        cluster = self._connection.cluster
        self._progress = tuple(Progress(cluster, *key, mark) for key, mark in self._intake.marks().items())

    def _commit(self, consumer: Consumer, *, keys: Iterable[Key] | None = None, wait: bool = False) -> None:
        due = self._offsets.to_commit(keys)
        if not due:
            return
        offsets = [TopicPartition(*key, offset) for key, offset in due.items()]
        reach("reader.before_commit")
        self._offsets.sent(due)
        try:
            if wait:
                self._answered(None, consumer.commit(offsets=offsets, asynchronous=False) or [])
            else:
                consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self._answered(error.args[0], offsets)

    def _on_commit(self, error: Any, offsets: Sequence[TopicPartition]) -> None:
        self._answered(error, offsets)

    def _answered(self, error: Any, offsets: Sequence[TopicPartition]) -> None:
        reach("reader.after_commit")
        for tp in offsets:
            ok = error is None and tp.error is None
            self._offsets.answered((tp.topic, tp.partition), tp.offset, ok)
            self._offset_commits += ok
            self._offset_commits_refused += not ok
        if error is not None and error.code() == KafkaError._FATAL:
            self._fatal = error  # the client is done for: a member of our name took our place, say
        if error is not None:
            log.info("%s: commit refused, will be made again: %s", self._name, error)

    def _on_error(self, error: KafkaError) -> None:
        """The client lost its brokers, or has them again when the next message comes; it goes on by itself."""
        self._consumer_error = f"kafka: {error.str()}"
        if error.fatal():
            self._fatal = error
        if error.code() == KafkaError._ALL_BROKERS_DOWN and self._unreachable_at is None:
            self._unreachable_at = time.monotonic()
        log.warning("%s: %s", self._name, error)

    def _on_assign(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        if self._survey is not None:
            self._survey.forget((tp.topic, tp.partition) for tp in partitions)  # others have moved them since
        self._intake.assign((tp.topic, tp.partition) for tp in partitions)
        # New partitions run, kept ones stay as they were: decide anew for all of them.
        self._paused = None
        self._rebalances += 1
        log.info("%s: assigned %s", self._name, [(tp.topic, tp.partition) for tp in partitions])

    def _on_revoke(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        keys = [(tp.topic, tp.partition) for tp in partitions]
        # Who leaves on purpose has waited already, for as long as it was given.
        deadline = self._drain_until if self._stopping.is_set() else time.monotonic() + REVOKE_DRAIN_S
        while any(self._offsets.in_flight(key) for key in keys) and time.monotonic() < deadline:
            self._turns.beat()
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
        gone = [held.what for held in self._intake.release(keys)]
        if gone and self._loop is not None:
            self._loop.call_soon_threadsafe(_abandon, gone)
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

    def _why_paused(self) -> str:
        """Which bound is reached, and what the oldest waits for."""
        full = self._credits.why_full() or "waiting until half of what was in flight is done"
        held = self._intake.in_flight()
        return f"{full}; the oldest: {held[0].what.stage}" if held else full

    def _measure(self, consumer: Consumer) -> None:
        """Where each partition stands, for the status. What the client doesn't know comes from the survey."""
        assert self._survey is not None
        oldest: dict[Key, int] = {}
        for held in self._intake.in_flight():
            timestamp_ms = held.what.raw.position.timestamp_ms
            oldest[held.key] = min(oldest.get(held.key, timestamp_ms), timestamp_ms)
        paused_because = self._why_paused() if self._paused else None
        unknown: dict[Key, bool] = {}
        for key in self._offsets.owned():
            asked = self._survey.found.get(key, Surveyed())
            next_offset = self._offsets.next_offset(key)
            committed = self._offsets.committed_offset(key)
            low, high = watermarks(consumer, key, cached=True)
            if high < 0 or self._paused:  # what the client knows stands still without fetches
                unknown[key] = committed is None and asked.committed is None
                low, high = max(low, asked.low), max(high, asked.high)
            elif committed is None and asked.committed is None:
                unknown[key] = True
            committed = asked.committed if committed is None else committed
            # Of a partition just taken over all may be done already: until its offset is heard its lag is not known.
            first = low if key in self._survey.found else -1
            done = next_offset if next_offset is not None else committed if committed is not None else first
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
                paused_because=paused_because,
            )
        if self._unreachable_at is not None and self._survey.heard_at > self._unreachable_at:
            self._consumer_error = self._unreachable_at = None  # of an idle topic nothing else would tell
        self._survey.ask(unknown, is_lost=self._unreachable_at is not None)

    # --- the event loop -----------------------------------------------------------------------

    def _begin(self, held: Held[Item]) -> None:
        assert self._loop is not None
        task = held.what.task = self._loop.create_task(self._run(held.what))
        # Not from within `_run`: a task that is cancelled before its first step runs none of it.
        task.add_done_callback(lambda _: self._finished.put(held))

    async def _drive(self, item: Item) -> None:
        """To its end, as a span of the trace that its message came with, or of one of its own."""
        position, key = item.raw.position, (item.raw.key or b"").decode(errors="replace")[:KEY_CHARS_MAX]
        parent = next((value for name, value in item.raw.headers if name == tracing.HEADER), None)
        where = {"topic": position.topic, "partition": position.partition, "offset": position.offset}
        with tracing.span(
            "process", parent, messaging__system="kafka", messaging__destination__name=position.topic,
            messaging__destination__partition__id=str(position.partition), messaging__kafka__offset=position.offset,
            shoal__document=key,
        ) as current, about(document=key or None, trace=tracing.trace_id(current.header), **where):  # fmt: skip
            item.trace = current.header
            await self._pipeline.run(item)
            current.set(shoal__stage=item.stage)

    async def _run(self, item: Item) -> None:
        try:
            await self._drive(item)
        except BaseException:  # a bug of ours: this message can't be proven done, so the process ends
            if not item.abandoned:
                log.exception("%s: unexpected failure at %s", self._name, item.raw.position)
                logging.shutdown()
                os._exit(1)
        else:
            durations = self._pipeline.durations
            durations.observe("message", time.monotonic() - item.started_at)
            durations.observe("announced", time.time() - item.raw.position.timestamp_ms / 1000)


def _abandon(items: Sequence[Item]) -> None:
    for item in items:
        item.abandoned = True
        if item.task is not None:
            item.task.cancel()


def _shown(position: Position) -> str:
    return f"{position.topic}/{position.partition}@{position.offset}"


def _size(raw: RawMessage) -> int:
    return len(raw.value or b"") + len(raw.key or b"") + 1024


# "health" has an event loop of its own: statistics answer while work blocks.
ReaderActor = ray.remote(concurrency_groups={"health": 2})(Reader)  # type: ignore[call-overload]
