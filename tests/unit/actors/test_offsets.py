"""The offset tracker against a simple model, and the stories that lost data elsewhere."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.actors.offsets import OffsetTracker

P0 = ("t", 0)


def test_nothing_is_committed_before_the_first_offset_is_done() -> None:
    tracker = OffsetTracker()
    epoch = tracker.assign([P0])
    tracker.start(P0, 7)
    tracker.start(P0, 8)
    tracker.finish(P0, epoch, 8)
    assert tracker.to_commit() == {}


def test_the_mark_passes_gaps_in_log_order() -> None:
    tracker = OffsetTracker()
    epoch = tracker.assign([P0])
    for offset in (3, 4, 9, 20):
        tracker.start(P0, offset)
    for offset in (9, 4, 3):
        tracker.finish(P0, epoch, offset)
    assert tracker.to_commit() == {P0: 10}


def test_an_offset_is_committed_only_when_the_broker_said_so() -> None:
    tracker = OffsetTracker()
    epoch = tracker.assign([P0])
    tracker.start(P0, 0)
    tracker.finish(P0, epoch, 0)
    tracker.sent({P0: 1})
    assert tracker.to_commit() == {}, "one commit at a time"
    tracker.answered(P0, 1, ok=False)
    assert tracker.committed_offset(P0) is None
    assert tracker.to_commit() == {P0: 1}, "a refused commit is made again"
    tracker.sent({P0: 1})
    tracker.answered(P0, 1, ok=True)
    assert tracker.to_commit() == {}
    assert tracker.committed_offset(P0) == 1


def test_what_is_done_is_committed_also_where_the_next_offset_started_before_the_first_commit() -> None:
    tracker = OffsetTracker()
    epoch = tracker.assign([P0])
    tracker.start(P0, 7)
    tracker.finish(P0, epoch, 7)
    tracker.start(P0, 8)  # stuck, perhaps for hours: a restart must not redo 7
    assert tracker.to_commit() == {P0: 8}


def test_a_completion_of_an_older_assignment_is_discarded() -> None:
    # 1. offset 5 is in flight; 2. the partition leaves and comes back, 5 is delivered again;
    # 3. the first delivery finishes late: it must not move the new assignment's mark.
    tracker = OffsetTracker()
    old = tracker.assign([P0])
    tracker.start(P0, 5)
    tracker.release([P0])
    new = tracker.assign([P0])
    tracker.start(P0, 5)
    assert not tracker.finish(P0, old, 5)
    assert tracker.to_commit() == {}
    assert tracker.finish(P0, new, 5)
    assert tracker.to_commit() == {P0: 6}


class TrackerMachine(RuleBasedStateMachine):
    """One partition against a plain list of [offset, done]."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker = OffsetTracker()
        self.epoch = self.tracker.assign([P0])
        self.log: list[list[int]] = []
        self.next = 0
        self.confirmed: int | None = None
        self.flying: int | None = None

    @rule(gap=st.integers(0, 3))
    def deliver(self, gap: int) -> None:
        self.next += gap
        self.tracker.start(P0, self.next)
        self.log.append([self.next, 0])
        self.next += 1

    @precondition(lambda self: any(not done for _, done in self.log))
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from([entry for entry in self.log if not entry[1]]))
        entry[1] = 1
        assert self.tracker.finish(P0, self.epoch, entry[0])

    @rule()
    def send(self) -> None:
        due = self.tracker.to_commit()
        if due:
            assert self.flying is None
            self.tracker.sent(due)
            self.flying = due[P0]

    @precondition(lambda self: self.flying is not None)
    @rule(ok=st.booleans())
    def answer(self, ok: bool) -> None:
        assert self.flying is not None
        self.tracker.answered(P0, self.flying, ok)
        self.confirmed = self.flying if ok else self.confirmed
        self.flying = None

    @rule()
    def reassign(self) -> None:
        self.tracker.release([P0])
        self.epoch = self.tracker.assign([P0])
        self.log, self.confirmed, self.flying = [], None, None

    @invariant()
    def nothing_undone_is_below_the_mark(self) -> None:
        self.tracker.check_invariants()
        mark = self.tracker.next_offset(P0)
        undone = [offset for offset, done in self.log if not done]
        for due in (*self.tracker.to_commit().values(), *([self.flying] if self.flying is not None else [])):
            assert all(offset >= due for offset in undone)
        if self.log and self.flying is None:
            done_head = not undone or undone[0] > self.log[0][0]
            due = self.tracker.to_commit().get(P0, self.confirmed)
            assert due == (mark if done_head else self.confirmed), "whatever is done at the head is due"
        if self.log and not undone:
            assert mark == self.log[-1][0] + 1, "all done: the mark stands behind the last"
        assert self.tracker.committed_offset(P0) == self.confirmed
        assert self.tracker.in_flight(P0) == len(undone)


TestTracker = TrackerMachine.TestCase
TestTracker.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
