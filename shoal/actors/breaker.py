"""Circuit breakers: when nothing more is asked of a system that fails for all (G5).

Pure core. One breaker per dependency: a bucket, the embedder, the tables, Kafka. A few failures in a row, with no
success between, open it: its documents wait instead of all trying, and the status says what is waited for. From
time to time one of them probes; its success closes the breaker, its failure keeps it open for longer. A key that
fails by itself among others that succeed never opens anything: that is the business of shoal.actors.retry.

After M. Nygard, "Release It!", chapter "Stability Patterns". Times are seconds of any monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

OPEN_AFTER = 5
"""Failures in a row. Fewer and a single hiccup of a busy bucket pauses it; more and an outage is hammered."""
FIRST_PAUSE_S, PAUSE_MAX_S = 1.0, 15.0
PROBE_S = 120.0
"""A probe without a result for so long counts for nothing: another may try. Above any time limit of a request."""
TOLD_PAUSE_S = (0.5, 60.0)
"""Bounds of a pause that the system itself asked for: it knows, and a growing pause of ours would only add to it."""
WAIT_S = 0.5  # between two looks of those that wait for a probe


@dataclass(slots=True)
class _Breaker:
    failures: int = 0  # in a row, over all keys
    error: Exception | None = None
    keys: set[str] = field(default_factory=set)  # who is concerned: without any nobody would ever close it
    opened_at: float | None = None
    pause_s: float = FIRST_PAUSE_S
    due_at: float = 0.0
    prober: str | None = None
    probe_until: float = 0.0
    last_failed: str | None = None
    waiting: dict[str, float] = field(default_factory=dict)  # key -> when it last looked


class Breakers:
    """Every dependency's breaker. Ask `wait_s` before each call, then say how it went."""

    def __init__(self) -> None:
        self._breakers: dict[str, _Breaker] = {}

    def wait_s(self, dependency: str, key: str, now: float) -> float:
        """How long `key` must wait before it asks again; 0 where it may call, as a probe if the breaker is open."""
        breaker = self._breakers.get(dependency)
        if breaker is None or breaker.opened_at is None:
            return 0.0
        breaker.waiting[key] = now
        breaker.keys.add(key)
        if now < breaker.due_at:
            return min(WAIT_S, breaker.due_at - now) or WAIT_S
        if breaker.prober not in (None, key) and now < breaker.probe_until:
            return WAIT_S
        # The key that failed the last probe may be bad by itself: any other one that waits goes before it.
        if key == breaker.last_failed and any(
            other != key and now - seen <= 3 * WAIT_S for other, seen in breaker.waiting.items()
        ):
            return WAIT_S
        breaker.prober, breaker.probe_until = key, now + PROBE_S
        return 0.0

    def succeeded(self, dependency: str, key: str) -> None:
        """A call went well: whatever was wrong is over."""
        self._breakers.pop(dependency, None)

    def failed(self, dependency: str, key: str, error: Exception, retry_after_s: float | None, now: float) -> None:
        """A call met a system that is unwell; `retry_after_s` is what it asked for."""
        breaker = self._breakers.setdefault(dependency, _Breaker())
        breaker.failures += 1
        breaker.error, breaker.last_failed = error, key
        breaker.keys.add(key)
        was_probe = breaker.opened_at is not None and breaker.prober == key
        if breaker.opened_at is None:
            if breaker.failures < OPEN_AFTER:
                return
            breaker.opened_at = now
        elif not was_probe:
            return  # began before it opened: says nothing new
        elif retry_after_s is None:
            breaker.pause_s = min(PAUSE_MAX_S, 2 * breaker.pause_s)
        breaker.prober = None
        told_s = None if retry_after_s is None else min(max(retry_after_s, TOLD_PAUSE_S[0]), TOLD_PAUSE_S[1])
        breaker.due_at = now + (breaker.pause_s if told_s is None else told_s)

    def left(self, dependency: str, key: str) -> None:
        """`key` asks no more (it ended, or was abandoned): it blocks nobody."""
        breaker = self._breakers.get(dependency)
        if breaker is None:
            return
        breaker.waiting.pop(key, None)
        breaker.keys.discard(key)
        if breaker.prober == key:
            breaker.prober = None
        if not breaker.keys:
            del self._breakers[dependency]

    def error(self, dependency: str) -> Exception | None:
        """What the last call met that counted against it."""
        breaker = self._breakers.get(dependency)
        return breaker.error if breaker is not None else None

    def open(self, now: float) -> dict[str, str]:
        """Open breakers and why, as the status shows them."""
        return {
            name: f"{breaker.error} (for {now - breaker.opened_at:.0f} s)"
            for name, breaker in list(self._breakers.items())  # asked from another thread
            if breaker.opened_at is not None
        }
