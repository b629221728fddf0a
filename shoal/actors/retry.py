"""Retry: how long to wait, and when one bad thing stops being tried (G5).

Pure core. Backoff is exponential with jitter (AWS Architecture Blog, "Exponential Backoff And Jitter"), or
what the system itself asked for. What tells a bad document from a bad system is its neighbours: a document
is given up only when its dependency (a bucket, the local disk) worked for others meanwhile, or when it alone
fails there, or when other buckets of the same kind worked meanwhile. An outage of all pauses all and gives up
nobody.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

FIRST_DELAY_S = 0.2
DELAY_MAX_S = 15.0
TOLD_DELAY_MAX_S = 60.0  # a system may ask for more patience than we would have, within reason


def backoff_s(attempt: int, retry_after_s: float | None, rng: random.Random) -> float:
    """Seconds to wait before try number `attempt` + 1 (the first failure is attempt 1)."""
    if retry_after_s is not None:
        return min(retry_after_s, TOLD_DELAY_MAX_S)
    bound = min(DELAY_MAX_S, FIRST_DELAY_S * 2.0 ** min(attempt - 1, 10))
    return rng.uniform(bound / 2, bound)


@dataclass(slots=True)
class _Dependency:
    last_success: float | None = None
    failing: set[str] = field(default_factory=set)


@dataclass(slots=True)
class DependencyHealth:
    """What worked and what fails, per dependency. Times are seconds of any monotonic clock."""

    give_up_after_s: float
    _dependencies: dict[str, _Dependency] = field(default_factory=dict)

    def _of(self, dependency: str) -> _Dependency:
        return self._dependencies.setdefault(dependency, _Dependency())

    def succeeded(self, dependency: str, key: str, now: float) -> None:
        state = self._of(dependency)
        state.last_success = now
        state.failing.discard(key)

    def failed(self, dependency: str, key: str, first_failed_at: float, now: float) -> bool:
        """`key` failed again; True when it should be given up."""
        state = self._of(dependency)
        state.failing.add(key)
        if now - first_failed_at < self.give_up_after_s:
            return False
        if state.last_success is not None and (state.last_success > first_failed_at or state.failing == {key}):
            return True
        return any(
            other.last_success is not None and other.last_success > first_failed_at
            for name, other in self._dependencies.items()
            if name.partition("://")[0] == dependency.partition("://")[0]
        )

    def forget(self, dependency: str, key: str) -> None:
        """`key` is not tried any more."""
        state = self._of(dependency)
        state.failing.discard(key)
        if not state.failing and state.last_success is None:
            del self._dependencies[dependency]  # names come from messages: what never worked is not kept
