"""Who is given up, and how long to wait: the health of dependencies against the list of everything that happened."""

from __future__ import annotations

import random
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from shoal.actors.retry import DELAY_MAX_S, FEW, FIRST_DELAY_S, TOLD_DELAY_MAX_S, DependencyHealth, Verdict, backoff_s
from tests.properties.profiles import examples

GIVE_UP_AFTER_S = 10.0
DEPENDENCIES = ("s3://a", "s3://b", "file://", "inline")
NAMES = st.sampled_from(["s3://a", *DEPENDENCIES])
KEYS = st.integers(0, 4).map("k{}".format)


class HealthMachine(RuleBasedStateMachine):
    """The model: when each key began to fail, and the order of all that succeeded."""

    def __init__(self) -> None:
        super().__init__()
        self.start()

    def start(self) -> None:
        self.health = DependencyHealth(GIVE_UP_AFTER_S)
        self.now, self.moment = 0.0, 0
        self.failing: dict[tuple[str, str], tuple[float, int]] = {}  # since, and the moment
        self.successes: list[tuple[int, str]] = []

    @rule()
    def kill(self) -> None:
        """The reader dies. Its successor knows nothing, and gives nobody up before it has seen others succeed."""
        self.start()

    @rule(seconds=st.sampled_from([0.5, 4.0, GIVE_UP_AFTER_S]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(name=NAMES, key=KEYS)
    def succeed(self, name: str, key: str) -> None:
        self.moment += 1
        self.successes.append((self.moment, name))
        self.failing.pop((name, key), None)
        self.health.succeeded(name, key)

    @rule(name=NAMES, key=KEYS)
    def forget(self, name: str, key: str) -> None:
        self.failing.pop((name, key), None)
        self.health.forget(name, key)

    def served(self, names: Iterable[str], after: int) -> int:
        return sum(name in set(names) and moment > after for moment, name in self.successes)

    def others(self, names: Iterable[str], key: tuple[str, str]) -> int:
        return sum(one[0] in set(names) and one != key for one in self.failing)

    @rule(name=NAMES, keys=st.sets(KEYS, min_size=2, max_size=5))
    def fail_together(self, name: str, keys: set[str]) -> None:
        for key in sorted(keys):
            self.fail(name, key)

    @rule(name=NAMES, key=KEYS)
    def fail(self, name: str, key: str) -> None:
        self.moment += 1
        since, moment = self.failing.setdefault((name, key), (self.now, self.moment))
        verdict = self.health.failed(name, key, self.now)
        if self.now - since < GIVE_UP_AFTER_S:
            assert verdict is Verdict.RETRY, "not before its time"
            return
        kind = [other for other in DEPENDENCIES if other.partition("://")[0] == name.partition("://")[0]]
        others = self.others(kind, (name, key))
        served, served_alike = self.served([name], moment), self.served(kind, moment)
        if not served_alike:
            assert verdict is not Verdict.GIVE_UP, "in an outage nobody is given up"
        if served > self.others([name], (name, key)):
            assert verdict is Verdict.GIVE_UP, "its neighbours work: it is this key"
        elif served:
            assert verdict is not Verdict.GIVE_UP, "half sick: nobody is given up"
        elif served_alike > others:
            assert verdict is Verdict.GIVE_UP, "its bucket never worked while others of its kind did"
        near = self.others([name] if served else kind, (name, key))
        if verdict is Verdict.UNKNOWN:
            assert near < FEW, "who is nearly alone can't be told by its neighbours"
        if verdict is Verdict.RETRY:
            assert near >= FEW, "a few are told apart in the end; only many are an outage"


TestAnOutageGivesUpNobodyAndABadKeyIsGivenUp = HealthMachine.TestCase
TestAnOutageGivesUpNobodyAndABadKeyIsGivenUp.settings = examples(100, steps=60)


@given(st.integers(1, 10**6), st.integers(0, 2**32))
@examples(100)
def test_a_pause_is_of_the_upper_half_of_its_doubling_bound(attempt: int, seed: int) -> None:
    bound = min(DELAY_MAX_S, FIRST_DELAY_S * 2 ** min(attempt - 1, 60))
    assert bound / 2 <= backoff_s(attempt, None, random.Random(seed)) <= bound


@given(st.integers(1, 100), st.floats(allow_nan=False))
@examples(100)
def test_what_a_system_asks_for_is_obeyed_within_reason_and_never_negative(attempt: int, told: float) -> None:
    assert backoff_s(attempt, told, random.Random(0)) == max(0.0, min(told, TOLD_DELAY_MAX_S))
