"""Breakers against a system that goes up and down, with callers that ask, probe, vanish and are killed."""

from __future__ import annotations

from collections import deque

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.actors.breaker import OPEN_AFTER, PAUSE_MAX_S, PROBE_S, WAIT_S, Breakers
from shoal.errors import TransientError
from tests.properties.profiles import examples

BUCKETS = ("s3://a", "s3://b")
CALLERS = tuple(f"k{number}" for number in range(4))


class BreakersMachine(RuleBasedStateMachine):
    """A caller that may call does; its call ends later, well or not. Some callers vanish in the middle of a call."""

    @initialize()
    def start(self) -> None:
        self.breakers = Breakers()
        self.now = 0.0
        self.in_a_row = dict.fromkeys(BUCKETS, 0)
        self.opened_at: dict[str, float | None] = dict.fromkeys(BUCKETS)
        self.calls: dict[tuple[str, str], float | None] = {}  # under way: since when it is a probe, or None
        self.quiet_until = dict.fromkeys(BUCKETS, 0.0)
        self.last_failer = dict.fromkeys(BUCKETS, "fresh")

    @rule()
    def kill(self) -> None:
        now = self.now
        self.start()
        self.now = now

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 4.0, 20.0, 130.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(bucket=st.sampled_from(BUCKETS), key=st.sampled_from(CALLERS))
    def ask(self, bucket: str, key: str) -> None:
        if (bucket, key) in self.calls:
            return
        wait = self.breakers.wait_s(bucket, key, self.now)
        assert 0 <= wait <= WAIT_S, "nobody sleeps past the recovery"
        is_open = self.opened_at[bucket] is not None
        if not is_open:
            assert wait == 0, "a system that is well is asked at once"
        elif wait == 0:
            assert self.now >= self.quiet_until[bucket], "an open breaker lets nobody through before its pause is over"
            probing = [at for (name, _), at in self.calls.items() if name == bucket and at is not None]
            assert all(self.now - at >= PROBE_S for at in probing), "one probe at a time"
        if wait == 0:
            self.calls[bucket, key] = self.now if is_open else None

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        bucket, key = data.draw(st.sampled_from(sorted(self.calls)))
        del self.calls[bucket, key]
        self.breakers.succeeded(bucket, key)
        self.in_a_row[bucket], self.opened_at[bucket], self.quiet_until[bucket] = 0, None, 0.0
        for name, caller in self.calls:
            if name == bucket:
                self.calls[name, caller] = None  # that it was a probe is forgotten

    @rule(bucket=st.sampled_from(BUCKETS), retry_after_s=st.none() | st.floats(-5, 500))
    def outage(self, bucket: str, retry_after_s: float | None) -> None:
        """Everybody who may call does, and fails."""
        for key in (*CALLERS, *CALLERS):
            self.ask(bucket, key)
            if (bucket, key) in self.calls:
                self.fail_one(bucket, key, retry_after_s)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), retry_after_s=st.none() | st.floats(-5, 500))
    def fail(self, data: st.DataObject, retry_after_s: float | None) -> None:
        self.fail_one(*data.draw(st.sampled_from(sorted(self.calls))), retry_after_s)

    def fail_one(self, bucket: str, key: str, retry_after_s: float | None) -> None:
        probing_since = self.calls.pop((bucket, key))
        self.breakers.failed(bucket, key, TransientError("503"), retry_after_s, self.now)
        self.in_a_row[bucket] += 1
        self.last_failer[bucket] = key
        if self.opened_at[bucket] is None:
            if self.in_a_row[bucket] >= OPEN_AFTER:
                self.opened_at[bucket] = self.now
                self.quiet_until[bucket] = self.now + max(0.5, min(retry_after_s or 0, PAUSE_MAX_S))
        elif probing_since is not None and self.now - probing_since < PROBE_S:
            self.quiet_until[bucket] = self.now + max(0.5, min(retry_after_s or 0, PAUSE_MAX_S))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), says_so=st.booleans())
    def vanish(self, data: st.DataObject, says_so: bool) -> None:
        """A caller is abandoned in the middle of its call; sometimes nobody tells the breaker."""
        bucket, key = data.draw(st.sampled_from(sorted(self.calls)))
        if says_so:
            del self.calls[bucket, key]
            self.breakers.left(bucket, key)

    @invariant()
    def open_is_what_failed_enough_in_a_row(self) -> None:
        if hasattr(self, "breakers"):
            told = self.breakers.open(self.now)
            assert set(told) == {name for name, at in self.opened_at.items() if at is not None}
            assert all("503" in why for why in told.values())

    def teardown(self) -> None:
        """However it stands: once the system is well, callers that wait as told get through within bounded time."""
        if not hasattr(self, "breakers"):
            return
        for bucket in BUCKETS:
            began = self.now
            # One is left of all callers, and it is the one that failed last; who has not come back never will.
            last = self.last_failer[bucket]
            line = deque([(self.now, "fresh" if (bucket, last) in self.calls else last)])
            while True:
                at, key = line.popleft()
                self.now = max(self.now, at)
                wait = self.breakers.wait_s(bucket, key, self.now)
                if wait == 0:
                    self.breakers.succeeded(bucket, key)
                    break
                line.append((self.now + wait, key))
                assert self.now - began <= 4 * PAUSE_MAX_S + PROBE_S + 4 * WAIT_S, "it never gets through"
            assert bucket not in self.breakers.open(self.now)


TestABreakerSparesASickSystemAndNeverOutlastsIt = BreakersMachine.TestCase
TestABreakerSparesASickSystemAndNeverOutlastsIt.settings = examples(100, steps=60)
