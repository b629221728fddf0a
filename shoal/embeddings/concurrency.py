"""How many requests to a provider are worth having under way at once: found by trying, within a bound.

Guarantee: `allowed` is from 1 to `maximum`, whatever it is told. It grows while the places are in use and answers are
no slower than they need be: by half until the first trouble, by one in each round after it. It shrinks where answers
take more than SLOW times what the fastest of their size took lately (they queue at the provider), and where requests
are refused, fail or time out, at most once a round. A round is `allowed` answers, and no shorter than one takes.
How much may be sent in a minute is not its concern: `limiter` decides that. Pure: `now` is seconds of one clock.
"""

from __future__ import annotations

import math

# Above: requests pile up at a provider that is at its end before we notice. Below: ordinary jitter counts as trouble.
SLOW = 2.0
# A place is worth adding only while this share of them is in use.
_IN_USE = 0.7
_REFUSED_FACTOR = 0.7
# Nothing shrinks further than by half in one round.
_FACTOR_MIN = 0.5
# What "the fastest" means is forgotten after one to two of these, so that a provider that has become slower for good
# is measured by what it is now.
_MEMORY_S = 60.0
_REFUSALS_APART_S = 1.0


class Concurrency:
    """Additive increase, multiplicative decrease, with latency as an early sign (as in TCP Vegas)."""

    def __init__(self, start: int, maximum: int) -> None:
        """Raises ValueError unless 1 <= start <= maximum."""
        if not 1 <= start <= maximum:
            raise ValueError(f"a concurrency from 1 to its maximum, please: {start} of {maximum}")
        self._maximum = maximum
        self._allowed = float(start)
        self._is_untroubled = True
        self._shrunk_at = -math.inf
        self._began: float | None = None  # the round
        self._answers = 0
        self._took_s = self._needed_s = 0.0  # by the round's answers, and by the fastest of their sizes
        self._latency_s = 0.0  # mean of the round before
        # By size of the request (powers of two of its tokens): least seconds, in this memory and in the one before.
        self._fastest: dict[int, float] = {}
        self._fastest_before: dict[int, float] = {}
        self._remembers_since = -math.inf

    @property
    def allowed(self) -> int:
        """Requests that may be under way now, from 1 to the maximum."""
        return int(self._allowed)

    def answered(self, latency_s: float, tokens: int, now: float) -> None:
        """A request of `tokens` was answered `latency_s` after it was sent."""
        latency_s = max(1e-6, latency_s) if math.isfinite(latency_s) else 1e-6
        if self._began is None:
            self._began = now - latency_s
        self._answers += 1
        self._took_s += latency_s
        self._needed_s += self._fastest_of(max(0, tokens).bit_length(), latency_s, now)
        elapsed = now - self._began
        if self._answers < self.allowed or elapsed < self._took_s / self._answers:
            return
        slowness = self._took_s / self._needed_s
        self._latency_s = self._took_s / self._answers
        if slowness > SLOW:
            self._shrink(max(_FACTOR_MIN, SLOW / slowness), now)
        elif self._took_s / elapsed >= _IN_USE * self.allowed:
            grown = self._allowed * 1.5 if self._is_untroubled else self._allowed + 1
            self._allowed = min(float(self._maximum), max(self._allowed + 1, grown))
        self._begin(now)

    def refused(self, now: float) -> None:
        """A request was refused for its rate, failed for the provider's reasons, or was not answered in time."""
        if now - self._shrunk_at >= max(_REFUSALS_APART_S, self._latency_s):
            self._shrink(_REFUSED_FACTOR, now)
            self._begin(now)

    def _shrink(self, factor: float, now: float) -> None:
        self._allowed = max(1.0, self._allowed * factor)
        self._is_untroubled = False
        self._shrunk_at = now

    def _begin(self, now: float) -> None:
        self._began, self._answers, self._took_s, self._needed_s = now, 0, 0.0, 0.0

    def _fastest_of(self, size: int, latency_s: float, now: float) -> float:
        """The least seconds that a request of this size has taken lately, this one included."""
        if now - self._remembers_since >= _MEMORY_S:
            self._fastest_before, self._fastest, self._remembers_since = self._fastest, {}, now
        self._fastest[size] = min(self._fastest.get(size, math.inf), latency_s)
        return min(self._fastest[size], self._fastest_before.get(size, math.inf))
