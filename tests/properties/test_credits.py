"""The bound on what a reader holds: messages of a poll come, become payloads, shrink, end; the reader is killed."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.actors.backpressure import Credits
from tests.properties.profiles import examples

MESSAGE_BYTES, POLL_MESSAGES, PAYLOAD_BYTES = 300, 4, 700


@dataclass(eq=False)
class Document:
    message_bytes: int
    payload_bytes: int | None = None  # None: not fetched


class CreditsMachine(RuleBasedStateMachine):
    """Each turn of the reader asks whether to hold back, and polls if not; documents go their way in between."""

    @initialize(items_max=st.integers(1, 12), bytes_max=st.integers(1, 1500))
    def begin(self, items_max: int, bytes_max: int) -> None:
        self.items_max, self.bytes_max = items_max, bytes_max
        self.kill()

    @rule()
    def kill(self) -> None:
        self.credits = Credits(self.items_max, self.bytes_max)
        self.documents: list[Document] = []
        self.was_paused = False

    def held(self) -> int:
        return sum(one.message_bytes + (one.payload_bytes or 0) for one in self.documents)

    @rule(sizes=st.lists(st.integers(0, MESSAGE_BYTES), max_size=POLL_MESSAGES), raced=st.booleans())
    def turn(self, sizes: list[int], raced: bool) -> None:
        is_full = len(self.documents) >= self.items_max or self.held() >= self.bytes_max
        is_below_half = len(self.documents) * 2 <= self.items_max and self.held() * 2 <= self.bytes_max
        paused = self.credits.should_pause()
        if is_full:
            assert paused, "at a bound nothing more is polled"
        elif not self.was_paused:
            assert not paused, "below both bounds it runs"
        if self.was_paused:
            assert paused == (not is_below_half), "it resumes at half, neither before nor later"
        assert (self.credits.why_full() is not None) == is_full
        self.was_paused = paused
        if paused:
            return
        if raced:  # the event loop admits a document between the question and the poll
            self.fetch(0)
        for size in sizes[: max(1, self.items_max - len(self.documents))]:
            self.credits.take(size)
            self.documents.append(Document(size))

    @rule(reserve=st.integers(0, PAYLOAD_BYTES))
    def fetch(self, reserve: int) -> None:
        waiting = [one for one in self.documents if one.payload_bytes is None]
        if not waiting:
            return
        fits = self.held() + reserve <= self.bytes_max
        is_alone = not any(one.payload_bytes is not None for one in self.documents)
        admitted = self.credits.admit(reserve)
        assert admitted == (fits or is_alone), "whatever fits goes, and one always does"
        if admitted:
            waiting[0].payload_bytes = reserve

    @precondition(lambda self: any(one.payload_bytes for one in self.documents))
    @rule(data=st.data())
    def extracted(self, data: st.DataObject) -> None:
        """The payload turns out smaller than what was reserved."""
        one = data.draw(st.sampled_from([one for one in self.documents if one.payload_bytes]))
        assert one.payload_bytes
        size = data.draw(st.integers(0, one.payload_bytes))
        self.credits.resize(one.payload_bytes, size)
        one.payload_bytes = size

    @precondition(lambda self: self.documents)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.documents))
        if one.payload_bytes is not None:
            self.credits.drop(one.payload_bytes)
        self.credits.give(one.message_bytes)
        self.documents.remove(one)

    @invariant()
    def what_is_held_is_known_and_within_the_bound(self) -> None:
        assert self.credits.items == len(self.documents)
        assert self.credits.held_bytes == self.held()
        assert self.held() <= self.bytes_max + POLL_MESSAGES * MESSAGE_BYTES + PAYLOAD_BYTES
        assert len(self.documents) <= self.items_max

    def teardown(self) -> None:
        """Whatever the bounds: left alone, everything is fetched and ended, and the flow goes on."""
        if not hasattr(self, "credits"):
            return
        while self.documents:
            self.fetch(PAYLOAD_BYTES)
            one = next(one for one in self.documents if one.payload_bytes is not None)
            self.credits.drop(one.payload_bytes or 0)
            self.credits.give(one.message_bytes)
            self.documents.remove(one)
        assert not self.credits.should_pause()


TestWhatAReaderHoldsIsBoundedAndTheFlowNeverStops = CreditsMachine.TestCase
TestWhatAReaderHoldsIsBoundedAndTheFlowNeverStops.settings = examples(80)
