"""A message dies, is replayed, dies again, succeeds: nothing a replay needs is lost, and no state is hidden.

The model is what truly happened to each message. Readers and operators are killed between any two of their steps
(a reader then redoes the message), and the compaction of the state topic keeps the last record under each key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.errors import DeadReason
from shoal.records import Failure, Outcome, Position
from shoal.sources.dead_letter_record import is_original_of, read_back, replay_message, value_bytes
from shoal.sources.dead_letter_state import (
    State,
    StateRecord,
    now_of,
    parse_key,
    parse_state,
    replay_of,
    replayed,
    settled,
)
from shoal.sources.dead_letters import OWN_HEADERS, dead_letter
from shoal.sources.messages import REPLAY_HEADER, RawMessage, origin_of
from tests.properties.profiles import examples

AT = datetime(2025, 1, 20, 14, 30, tzinfo=UTC)
TOPIC, DEAD = "t", "t_dlq"
NAMES = st.text(max_size=12) | st.sampled_from(["shoal.outcome.id", "shoal.dlq.reason", "shoal.dlq.replayed",
                                                "__connect.errors.topic", "a"])  # fmt: skip
HEADERS = st.lists(st.tuples(NAMES, st.none() | st.binary(max_size=20)), max_size=5).map(tuple)
MESSAGES = st.builds(
    RawMessage,
    st.builds(Position, st.just("c"), st.just(TOPIC), st.integers(0, 9), st.integers(0, 2**40), st.integers(-1, 2**42)),
    st.none() | st.binary(max_size=40), st.none() | st.binary(max_size=400), HEADERS,
)  # fmt: skip
FAILURES = st.builds(Failure, st.sampled_from(DeadReason), st.text(max_size=1500), st.sampled_from(["fetch", "write"]))


def own(raw: RawMessage) -> tuple[bytes | None, list[tuple[str, bytes | None]]]:
    """What a message is but for its value: key, and headers that are the sender's."""
    return raw.key, [(name, data) for name, data in raw.headers if not name.startswith((*OWN_HEADERS, REPLAY_HEADER))]


@given(MESSAGES, FAILURES, st.integers(0, 2**31 - 1), st.integers(0, 400))
@examples(150)
def test_a_dead_letter_holds_what_its_replay_needs(raw: RawMessage, failure: Failure, retries: int, whole: int) -> None:
    """`whole`: how large a value the topic takes; a larger one is a stub, by which the original is known again."""
    assume(b"shoal_stub" not in (raw.value or b""))
    topic, key, value, headers = dead_letter(raw, failure, AT, retries, value_bytes_max=whole)
    assert topic == DEAD
    letter = read_back(RawMessage(Position("c", DEAD, 0, 7, 1), key, value, tuple(headers)))
    at = raw.position
    assert (letter.topic, letter.source_partition, letter.source_offset) == (at.topic, at.partition, at.offset)
    assert (letter.reason, letter.stage, letter.failed_at) == (failure.reason, failure.stage, AT)
    assert letter.message == (failure.message[:1000].encode(errors="replace").decode() or None)
    assert letter.retry_count == retries
    assert letter.original_timestamp_ms == (at.timestamp_ms if at.timestamp_ms >= 0 else None)
    assert letter.is_incomplete == (raw.value is not None and len(raw.value) > whole)
    assert is_original_of(letter, raw)
    other = RawMessage(at, raw.key, (raw.value or b"") + b"!", raw.headers)
    assert not is_original_of(letter, other)
    assert value_bytes(letter) == (None if raw.value is None else len(raw.value))
    again = RawMessage(at, *replay_message(letter, raw if letter.is_incomplete else None)[1:3], ())
    assert again.value == raw.value
    sent_topic, sent_key, _, sent_headers = replay_message(letter, raw if letter.is_incomplete else None)
    assert sent_topic == TOPIC
    assert own(RawMessage(at, sent_key, None, tuple(sent_headers))) == own(raw)


@dataclass
class Story:
    """One message of a sender, and what truly became of it. `letters` are its deaths, oldest first."""

    raw: RawMessage
    letters: list[str] = field(default_factory=list)
    succeeded: bool = False


@dataclass(eq=False)
class InTopic:
    """A message in the work topic that no reader is done with."""

    raw: RawMessage
    story: Story
    answers: str | None  # the dead letter that it replays


class ReplayMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.topic: list[InTopic] = []
        self.dead: dict[str, tuple[RawMessage, Story]] = {}
        self.states: list[RawMessage] = []
        self.late: list[tuple[str, bytes, bytes]] = []  # `replayed` records that their senders have yet to write
        self.answered: dict[str, set[Outcome]] = {}  # letter -> outcomes recorded of its replays
        self.sent: dict[str, int] = {}  # letter -> count of its last replay
        self.offset = 0

    def position(self, topic: str) -> Position:
        self.offset += 1
        return Position("c", topic, 0, self.offset, self.offset)

    @rule(message=MESSAGES)
    def announce(self, message: RawMessage) -> None:
        headers = tuple(one for one in message.headers if not one[0].startswith(OWN_HEADERS))
        raw = RawMessage(self.position(TOPIC), message.key, message.value, headers)
        self.topic.append(InTopic(raw, Story(raw), None))

    def record(self, record: tuple[str, bytes, bytes] | None) -> None:
        assert record is not None
        topic, key, value = record
        self.states.append(RawMessage(self.position(topic), key, value))

    @precondition(lambda self: self.topic)
    @rule(data=st.data(), dies=st.booleans(), killed_after=st.sampled_from([0, 1, 2, 2, 2]))
    def read(self, data: st.DataObject, dies: bool, killed_after: int) -> None:
        """A reader ends a message: dead letter (if it dies), then the state of the replay, then the offset.

        Killed before the offset is committed it does everything again, perhaps with another end.
        """
        item = data.draw(st.sampled_from(self.topic))
        replay = replay_of(item.raw)
        assert (replay.dead_letter_id if replay else None) == item.answers
        if killed_after == 0:
            return
        outcome = Outcome.DEAD_LETTERED if dies else Outcome.INDEXED
        failure = Failure(DeadReason.OBJECT_MISSING, "gone", "fetch") if dies else None
        if dies:
            topic, key, value, headers = dead_letter(item.raw, failure, AT, replay.count if replay else 0)  # type: ignore[arg-type]
            letter = RawMessage(self.position(topic), key, value, tuple(headers))
            name = read_back(letter).id
            self.dead[name] = (letter, item.story)
            item.story.letters.append(name)
        if item.answers is not None:
            self.record(settled(item.raw, outcome, AT + timedelta(seconds=self.offset), failure))
            self.answered.setdefault(item.answers, set()).add(outcome)
        item.story.succeeded |= not dies
        if killed_after == 2:
            self.topic.remove(item)

    @precondition(lambda self: self.dead)
    @rule(data=st.data(), records=st.sampled_from(["at once", "late", "never"]))
    def replay(self, data: st.DataObject, records: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.dead)))
        raw, story = self.dead[name]
        letter = read_back(raw, self.state_of(name))
        topic, key, value, headers = replay_message(letter)
        message = RawMessage(self.position(topic), key, value, tuple(headers))
        assert message.value == story.raw.value
        assert own(message) == own(story.raw), "however often it died, it is sent as it was"
        assert origin_of(message) == story.raw.position, "it stands in the order where it first stood"
        again = replay_of(message)
        assert again is not None
        assert again.count > letter.replays, "each replay counts"
        self.topic.append(InTopic(message, story, name))
        record = replayed(name, again.count, AT)
        if records == "at once":
            self.record(record)
        elif records == "late":
            self.late.append(record)
        self.sent[name] = max(self.sent.get(name, 0), again.count)

    @precondition(lambda self: self.late)
    @rule()
    def the_sender_records_at_last(self) -> None:
        self.record(self.late.pop(0))

    @rule()
    def compact(self) -> None:
        last = {raw.key: raw for raw in self.states}
        self.states = sorted(last.values(), key=lambda raw: raw.position.offset)

    def state_of(self, name: str) -> StateRecord | None:
        sent = ended = None
        for raw in self.states:
            record, named = parse_state(raw), parse_key(raw.key)
            assert record is not None, "we can read our own records"
            assert named is not None
            if named[0] == name:
                sent, ended = (record, ended) if named[1] else (sent, record)
        return now_of(sent, ended)

    @invariant()
    def the_state_of_a_letter_is_what_became_of_its_last_replay(self) -> None:
        for name in self.dead:
            state = self.state_of(name)
            under_way = any(item.answers == name for item in self.topic)
            if name not in self.sent:
                assert state is None, "untouched: open"
            elif not under_way:
                assert state is not None
                assert state.state in (State.SUCCEEDED, State.RETURNED), "no outcome is hidden by a late record"
                ends = {State.SUCCEEDED: Outcome.INDEXED, State.RETURNED: Outcome.DEAD_LETTERED}
                assert ends[state.state] in self.answered[name]
            elif state is not None and state.state is State.REPLAYED:
                assert state.replays <= self.sent[name]

    @invariant()
    def a_letter_names_the_one_that_it_came_back_from(self) -> None:
        for raw, story in self.dead.values():
            letter = read_back(raw)
            assert letter.replay_of is None or letter.replay_of in story.letters
            assert (letter.replay_of is None) == (letter.replays == 0)
            assert letter.retry_count == letter.replays


TestDeathAndReplayLoseNothingAndHideNothing = ReplayMachine.TestCase
TestDeathAndReplayLoseNothingAndHideNothing.settings = examples(60, steps=30)
