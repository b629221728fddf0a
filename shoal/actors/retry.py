"""Retry: how long to wait, and when one bad thing stops being tried (G5).

Pure core. Backoff is exponential with jitter (AWS Architecture Blog, "Exponential Backoff And Jitter"), or
what the system itself asked for. What tells a bad document from a bad system is its neighbours: a document
is given up only when, since its first failure, its dependency (a bucket, the local disk) served more calls of others
than there are others that fail now; or, where it served none, when other dependencies of its kind did so. In an
outage, and in a system that is half sick, nobody is given up. Who is nearly alone has no neighbours to tell: then
somebody must look at the system itself (`Verdict.UNKNOWN`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import Enum

FIRST_DELAY_S = 0.2
DELAY_MAX_S = 15.0
TOLD_DELAY_MAX_S = 60.0  # a system may ask for more patience than we would have, within reason


def backoff_s(attempt: int, retry_after_s: float | None, rng: random.Random) -> float:
    """Seconds to wait before try number `attempt` + 1 (the first failure is attempt 1)."""
    if retry_after_s is not None:
        return max(0.0, min(retry_after_s, TOLD_DELAY_MAX_S))
    bound = min(DELAY_MAX_S, FIRST_DELAY_S * 2.0 ** min(attempt - 1, 10))
    return rng.uniform(bound / 2, bound)


class Verdict(Enum):
    """What a failure of one key says."""

    RETRY = "retry"  # too early to tell, or the system is unwell
    GIVE_UP = "give up"  # it is this key
    UNKNOWN = "unknown"  # too few others to tell


FEW = 3
"""Keys that fail at once: so many look like a system's trouble, fewer like their own."""


@dataclass(slots=True)
class _Failing:
    since: float
    then: dict[str, int]  # dependency -> its successes when this key first failed


@dataclass(slots=True)
class DependencyHealth:
    """What worked and what fails, per dependency. Times are seconds of any monotonic clock."""

    give_up_after_s: float
    _successes: dict[str, int] = field(default_factory=dict)
    _failing: dict[str, dict[str, _Failing]] = field(default_factory=dict)  # dependency -> key

    def succeeded(self, dependency: str, key: str) -> None:
        """A call for `key` went well."""
        self.forget(dependency, key)
        self._successes[dependency] = self._successes.get(dependency, 0) + 1

    def failed(self, dependency: str, key: str, now: float) -> Verdict:
        """A call for `key` failed again; what that says."""
        keys = self._failing.setdefault(dependency, {})
        failing = keys.setdefault(key, _Failing(now, dict(self._successes)))
        if now - failing.since < self.give_up_after_s:
            return Verdict.RETRY
        served, others = self._since(dependency, failing), len(keys) - 1
        if served > others:
            return Verdict.GIVE_UP
        if not served:
            kind = dependency.partition("://")[0]
            alike = [
                name
                for name in self._successes.keys() | self._failing.keys()
                if name != dependency and name.partition("://")[0] == kind
            ]
            sick = sum(len(self._failing.get(name, ())) for name in alike)
            if sum(self._since(name, failing) for name in alike) > sick:
                return Verdict.GIVE_UP
            others += sick
        return Verdict.UNKNOWN if others < FEW else Verdict.RETRY

    def _since(self, dependency: str, failing: _Failing) -> int:
        return self._successes.get(dependency, 0) - failing.then.get(dependency, 0)

    def has_worked(self, dependency: str) -> bool:
        """Whether any call of it ever went well."""
        return dependency in self._successes

    def forget(self, dependency: str, key: str) -> None:
        """`key` is not tried any more. Names come from messages: what never worked is not kept."""
        keys = self._failing.get(dependency)
        if keys is not None:
            keys.pop(key, None)
            if not keys:
                del self._failing[dependency]
