"""Whatever way a log reaches the writer, and wherever it dies, the tables end the same.

A machine of one log in two partitions that share documents: messages are announced, delivered in any mixture and
cut, in order within a partition only; the writer dies before a batch is in, or after it is in and before its acks;
then what was not acknowledged comes again. At the end the tables are what the log says, read at once.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.records import Deletion, Embedded, Position
from shoal.store.planning import precedes
from tests.fixtures.documents import deletion, document, failed
from tests.fixtures.plan_tables import Tables

PARTITIONS = 2
SHARED = ("prod:ds:a", "prod:ds:b")
OWN = ("prod:ds:only-0", "prod:ds:only-1")
"""One document of each partition: a deletion by path concerns what lies there when it comes: one order counts."""


class Delivery(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.log: list[list[Embedded | Deletion]] = [[] for _ in range(PARTITIONS)]
        self.next = [0] * PARTITIONS  # to be delivered
        self.acked = [0] * PARTITIONS  # everything below is acknowledged
        self.now_ms = 1_000
        self.tables = Tables()
        self.crashes = 0

    @initialize(count=st.integers(0, 6), data=st.data())
    def some_messages(self, count: int, data: st.DataObject) -> None:
        for _ in range(count):
            self.announce(data)

    @rule(data=st.data())
    def announce(self, data: st.DataObject) -> None:
        partition = data.draw(st.integers(0, PARTITIONS - 1), "partition")
        self.now_ms += data.draw(st.integers(0, 1), "ms later")
        offset = len(self.log[partition])
        where = Position("cluster", "topic", partition, offset, self.now_ms)
        name = data.draw(st.sampled_from([*SHARED, OWN[partition]]), "id")
        path = f"s3://b/{name}" + data.draw(st.sampled_from(["", "", " moved"]), "path")
        kind = data.draw(st.sampled_from(["good", "good", "good", "failed", "deleted"]), "kind")
        if kind == "deleted":
            by_path = name == OWN[partition] and data.draw(st.booleans(), "by path")
            version_id = data.draw(st.sampled_from([None, "one", "two"])) if by_path else None
            self.log[partition].append(
                deletion(None, offset, s3_path=path, version_id=version_id, at=where)
                if by_path
                else deletion(name, offset, at=where)
            )
            return
        make = failed if kind == "failed" else document
        self.log[partition].append(
            make(
                name, offset, version=data.draw(st.sampled_from(["", "1", "2"])),
                content=data.draw(st.sampled_from("xyz")), chunks=data.draw(st.integers(0, 3)), at=where,
                location=path, version_id=data.draw(st.sampled_from([None, "one", "two"])),
            )
        )  # fmt: skip

    @precondition(lambda self: any(at < len(items) for at, items in zip(self.next, self.log, strict=True)))
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """One batch; its end is drawn."""
        batch: list[Embedded | Deletion] = []
        heads = list(self.next)
        for _ in range(data.draw(st.integers(1, 6), "size")):
            open_ones = [n for n in range(PARTITIONS) if heads[n] < len(self.log[n])]
            if not open_ones:
                break
            partition = data.draw(st.sampled_from(open_ones))
            item = self.log[partition][heads[partition]]
            batch += [item] * data.draw(st.integers(1, 2), "times")
            heads[partition] += 1
        end = data.draw(st.sampled_from(["acked", "acked", "not in", "in, not acked"]), "end")
        if end != "not in":
            self.tables.apply(batch)
        if end == "acked":
            self.next = heads
            self.acked = list(heads)
        else:
            self.crash(data)

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """What is not acknowledged comes again, and some of what is: offsets are committed late."""
        self.crashes += 1
        self.next = [data.draw(st.integers(0, acked), "from") for acked in self.acked]

    @invariant()
    def one_current_version_of_each_document_and_only_its_chunks(self) -> None:
        current = self.tables.current()
        for document_id, version, _ in self.tables.chunks.values():
            assert current[document_id][0] == version
            assert current[document_id][2], "what has chunks has text"

    def teardown(self) -> None:
        for partition, items in enumerate(self.log):
            for item in items[self.acked[partition] :]:
                self.tables.apply([item])
        at_once = Tables()
        merged = [item for items in self.log for item in items]
        for item in sorted(merged, key=lambda item: _position(item).timestamp_ms):  # stable: in order within each
            at_once.apply([item])
        # A deletion that a lower version overtook can't be mended (planning.py): such a document is known, and says so.
        unmended = self.tables.dropped | at_once.dropped
        for name in {*SHARED, *OWN} - unmended:
            assert _of(self.tables, name) == _of(at_once, name)
            if name in SHARED:
                assert self.tables.current().get(name) == _current(name, merged)
        for name in unmended & set(SHARED):
            assert (name in self.tables.current()) is (_current(name, merged) is not None)


def _position(item: Embedded | Deletion) -> Position:
    return item.position if isinstance(item, Deletion) else item.fetched.announcement.position


def _of(tables: Tables, name: str) -> tuple[object, ...]:
    """All that is kept of a document: its versions, what was deleted, its chunks."""
    versions = {
        key: (version.sha256, version.position, version.is_good, version.is_current)
        for key, version in tables.versions.items()
        if version.document_id == name
    }
    return versions, tables.tombstones.get(name), {k: v for k, v in tables.chunks.items() if v[0] == name}


def _current(name: str, log: list[Embedded | Deletion]) -> tuple[str, str, bool] | None:
    """The model: the greatest version that no deletion of the document stands after."""
    deletions = [item for item in log if isinstance(item, Deletion) and item.document_id == name]
    alive = [
        item
        for item in log
        if isinstance(item, Embedded)
        and item.fetched.announcement.document_id == name
        and not any(precedes(_position(item), gone.position) for gone in deletions)
    ]

    def rank(item: Embedded) -> tuple[object, ...]:
        announcement, at = item.fetched.announcement, item.fetched.announcement.position
        return (
            item.fetched.failure is None, announcement.version, at.timestamp_ms, at.partition, at.offset,
            item.fetched.sha256,
        )  # fmt: skip

    if not alive:
        return None
    greatest = max(alive, key=rank)
    return greatest.fetched.announcement.version, str(greatest.fetched.sha256), greatest.fetched.failure is None


TestDelivery = Delivery.TestCase
TestDelivery.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
