"""What a reader holds, against a broker that remembers: partitions move, commits get lost, readers are killed.

The model is the durable truth: per partition the log, which of its offsets took effect, and the group's committed
offset. Two readers share the partitions; each may be killed at any moment, and comes back knowing nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.actors.backpressure import Credits
from shoal.actors.intake import Held, Intake
from shoal.actors.offsets import TopicPartition
from tests.properties.profiles import examples

KEYS: tuple[TopicPartition, ...] = (("t", 0), ("commands", 0))


@dataclass
class Log:
    """One partition at the broker. Offsets have gaps, as after compaction and transactions."""

    offsets: list[int]
    effects: set[int] = field(default_factory=set)  # offsets whose work is durable
    committed: int | None = None


@dataclass(eq=False)
class Working:
    """An item in a pipeline; `assignment` is the count of its partition's assignments when it was delivered."""

    held: Held[None]
    assignment: int


@dataclass
class Commit:
    key: TopicPartition
    offset: int
    assignment: int
    answer: bool | None = None  # the broker's; None: it has not seen it


class Reader:
    """A reader process: an intake, and what its work and its commits are up to."""

    def __init__(self) -> None:
        self.intake: Intake[None] = Intake(Credits(items_max=10**6, bytes_max=10**12))
        self.working: list[Working] = []
        self.commits: list[Commit] = []
        self.position: dict[TopicPartition, int] = {}  # the consumer's
        self.confirmed: dict[TopicPartition, int] = {}  # what it was told in this assignment
        self.surprised: set[TopicPartition] = set()  # was told the answer to a commit of an older assignment


class IntakeMachine(RuleBasedStateMachine):
    @initialize(gaps=st.lists(st.lists(st.integers(1, 3), min_size=3, max_size=8), min_size=2, max_size=2))
    def begin(self, gaps: list[list[int]]) -> None:
        self.logs = {
            key: Log([sum(steps[:count]) for count in range(len(steps))]) for key, steps in zip(KEYS, gaps, strict=True)
        }
        self.readers = [Reader(), Reader()]
        self.owner: dict[TopicPartition, Reader | None] = dict.fromkeys(KEYS)
        self.assignments = dict.fromkeys(KEYS, 0)
        self.rebalance(set(KEYS), 0, is_lost=False)

    def is_live(self, reader: Reader, key: TopicPartition, assignment: int) -> bool:
        return self.owner[key] is reader and self.assignments[key] == assignment

    def at_broker(self, commit: Commit) -> None:
        """The broker decides on a commit, and refuses those of an assignment that ended (its generation)."""
        commit.answer = self.assignments[commit.key] == commit.assignment
        if commit.answer:
            self.logs[commit.key].committed = commit.offset

    # --- the group ----------------------------------------------------------------------------

    @rule(keys=st.sets(st.sampled_from(KEYS), min_size=1), number=st.integers(0, 1), is_lost=st.booleans())
    def rebalance(self, keys: set[TopicPartition], number: int, is_lost: bool) -> None:
        """`keys` go to a reader. Who had them commits first (revoked), or hears of it too late (lost)."""
        for reader in self.readers:
            had = [key for key in KEYS if key in keys and self.owner[key] is reader]
            if not is_lost:
                for key, offset in reader.intake.offsets.to_commit(had).items():
                    self.at_broker(Commit(key, offset, self.assignments[key]))
            in_flight = [one.held for one in reader.working if one.held.key in had and self.of_now(reader, one)]
            gone = reader.intake.release(had)
            assert {id(held) for held in gone} == {id(held) for held in in_flight}
            assert len(gone) == len(in_flight)
            for key in had:
                del reader.position[key]
                reader.confirmed.pop(key, None)
                reader.surprised.discard(key)
        new = self.readers[number]
        new.intake.assign(keys)
        for key in keys:
            self.owner[key] = new
            self.assignments[key] += 1
            new.position[key] = self.logs[key].committed or 0

    def of_now(self, reader: Reader, one: Working) -> bool:
        return self.is_live(reader, one.held.key, one.assignment)

    @rule(number=st.integers(0, 1))
    def kill(self, number: int) -> None:
        """kill -9: what it knew, worked on and had not yet sent is gone; what it sent may still arrive."""
        dead, self.readers[number] = self.readers[number], Reader()
        for commit in dead.commits:
            if commit.answer is None and self.is_live(dead, commit.key, commit.assignment):
                self.at_broker(commit)
        for key in KEYS:
            if self.owner[key] is dead:
                self.owner[key] = None

    # --- a reader's life ----------------------------------------------------------------------

    @rule(key=st.sampled_from(KEYS), size=st.integers(0, 1000), count=st.integers(1, 4))
    def deliver(self, key: TopicPartition, size: int, count: int) -> None:
        for reader in self.readers:
            if self.owner[key] is not reader:
                assert reader.intake.deliver(key, 0, size, None) is None, "not ours: not taken"
                continue
            for offset in [offset for offset in self.logs[key].offsets if offset >= reader.position[key]][:count]:
                held = reader.intake.deliver(key, offset, size, None)
                assert held is not None
                reader.position[key] = offset + 1
                reader.working.append(Working(held, self.assignments[key]))

    @precondition(lambda self: any(reader.working for reader in self.readers))
    @rule(data=st.data(), count=st.integers(1, 4))
    def end(self, data: st.DataObject, count: int) -> None:
        """Some items end, in any order: their work is durable."""
        for _ in range(count):
            some = [(reader, one) for reader in self.readers for one in reader.working]
            if some:
                self.end_one(*data.draw(st.sampled_from(some)))

    @precondition(lambda self: any(not self.of_now(reader, one) for reader in self.readers for one in reader.working))
    @rule(data=st.data(), is_abandoned=st.booleans())
    def end_late(self, data: st.DataObject, is_abandoned: bool) -> None:
        """An item whose partition went ends by being abandoned, or all the same."""
        late = [(reader, one) for reader in self.readers for one in reader.working if not self.of_now(reader, one)]
        self.end_one(*data.draw(st.sampled_from(late)), is_abandoned=is_abandoned)

    def end_one(self, reader: Reader, one: Working, is_abandoned: bool = False) -> None:
        if not is_abandoned:
            self.logs[one.held.key].effects.add(one.held.offset)
        reader.working.remove(one)
        is_live = self.of_now(reader, one)
        assert reader.intake.end(one.held) == is_live, "a late end of an older assignment moves nothing"

    @rule()
    def commit(self) -> None:
        for reader in self.readers:
            for one in [one for one in reader.commits if one.answer is not None]:
                self.hear_of(reader, one)
            due = reader.intake.offsets.to_commit()
            reader.intake.offsets.sent(due)
            for key, offset in due.items():
                assert self.owner[key] is reader, "only what is ours"
                now = self.assignments[key]
                under_way = [one for one in reader.commits if (one.key, one.assignment) == (key, now)]
                assert not under_way or key in reader.surprised, "one commit at a time"
                reader.commits.append(Commit(key, offset, now))

    @precondition(lambda self: any(one.answer is None for reader in self.readers for one in reader.commits))
    @rule(data=st.data(), is_refused=st.booleans())
    def reach_the_broker(self, data: st.DataObject, is_refused: bool) -> None:
        """The oldest commit that is under way from a reader arrives."""
        waiting = [[one for one in reader.commits if one.answer is None] for reader in self.readers]
        commit = data.draw(st.sampled_from([commits[0] for commits in waiting if commits]))
        if is_refused:
            commit.answer = False
        else:
            self.at_broker(commit)

    @precondition(lambda self: any(reader.commits and reader.commits[0].answer is not None for reader in self.readers))
    @rule(data=st.data())
    def hear(self, data: st.DataObject) -> None:
        """An answer arrives, perhaps only when its partition came back in another assignment."""
        able = [reader for reader in self.readers if reader.commits and reader.commits[0].answer is not None]
        reader = data.draw(st.sampled_from(able))
        self.hear_of(reader, reader.commits[0])

    def hear_of(self, reader: Reader, commit: Commit) -> None:
        reader.commits.remove(commit)
        assert commit.answer is not None
        reader.intake.offsets.answered(commit.key, commit.offset, commit.answer)
        if self.owner[commit.key] is reader:
            if commit.answer:
                reader.confirmed[commit.key] = commit.offset
            if commit.assignment != self.assignments[commit.key]:
                reader.surprised.add(commit.key)

    # --- what must always hold ----------------------------------------------------------------

    @invariant()
    def all_below_a_committed_offset_took_effect(self) -> None:
        for key, log in self.logs.items():
            below = [offset for offset in log.offsets if offset < (log.committed or 0)]
            assert log.effects.issuperset(below), f"{key}: lost by the commit of {log.committed}"

    @invariant()
    def each_reader_knows_what_it_holds(self) -> None:
        for reader in self.readers:
            intake = reader.intake
            intake.offsets.check_invariants()
            assert set(intake.offsets.owned()) == {key for key in KEYS if self.owner[key] is reader}
            live = [one.held for one in reader.working if self.of_now(reader, one)]
            assert {id(held) for held in intake.in_flight()} == {id(held) for held in live}
            assert intake.credits.items == len(reader.working), "credits are given when the work ends, not before"
            assert intake.credits.message_bytes == sum(one.held.size_bytes for one in reader.working)
            for key in intake.offsets.owned():
                assert intake.offsets.committed_offset(key) == reader.confirmed.get(key), "only what the broker said"
                assert intake.offsets.in_flight(key) == sum(held.key == key for held in live)

    @invariant()
    def a_mark_stands_at_the_first_offset_that_is_not_done(self) -> None:
        for reader in self.readers:
            marks = reader.intake.marks()
            for key, mark in marks.items():
                undone = [one.held.offset for one in reader.working if one.held.key == key and self.of_now(reader, one)]
                if undone:
                    assert mark <= min(undone)
                    between = [offset for offset in self.logs[key].offsets if mark <= offset < min(undone)]
                    assert not between, "what is done at the head is behind the mark"
                else:
                    assert mark == reader.position[key], "all done: the mark stands behind the last"

    def teardown(self) -> None:
        """Left in peace, one reader finishes everything, and the broker knows."""
        if not hasattr(self, "readers"):
            return
        self.rebalance(set(KEYS), 0, is_lost=True)
        reader = self.readers[0]
        reader.commits.clear()
        for key in KEYS:
            self.deliver(key, 1, 10**6)
        for one in list(reader.working):
            self.end_one(reader, one)
        self.commit()
        for commit in reader.commits:
            self.at_broker(commit)
        for log in self.logs.values():
            assert log.effects == set(log.offsets), "every message took effect"
            assert log.committed is not None
            assert log.committed > log.offsets[-1]
        assert reader.intake.credits.items == reader.intake.credits.message_bytes == 0


TestNoKillOrRebalanceLosesAMessage = IntakeMachine.TestCase
TestNoKillOrRebalanceLosesAMessage.settings = examples(120, steps=50)
