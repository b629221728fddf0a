from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.errors import ConfigurationError, PermanentError, TransientError
from shoal.sources import journal as module
from shoal.sources.journal import KEPT_MS, MESSAGE_BYTES_MAX, Journal, JournalProducer

TOPIC = "scraper-notifications"


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.sqlite")
    yield journal
    journal.close()


def entries(journal: Journal, topic: str = TOPIC, partitions: int = 1, partition: int = 0) -> list[module.Entry]:
    return list(journal.open_entries(topic, partition, partitions, 0))


def test_what_was_flushed_is_there_for_another_process_as_it_was_sent(journal):
    producer = JournalProducer(journal)
    producer.send(TOPIC, b"k", b"v", [("a", b"\xff"), ("b", None)])
    producer.send(TOPIC, b"k", None)
    producer.flush(1.0)

    other = Journal(journal.path)
    first, second = entries(other)
    other.close()
    assert (first.key, first.value, first.headers) == (b"k", b"v", (("a", b"\xff"), ("b", None)))
    assert (second.value, second.headers) == (None, ())
    assert first.seq < second.seq


def test_nothing_is_announced_before_it_was_flushed(journal):
    JournalProducer(journal).send(TOPIC, b"k", b"v")
    assert entries(journal) == []


def test_one_key_stays_in_one_partition_and_every_entry_is_in_exactly_one(journal):
    producer = JournalProducer(journal)
    for number in range(200):
        producer.send(TOPIC, f"k{number % 20}".encode(), str(number).encode())
    producer.flush(1.0)
    by_partition = [entries(journal, partitions=3, partition=partition) for partition in range(3)]
    keys = [{entry.key for entry in part} for part in by_partition]
    assert sum(map(len, by_partition)) == 200
    assert sum(map(len, keys)) == len(set.union(*keys)) == 20
    assert all([e.seq for e in part] == sorted(e.seq for e in part) for part in by_partition)


def test_a_finished_entry_is_not_announced_again(journal):
    producer = JournalProducer(journal)
    for number in range(3):
        producer.send(TOPIC, b"k", str(number).encode())
    producer.flush(1.0)
    journal.finish([entries(journal)[1].seq], 1_000)
    journal.begin_life(2_000)
    assert [entry.value for entry in entries(journal)] == [b"0", b"2"]
    assert journal.open_count(TOPIC) == 2


def test_a_new_life_announces_the_newest_dead_letters_again_within_its_bound(journal, monkeypatch):
    monkeypatch.setattr(module, "DEAD_LETTERS_AGAIN_MAX", 3)
    producer = JournalProducer(journal)
    for number in range(5):
        producer.send(f"{TOPIC}_dlq", b"k", str(number).encode())
    producer.flush(1.0)
    journal.finish([entry.seq for entry in entries(journal, f"{TOPIC}_dlq")], 1_000)
    for _ in range(2):
        journal.begin_life(2_000)
        assert [entry.value for entry in entries(journal, f"{TOPIC}_dlq")] == [b"2", b"3", b"4"]


def test_only_done_entries_are_pruned_by_age_and_by_bytes(journal, monkeypatch):
    producer = JournalProducer(journal)
    for _ in range(4):
        producer.send(TOPIC, b"k", b"x" * 1000)
    producer.flush(1.0)
    old, recent, newest, _waiting = (entry.seq for entry in entries(journal))
    journal.finish([old], 1_000)
    journal.finish([recent, newest], KEPT_MS)
    monkeypatch.setattr(module, "KEPT_BYTES_MAX", 1500)
    journal.begin_life(KEPT_MS + 2_000)
    left = [row[0] for row in sqlite3.connect(journal.path).execute("SELECT seq FROM entries ORDER BY seq")]
    assert left == [newest, _waiting]


def test_a_message_that_the_broker_cannot_hold_is_refused_at_send(journal):
    producer = JournalProducer(journal)
    with pytest.raises(PermanentError, match="KAFKA_BROKERS"):
        producer.send(TOPIC, b"k", b"x" * (MESSAGE_BYTES_MAX + 1))
    producer.send(TOPIC, b"k", b"x" * (MESSAGE_BYTES_MAX - 1000))
    producer.flush(1.0)


def test_a_flush_that_could_not_write_raises_for_every_sender_concerned(tmp_path):
    """1. Two threads send. 2. The file is locked. 3. One flushes: it fails. 4. The other flushes: it must fail too."""
    journal = Journal(tmp_path / "journal.sqlite", busy_timeout_s=0.05)
    producer = JournalProducer(journal)
    sent, first_flushed = threading.Barrier(2), threading.Event()
    errors: list[str] = []

    def other() -> None:
        producer.send(TOPIC, b"other", b"v")
        sent.wait(5)
        first_flushed.wait(5)
        try:
            producer.flush(1.0)
        except TransientError:
            errors.append("other")

    thread = threading.Thread(target=other)
    thread.start()
    producer.send(TOPIC, b"mine", b"v")
    sent.wait(5)
    blocker = sqlite3.connect(journal.path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(TransientError):
        producer.flush(1.0)
    blocker.execute("ROLLBACK")
    first_flushed.set()
    thread.join(5)
    assert errors == ["other"]

    producer.send(TOPIC, b"mine", b"again")
    producer.flush(1.0)
    assert [entry.value for entry in entries(journal)] == [b"again"]


def test_many_processes_worth_of_connections_lose_nothing(tmp_path):
    path = tmp_path / "journal.sqlite"

    def write(name: int) -> None:
        mine = Journal(path)  # opened together: the first creates it
        producer = JournalProducer(mine)
        for number in range(20):
            producer.send(TOPIC, b"k", f"{name}:{number}".encode())
            producer.flush(1.0)
        mine.close()

    threads = [threading.Thread(target=write, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal = Journal(path)
    found = [entry.value for entry in entries(journal)]
    journal.close()
    assert len(found) == 120
    for name in range(6):
        mine = [value for value in found if value and value.startswith(f"{name}:".encode())]
        assert mine == [f"{name}:{number}".encode() for number in range(20)]


def test_a_damaged_file_is_named_and_not_overwritten(tmp_path):
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"this is no database, whatever it is" * 100)
    with pytest.raises(ConfigurationError, match=r"journal\.sqlite"):
        Journal(path)
    assert path.read_bytes().startswith(b"this is no database")


def test_a_journal_of_a_newer_layout_is_refused(tmp_path):
    path = tmp_path / "journal.sqlite"
    Journal(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ConfigurationError, match="layout 99"):
        Journal(path)


def states(journal: Journal) -> list[tuple[bytes | None, bytes | None]]:
    return [(entry.key, entry.value) for entry in entries(journal, f"{TOPIC}_dlq_state")]


def test_a_new_life_keeps_the_last_state_of_each_dead_letter_that_is_there(journal):
    producer = JournalProducer(journal)
    for _ in range(2):
        producer.send(f"{TOPIC}_dlq", b"k", b"dead")
    producer.flush(1.0)
    first, second = (entry.seq for entry in entries(journal, f"{TOPIC}_dlq"))
    one, two, gone = (f"{TOPIC}_dlq/0/{seq}".encode() for seq in (first, second, 999))
    for key, value in ((one, b"1"), (two, b"2"), (gone, b"3"), (b"garbage", b"4"), (one + b"#replayed", b"5")):
        producer.send(f"{TOPIC}_dlq_state", key, value)
    producer.send(f"{TOPIC}_dlq_state", one, b"6")
    producer.flush(1.0)
    for life in (1, 2):
        journal.finish([entry.seq for entry in entries(journal, f"{TOPIC}_dlq_state")], life)
        journal.begin_life(life + KEPT_MS * 10)
        assert states(journal) == [(two, b"2"), (one + b"#replayed", b"5"), (one, b"6")]


def test_states_are_not_pruned_before_their_dead_letters(journal, monkeypatch):
    producer = JournalProducer(journal)
    producer.send(f"{TOPIC}_dlq", b"k", b"dead")
    producer.send(f"{TOPIC}_dlq_state", f"{TOPIC}_dlq/0/1".encode(), b"purged")
    producer.flush(1.0)
    journal.finish([2], 1_000)
    monkeypatch.setattr(module, "KEPT_BYTES_MAX", 0)
    journal.begin_life(KEPT_MS + 2_000)
    assert states(journal) == [(f"{TOPIC}_dlq/0/1".encode(), b"purged")]


def test_done_entries_are_found_again_by_number_and_by_size(journal):
    producer = JournalProducer(journal)
    for value in (b"aa", b"b", b"cc", None):
        producer.send(TOPIC, b"k", value)
    producer.send("other", b"k", b"dd")
    producer.flush(1.0)
    journal.finish([1, 2], 1_000)
    assert [entry.seq for entry in journal.entries_between(TOPIC, 2, 4)] == [2, 3]
    assert [entry.value for entry in journal.entries_of_size(TOPIC, 2)] == [b"cc", b"aa"]
