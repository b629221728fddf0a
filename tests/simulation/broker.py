"""The simulated broker: partitions with gaps, one consumer group, and what clients see of them.

As strict as Kafka where it matters: a commit counts only from a member of the group, a revoked partition goes to
its next owner only after the revocation ended, a member that is silent for the session time loses everything
without a word, and finds out at its next poll.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from shoal.errors import TransientError
from shoal.sources.log_producer import FailureMarks
from tests.simulation.kernel import Process, Violation, World, here

Key = tuple[str, int]
SESSION_S = 10.0
CLUSTER = "simulated"


@dataclass(frozen=True, slots=True)
class Record:
    """A message in the log; has the methods of confluent_kafka.Message."""

    key_: Key
    offset_: int
    message_key: bytes | None
    message_value: bytes | None
    headers_: tuple[tuple[str, bytes | None], ...]
    timestamp_ms: int

    def error(self) -> None:
        return None

    def topic(self) -> str:
        return self.key_[0]

    def partition(self) -> int:
        return self.key_[1]

    def offset(self) -> int:
        return self.offset_

    def key(self) -> bytes | None:
        return self.message_key

    def value(self) -> bytes | None:
        return self.message_value

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return list(self.headers_) or None

    def timestamp(self) -> tuple[int, int]:
        return 1, self.timestamp_ms


class ErrorMessage:
    """What a poll returns instead of a message when a broker is away for a moment."""

    def error(self) -> KafkaError:
        return KafkaError(KafkaError._TRANSPORT)


class Broker:
    """Logs, and the group that reads them."""

    def __init__(self, world: World, partitions: dict[str, int]) -> None:
        self.world = world
        self.logs: dict[Key, list[Record]] = {
            (topic, number): [] for topic, count in partitions.items() for number in range(count)
        }
        self.committed: dict[Key, int] = {}
        self.other: dict[str, list[Record]] = {}  # topics that nobody's group reads: dead letters, outcomes, states
        self.on_commit: Callable[[Key, int], None] = lambda key, offset: None
        self.members: dict[int, Consumer] = {}
        self.owner: dict[Key, Consumer | None] = dict.fromkeys(self.logs)
        self.target: dict[Key, Consumer | None] = dict.fromkeys(self.logs)
        self._next_offset: dict[Key, int] = dict.fromkeys(self.logs, 0)

    # --- the log ------------------------------------------------------------------------------

    def append(
        self,
        key: Key,
        message_key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]] = (),
        *,
        gap: int = 0,
        late_ms: int = 0,
    ) -> Record:
        offset = self._next_offset[key] + gap
        self._next_offset[key] = offset + 1
        now_ms = int((1_700_000_000 + self.world.now()) * 1000) - late_ms
        record = Record(key, offset, message_key, value, tuple(headers), now_ms)
        self.logs[key].append(record)
        self.world.note("announced", key[1], offset, message_key)
        return record

    def end(self, key: Key) -> int:
        return self._next_offset[key]

    def is_drained(self) -> bool:
        return all(not log or self.committed.get(key, 0) >= log[-1].offset_ + 1 for key, log in self.logs.items())

    # --- the group ----------------------------------------------------------------------------

    def join(self, member: Consumer) -> None:
        self.members[member.number] = member
        self.rebalance("a member joined")

    def leave(self, member: Consumer, why: str) -> None:
        if self.members.pop(member.number, None) is None:
            return
        member.is_member = False
        for key, owner in self.owner.items():
            if owner is member:
                self.owner[key] = None
        self.rebalance(why)

    def silent(self, member: Consumer) -> None:
        """Nothing was heard of `member` for the session time, if that is still so."""
        process = member.process
        if member.is_member and (not process.alive or process.frozen_until > self.world.now()):
            self.world.note("evicted", process)
            self.world.dice.happened["member_lost"] += 1
            self.leave(member, "a member fell silent")

    def rebalance(self, why: str) -> None:
        """Give each partition its next owner; the moved ones are revoked first, the kept ones go on."""
        members = list(self.members.values())
        self.world.note("rebalance", why, [member.number for member in members])
        rng = self.world.dice.rng
        load = dict.fromkeys(members, 0)
        keys = list(self.logs)
        rng.shuffle(keys)
        share = -(-len(keys) // len(members)) if members else 0
        for key in keys:
            before = self.target[key]
            if before in load and load[before] < share and rng.random() < 0.9:
                self.target[key] = before
            elif members:
                self.target[key] = min(members, key=lambda member: load[member])
            else:
                self.target[key] = None
            if self.target[key] is not None:
                load[self.target[key]] += 1
        self.settle()

    def settle(self) -> None:
        """Tell the members what goes and, where nobody has it any more, what comes."""
        for key, owner in self.owner.items():
            wanted = self.target[key]
            if owner is wanted:
                if owner is not None:
                    owner.going.discard(key)
                continue
            if owner is not None:
                owner.going.add(key)
            elif wanted is not None:
                self.owner[key] = wanted
                wanted.coming.append(key)

    def commit(self, member: Consumer, offsets: Sequence[TopicPartition]) -> KafkaError | None:
        """What the broker makes of a commit."""
        if not member.is_member:
            return KafkaError(KafkaError.UNKNOWN_MEMBER_ID)
        if self.world.dice.hit("commit_refused"):
            return KafkaError(KafkaError.REBALANCE_IN_PROGRESS)
        for tp in offsets:
            key = (tp.topic, tp.partition)
            if self.owner[key] is not member:
                raise Violation(f"{member.process} committed {key}, which it does not own")
            if tp.offset > self.end(key):
                raise Violation(f"{member.process} committed {key} past its end: {tp.offset}")
            self.on_commit(key, tp.offset)
            self.committed[key] = tp.offset
            self.world.note("committed", key[1], tp.offset, member.process)
        return KafkaError(KafkaError._TIMED_OUT) if self.world.dice.hit("commit_answer_lost") else None


class Consumer:
    """confluent_kafka.Consumer, as the reader uses it. Every method runs in the reader's thread."""

    def __init__(self, broker: Broker, config: dict[str, Any]) -> None:
        self.broker, self.world = broker, broker.world
        self.process: Process = here()
        self.number = self.process.pid
        self._answer = config["on_commit"]
        self.is_member = False
        self.going: set[Key] = set()
        self.coming: list[Key] = []
        self._has: dict[Key, int] = {}  # what the client believes to own -> its next offset
        self._paused: set[Key] = set()
        self._answers: list[tuple[float, KafkaError | None, list[TopicPartition]]] = []
        self._is_closed = self._is_unsubscribed = False

    def subscribe(self, topics: list[str], on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        self._on_assign, self._on_revoke, self._on_lost = on_assign, on_revoke, on_lost
        self.process.at_death.append(self._process_died)
        self._join()

    def _join(self) -> None:
        self.is_member, self.going, self.coming = True, set(), []
        self.broker.join(self)

    def _process_died(self) -> None:
        self.world.loop.call_later(SESSION_S, self.broker.silent, self)

    def freeze(self, seconds: float) -> None:
        """The process is stopped for so long."""
        self.process.frozen_until = self.world.now() + seconds
        self.world.loop.call_later(SESSION_S, self.broker.silent, self)

    # --- what the reader calls ----------------------------------------------------------------

    def consume(self, num_messages: int = 1, timeout: float = -1) -> list[Any]:
        self.process.check()
        self._serve()
        if self.world.dice.hit("poll_error"):
            return [ErrorMessage()]
        found = self._fetched(num_messages)
        if not found:
            self.world.sleep(max(timeout, 0.001))
            self._serve()
            found = self._fetched(num_messages)
        return found

    def poll(self, timeout: float = -1) -> Any:
        found = self.consume(1, timeout)
        return found[0] if found else None

    def commit(self, offsets: Sequence[TopicPartition], asynchronous: bool = True) -> list[TopicPartition] | None:
        self.process.check()
        offsets = [TopicPartition(tp.topic, tp.partition, tp.offset) for tp in offsets]
        if asynchronous:
            error = self.broker.commit(self, offsets)
            delay = self.world.dice.between(1.0, 20.0) if self.world.dice.hit("commit_answer_slow") else 0.01
            self._answers.append((self.world.now() + delay, error, offsets))
            return None
        self.world.sleep(0.02)
        error = self.broker.commit(self, offsets)
        if error is not None:
            raise KafkaException(error)
        return offsets

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        keys = {(tp.topic, tp.partition) for tp in partitions}
        if keys - self._has.keys():
            raise KafkaException(KafkaError(KafkaError._STATE))
        self._paused |= keys
        self.world.dice.happened["paused"] += 1

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        keys = {(tp.topic, tp.partition) for tp in partitions}
        if keys - self._has.keys():
            raise KafkaException(KafkaError(KafkaError._STATE))
        self._paused -= keys

    def committed(self, partitions: Sequence[TopicPartition], timeout: float = -1) -> list[TopicPartition]:
        return [
            TopicPartition(tp.topic, tp.partition, self.broker.committed.get((tp.topic, tp.partition), -1001))
            for tp in partitions
        ]

    def get_watermark_offsets(self, tp: TopicPartition, timeout: float = -1, cached: bool = False) -> tuple[int, int]:
        return 0, self.broker.end((tp.topic, tp.partition))

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition(*key) for key in self._has]

    def unsubscribe(self) -> None:
        """The revocation is made by the next poll, as the client does it."""
        self.process.check()
        self._is_unsubscribed = True

    def memberid(self) -> str:
        return f"member-{self.number}" if self.is_member else ""

    def close(self) -> None:
        self.process.check()
        self._revoke(list(self._has))
        self.broker.leave(self, "a member left")
        self._is_closed = True

    # --- the client's own work ----------------------------------------------------------------

    def _serve(self) -> None:
        """Callbacks, as librdkafka makes them within a poll."""
        if self._is_unsubscribed and not self._is_closed:
            self._revoke(list(self._has))
            self.broker.leave(self, "a member left for good")
            self._is_closed = True
        if not self.is_member and not self._is_closed:
            lost, self._has, self._paused = list(self._has), {}, set()
            if lost:
                self._on_lost(self, [TopicPartition(*key) for key in lost])
            self._join()
        due = [answer for answer in self._answers if answer[0] <= self.world.now()]
        self._answers = [answer for answer in self._answers if answer not in due]
        for _, error, offsets in due:
            self._answer(error, offsets)
        if self.going:
            self._revoke([key for key in self._has if key in self.going])
        if self.coming:
            new, self.coming = [key for key in self.coming if self.broker.owner[key] is self], []
            # The binding calls first and assigns then.
            self._on_assign(self, [TopicPartition(*key) for key in new])
            for key in new:
                self._has[key] = self.broker.committed.get(key, 0)
            self.world.note("assigned", self.process, sorted(new))

    def _revoke(self, keys: list[Key]) -> None:
        if keys:
            self.world.note("revoking", self.process, sorted(keys))
            self._on_revoke(self, [TopicPartition(*key) for key in keys])
        for key in keys:
            self._has.pop(key, None)
            self._paused.discard(key)
            self.going.discard(key)
            if self.is_member and self.broker.owner[key] is self:
                self.broker.owner[key] = None
        self.broker.settle()

    def _fetched(self, most: int) -> list[Record]:
        keys = [key for key in self._has if key not in self._paused and key not in self.going]
        self.world.dice.rng.shuffle(keys)
        found: list[Record] = []
        for key in keys:
            log, at = self.broker.logs[key], self._has[key]
            ready = [record for record in log if record.offset_ >= at]
            for record in ready[: min(most - len(found), self.world.dice.rng.randint(1, 8))]:
                found.append(record)
                self._has[key] = record.offset_ + 1
        return found


class Producer:
    """A LogProducer that all threads of a reader share. A message may be on the log though its flush failed."""

    def __init__(self, broker: Broker, process: Process) -> None:
        self._broker, self._process = broker, process
        self._marks = FailureMarks()

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]] = ()
    ) -> None:
        self._process.check()
        world = self._broker.world
        self._marks.sending()
        if world.dice.hit("produce_failed"):
            self._marks.failed(TransientError("simulated: not sent"))
            return
        record = Record((topic, 0), len(self._broker.other.get(topic, ())), key, value, tuple(headers), 0)
        self._broker.other.setdefault(topic, []).append(record)
        world.note("produced", topic, key)
        if world.dice.hit("produce_answer_lost"):
            self._marks.failed(TransientError("simulated: sent, but not acknowledged"))

    def flush(self, timeout_s: float) -> None:
        self._broker.world.sleep(self._broker.world.dice.between(0.005, 0.1))
        self._process.check()
        self._marks.raise_failures()
