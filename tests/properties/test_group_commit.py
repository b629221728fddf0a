"""The writer's batches against a plain queue, while the clock runs and the writer is killed."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shoal.actors.group_commit import GroupCommit
from tests.properties.profiles import examples

LINGER_S = 0.5


class GroupCommitMachine(RuleBasedStateMachine):
    """A sender keeps what was not acknowledged, and sends it again, in order, to the next writer."""

    # Few and round sizes, so that batches are exactly full as often as nearly, and often not at all.
    @initialize(rows_max=st.sampled_from([1, 20, 40, 500]), bytes_max=st.sampled_from([100, 200, 400, 5_000]))
    def begin(self, rows_max: int, bytes_max: int) -> None:
        self.rows_max, self.bytes_max = rows_max, bytes_max
        self.now = 0.0
        self.sent: list[tuple[int, int, int]] = []  # number, rows, bytes
        self.written: list[int] = []
        self.start()

    def start(self) -> None:
        self.group: GroupCommit[int] = GroupCommit(self.rows_max, self.bytes_max, LINGER_S)
        self.waiting: list[tuple[int, int, int]] = []
        self.oldest_since: float | None = None  # of the batch that is open

    def arrive(self, entry: tuple[int, int, int]) -> None:
        self.group.add(*entry, now=self.now)
        self.waiting.append(entry)
        self.oldest_since = self.now if self.oldest_since is None else self.oldest_since

    @rule(rows=st.sampled_from([0, 1, 5, 10, 20, 60]), size=st.sampled_from([0, 1, 50, 100, 200, 600]))
    def add(self, rows: int, size: int) -> None:
        entry = (len(self.sent), rows, size)
        self.sent.append(entry)
        self.arrive(entry)

    @rule(ticks=st.integers(0, 48))
    def time_passes(self, ticks: int) -> None:
        self.now += ticks / 64  # exact in floats

    @rule()
    def take(self) -> None:
        batch = self.group.take(self.now)
        rest = self.waiting[len(batch) :]
        entries, self.waiting = self.waiting[: len(batch)], rest
        assert batch == [number for number, _, _ in entries], "in order, nothing left out"
        assert batch or not rest, "a turn always makes progress"
        if len(entries) > 1:
            assert sum(rows for _, rows, _ in entries) <= self.rows_max
            assert sum(size for _, _, size in entries) <= self.bytes_max
        if rest:
            rows, size = (sum(entry[i] for entry in [*entries, rest[0]]) for i in (1, 2))
            assert rows > self.rows_max or size > self.bytes_max, "a batch is as full as it may be"
        self.oldest_since = self.now if rest else None
        self.written += batch  # durable with the commit

    @rule()
    def kill(self) -> None:
        """The writer dies with what it holds; the senders bring it to the next one."""
        self.start()
        for entry in self.sent[len(self.written) :]:
            self.arrive(entry)

    @invariant()
    def a_batch_is_due_when_it_is_full_or_old(self) -> None:
        if not hasattr(self, "group"):
            return
        assert len(self.group) == len(self.waiting)
        due_in = self.group.due_in(self.now)
        if not self.waiting:
            assert due_in is None, "nothing waits: no need to wake"
            return
        assert due_in is not None
        assert 0 <= due_in <= LINGER_S
        rows, size = (sum(entry[i] for entry in self.waiting) for i in (1, 2))
        assert self.oldest_since is not None
        is_full = rows >= self.rows_max or size >= self.bytes_max
        assert due_in == (0 if is_full else max(0.0, self.oldest_since + LINGER_S - self.now))

    @invariant()
    def everything_is_written_once_and_in_order(self) -> None:
        if hasattr(self, "group"):
            assert self.written == list(range(len(self.written)))


TestBatchesLoseNothingAndKeepNobodyWaiting = GroupCommitMachine.TestCase
TestBatchesLoseNothingAndKeepNobodyWaiting.settings = examples(60)
