from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.cluster import journal_feed
from shoal.cluster.journal_feed import OUTSTANDING_BYTES_MAX, JournalFeed, PartitionKey
from shoal.sources.journal import MESSAGE_BYTES_MAX, Entry, Journal, JournalProducer

WORK, DEAD = "work", "work_dlq"


class FakeLog:
    """Partitions in memory; delivers when told, forgets its oldest beyond `bytes_max` as the mock does at 5 MiB."""

    def __init__(self, bytes_max: int = 5 * 1024 * 1024) -> None:
        self.bytes_max = bytes_max
        self.logs: dict[PartitionKey, list[Entry]] = {}
        self.first: dict[PartitionKey, int] = {}
        self.pending: list[tuple[PartitionKey, Entry, Callable[[int], None]]] = []
        self.commits: dict[PartitionKey, int] = {}

    def produce(self, entry: Entry, partition: int, delivered: Callable[[int], None]) -> None:
        self.pending.append(((entry.topic, partition), entry, delivered))

    def committed(self, keys: Collection[PartitionKey]) -> Mapping[PartitionKey, int]:
        return {key: self.commits[key] for key in keys if key in self.commits}

    def deliver(self, count: int = 10**9) -> None:
        now, self.pending = self.pending[:count], self.pending[count:]
        for key, entry, delivered in now:
            log = self.logs.setdefault(key, [])
            log.append(entry)
            first = self.first.setdefault(key, 0)
            while sum(item.size_bytes for item in log[first:]) > self.bytes_max:
                first += 1
            self.first[key] = first
            delivered(len(log) - 1)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.sqlite")
    yield journal
    journal.close()


def number_of(entry: Entry) -> int:
    return int((entry.value or b"").rstrip(b"."))


def append(journal: Journal, count: int, size: int = 100, topic: str = WORK, key: bytes = b"k") -> None:
    producer = JournalProducer(journal)
    for number in range(count):
        producer.send(topic, key, str(number).encode().ljust(size, b"."))
    producer.flush(1.0)


def feed_of(journal: Journal, log: FakeLog, partitions: int = 1) -> JournalFeed:
    return JournalFeed(journal, log, [WORK], partitions)


def test_entries_arrive_in_the_order_of_the_journal(journal):
    log = FakeLog()
    append(journal, 50)
    feed_of(journal, log).step()
    log.deliver()
    assert [number_of(entry) for entry in log.logs[WORK, 0]] == list(range(50))


def test_no_more_is_outstanding_than_the_broker_can_hold(journal):
    log, size = FakeLog(), 100_000
    append(journal, 60, size)
    feed = feed_of(journal, log)
    feed.step()
    assert 0 < len(log.pending) * size <= OUTSTANDING_BYTES_MAX
    log.deliver()
    feed.settle(1)
    feed.step()
    assert log.pending == []  # delivered is not done

    log.commits[WORK, 0] = len(log.logs[WORK, 0])
    feed.settle(2)
    feed.step()
    assert log.pending


def test_a_message_larger_than_the_bound_goes_alone(journal):
    log = FakeLog()
    append(journal, 1)
    append(journal, 1, MESSAGE_BYTES_MAX - 500)
    append(journal, 1)
    feed = feed_of(journal, log)
    for committed in (1, 2, 3):
        feed.step()
        assert len(log.pending) == 1
        log.deliver()
        log.commits[WORK, 0] = committed
        feed.settle(1)
    assert journal.open_count() == 0


def test_a_full_partition_does_not_hold_up_the_others(journal):
    log = FakeLog()
    append(journal, 40, 100_000, key=b"a")
    append(journal, 5, key=b"d")
    feed = feed_of(journal, log, partitions=2)
    feed.step()
    assert {entry.key for _, entry, _ in log.pending} == {b"a", b"d"}


def test_what_is_not_committed_is_fed_again_in_the_next_life(journal):
    log = FakeLog()
    append(journal, 10)
    feed = feed_of(journal, log)
    feed.step()
    log.deliver()
    log.commits[WORK, 0] = 4
    feed.settle(1)

    again = FakeLog()
    journal.begin_life(2)
    feed_of(journal, again).step()
    again.deliver()
    assert [number_of(entry) for entry in again.logs[WORK, 0]] == list(range(4, 10))


def test_dead_letters_are_done_when_the_broker_has_them(journal):
    log = FakeLog()
    append(journal, 5, topic=DEAD)
    feed = feed_of(journal, log)
    feed.step()
    feed.settle(1)
    assert journal.open_count() == 5
    log.deliver()
    assert feed.settle(2) == 0
    assert journal.open_count() == 0


def test_a_later_append_by_another_process_is_seen(journal):
    log = FakeLog()
    feed = feed_of(journal, log)
    with closing(Journal(journal.path)) as other:
        for count in range(4):
            feed.step()
            assert len(log.pending) == count
            append(other, 1)


class Feeding(RuleBasedStateMachine):
    """Appends, steps, deliveries, commits and new lives in any order: nothing is skipped, reordered or evicted."""

    directory: Path
    runs = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).runs += 1
        path = self.directory / f"{type(self).runs}.sqlite"
        self.journal, self.producer = Journal(path), Journal(path)
        self.appended = 0
        self.done = 0
        self.new_life()

    def teardown(self) -> None:
        self.journal.close()
        self.producer.close()

    @precondition(lambda self: self.steps > 3)
    @rule()
    def new_life(self) -> None:
        self.steps = 0
        self.log = FakeLog(bytes_max=5_000)
        self.journal.begin_life(1)
        self.feed = feed_of(self.journal, self.log)
        self.started_at = self.done

    @rule(count=st.integers(1, 5), size=st.sampled_from([10, 300, 2_500]))
    def append(self, count: int, size: int) -> None:
        producer = JournalProducer(self.producer)
        for _ in range(count):
            producer.send(WORK, b"k", str(self.appended).encode().ljust(size, b"."))
            self.appended += 1
        producer.flush(1.0)

    @rule(count=st.integers(0, 5))
    def step_and_deliver(self, count: int) -> None:
        self.steps += 1
        self.feed.step()
        self.log.deliver(count)

    @precondition(lambda self: self.log.logs)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        offset = data.draw(st.integers(self.log.commits.get((WORK, 0), 0), len(self.log.logs[WORK, 0])))
        self.log.commits[WORK, 0] = offset
        self.feed.settle(1)
        self.done = max(self.done, self.started_at + offset)

    @invariant()
    def nothing_is_skipped_or_evicted_before_it_was_committed(self) -> None:
        fed = [number_of(entry) for entry in self.log.logs.get((WORK, 0), [])]
        assert fed == list(range(self.started_at, self.started_at + len(fed)))
        assert self.log.first.get((WORK, 0), 0) <= self.log.commits.get((WORK, 0), 0)
        assert self.journal.open_count() == self.appended - self.done


def test_no_sequence_of_events_skips_reorders_or_loses_an_entry(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_feed, "STEP_ITEMS_MAX", 3)
    monkeypatch.setattr(journal_feed, "OUTSTANDING_BYTES_MAX", 2_000)
    machine = type("FeedingHere", (Feeding,), {"directory": tmp_path})
    machine.TestCase.settings = hypothesis_settings(max_examples=30, stateful_step_count=25, deadline=None)
    machine.TestCase().runTest()
