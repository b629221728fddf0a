"""The journal and its feed: producers, the broker's process and the whole machine die at any step.

What was flushed is announced until the group has committed it, in order, and never evicted before; what was not
flushed when its producer died was never promised. A dead letter is done once the broker has it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.cluster import journal_feed
from shoal.cluster.journal_feed import JournalFeed, PartitionKey
from shoal.sources.journal import Entry, Journal, JournalProducer
from tests.properties.profiles import examples

WORK, DEAD = "work", "work_dlq"
PARTITIONS = 2
BROKER_BYTES = 4_000  # per partition: the broker forgets its oldest beyond this


class Broker:
    """One life of the embedded broker: everything in memory."""

    def __init__(self) -> None:
        self.logs: dict[PartitionKey, list[Entry]] = {}
        self.first: dict[PartitionKey, int] = {}  # older ones were evicted
        self.pending: list[tuple[PartitionKey, Entry, Callable[[int], None]]] = []
        self.commits: dict[PartitionKey, int] = {}

    def produce(self, entry: Entry, partition: int, delivered: Callable[[int], None]) -> None:
        self.pending.append(((entry.topic, partition), entry, delivered))

    def committed(self, keys: Collection[PartitionKey]) -> Mapping[PartitionKey, int]:
        return {key: self.commits[key] for key in keys if key in self.commits}

    def deliver(self, count: int) -> None:
        now, self.pending = self.pending[:count], self.pending[count:]
        for key, entry, delivered in now:
            log = self.logs.setdefault(key, [])
            log.append(entry)
            first = self.first.setdefault(key, 0)
            while sum(one.size_bytes for one in log[first:]) > BROKER_BYTES and first < len(log) - 1:
                first += 1
            self.first[key] = first
            delivered(len(log) - 1)


@dataclass
class Message:
    topic: str
    key: bytes
    value: bytes


class JournalMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="journal-"))
        self.path = self.home / "0.sqlite"
        self.machines = self.serial = 0
        self.flushed: list[Message] = []  # in the order of the journal
        self.ended: set[bytes] = set()  # values: committed by the group, or dead letters that the broker had
        self.settled: set[bytes] = set()  # of those, marked done in the journal for good
        self.open()

    def open(self) -> None:
        self.homes = [Journal(self.path) for _ in range(3)]
        self.producers = [JournalProducer(journal) for journal in self.homes[:2]]
        self.buffers: list[list[Message]] = [[], []]
        self.new_broker()

    def new_broker(self) -> None:
        self.broker = Broker()
        self.homes[2].begin_life(1)
        self.feed = JournalFeed(self.homes[2], self.broker, [WORK], PARTITIONS)
        self.done_before = set(self.settled)

    # --- producers ----------------------------------------------------------------------------

    @rule(who=st.integers(0, 1), topic=st.sampled_from([WORK, WORK, DEAD]), key=st.sampled_from([b"a", b"d"]),
          sizes=st.lists(st.sampled_from([10, 10, 300, 1_900, 3_000]), min_size=1, max_size=8),
          flushes=st.integers(0, 2))  # fmt: skip
    def send(self, who: int, topic: str, key: bytes, sizes: list[int], flushes: int) -> None:
        for size in sizes:
            self.serial += 1
            message = Message(topic, key, str(self.serial).encode().ljust(size, b"."))
            self.producers[who].send(topic, key, message.value)
            self.buffers[who].append(message)
        if flushes:
            self.flush(who)

    @rule(who=st.integers(0, 1))
    def flush(self, who: int) -> None:
        self.producers[who].flush(1.0)
        self.flushed += self.buffers[who]
        self.buffers[who] = []

    @rule(who=st.integers(0, 1))
    def kill_a_producer(self, who: int) -> None:
        self.homes[who].close()
        self.homes[who] = Journal(self.path)
        self.producers[who] = JournalProducer(self.homes[who])
        self.buffers[who] = []

    # --- the broker's process -----------------------------------------------------------------

    @rule(count=st.integers(0, 6))
    def feed_and_deliver(self, count: int) -> None:
        self.feed.step()
        self.broker.deliver(count)

    @precondition(lambda self: any(key[0] == WORK for key in self.broker.logs))
    @rule(data=st.data())
    def the_group_commits(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(key for key in self.broker.logs if key[0] == WORK)))
        at = data.draw(st.integers(self.broker.commits.get(key, 0), len(self.broker.logs[key])))
        self.broker.commits[key] = at
        self.ended |= {entry.value for entry in self.broker.logs[key][:at] if entry.value}

    @rule()
    def settle(self) -> None:
        outstanding = self.feed.settle(1)
        done = {
            entry.value
            for key, log in self.broker.logs.items()
            for entry in (log[: self.broker.commits.get(key, 0)] if key[0] == WORK else log)
            if entry.value
        }
        self.settled |= done
        self.ended |= done
        fed = sum(map(len, self.broker.logs.values())) + len(self.broker.pending)
        assert outstanding == fed - len(done)

    @rule()
    def kill_the_broker(self) -> None:
        """Its memory is gone with what was committed and not settled: that is announced again."""
        self.homes[2].close()
        self.homes[2] = Journal(self.path)
        self.new_broker()

    @rule()
    def kill_the_machine(self) -> None:
        """Everything at once; what is on disk right now is all there is."""
        self.machines += 1
        new = self.home / f"{self.machines}.sqlite"
        for suffix in ("", "-wal"):
            if Path(f"{self.path}{suffix}").exists():
                shutil.copy(f"{self.path}{suffix}", f"{new}{suffix}")
        self.close()
        self.path = new
        self.open()

    def close(self) -> None:
        for journal in self.homes:
            journal.close()

    # --- what must always hold ----------------------------------------------------------------

    @invariant()
    def what_is_announced_was_flushed_and_comes_in_order(self) -> None:
        if not hasattr(self, "broker"):
            return
        place = {message.value: number for number, message in enumerate(self.flushed)}
        seen: dict[tuple[str, bytes | None], int] = {}
        for key, log in self.broker.logs.items():
            numbers = [place[entry.value] for entry in log if entry.value]
            assert numbers == sorted(set(numbers)), "in the order of the appends, each once"
            for entry in log:
                assert seen.setdefault((entry.topic, entry.key), key[1]) == key[1], "one key, one partition"
                assert entry.topic == self.flushed[place[entry.value or b""]].topic
            if key[0] == WORK:
                assert self.broker.first[key] <= self.broker.commits.get(key, 0), "evicted before it was committed"
                again = {entry.value for entry in log} & self.done_before
                assert not again, "what was settled is not announced again"

    @invariant()
    def nothing_is_skipped(self) -> None:
        """Within a partition, what was flushed before something that is announced is announced or was done."""
        if not hasattr(self, "broker"):
            return
        for (topic, _), log in self.broker.logs.items():
            announced = {entry.value for entry in log}
            keys, newest = {entry.key for entry in log}, log[-1].value
            for message in self.flushed:
                if message.value == newest:
                    break
                if message.topic == topic and message.key in keys:
                    assert message.value in announced | self.done_before

    @invariant()
    def the_journal_knows_what_is_open(self) -> None:
        if hasattr(self, "broker"):
            work = {message.value for message in self.flushed if message.topic == WORK}
            assert self.homes[2].open_count(WORK) == len(work - self.settled)

    def teardown(self) -> None:
        """Left alone, a new broker announces everything that was flushed and not settled, to the end."""
        if not hasattr(self, "broker"):
            return
        try:
            self.kill_the_broker()
            got: set[bytes | None] = set()
            for _ in range(10 * len(self.flushed) + 10):
                self.feed.step()
                self.broker.deliver(10**6)
                for key, log in self.broker.logs.items():
                    got |= {entry.value for entry in log}
                    assert self.broker.first[key] <= self.broker.commits.get(key, 0) or key[0] == DEAD
                    self.broker.commits[key] = len(log)
                self.feed.settle(2)
            missing = {message.value for message in self.flushed} - self.settled - got
            assert not missing, "flushed, never done, and not announced any more"
            assert self.homes[2].open_count() == 0
        finally:
            self.close()
            shutil.rmtree(self.home)


def test_what_was_flushed_is_announced_in_order_until_it_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_feed, "STEP_ITEMS_MAX", 3)
    monkeypatch.setattr(journal_feed, "OUTSTANDING_BYTES_MAX", BROKER_BYTES // 2)
    JournalMachine.TestCase.settings = examples(60, steps=40)
    JournalMachine.TestCase("runTest").runTest()
