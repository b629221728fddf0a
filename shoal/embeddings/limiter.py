"""A provider's rate limits: requests and tokens per minute as two buckets that are taken from together.

Guarantee: from any moment on, within t seconds, at most burst + rate * t is granted of either kind, where one
request larger than the burst is let through when its bucket is full and leaves a debt. Limits in a response's
headers replace the configured ones, since the account's tier is not ours to know; another client's use of the
same key shows as a smaller remainder. Pure: `now` is seconds of one monotonic clock. A lock makes it safe to
call from several threads. It never sleeps: the caller does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock

# The share of a minute's limit that may be used at once. The provider's bucket starts full too, but with 1.0 a
# second client of the same key met 429s (measured against a fake server); with 0.1 there were none.
BURST = 0.1
# Our clock and the provider's differ, and failed requests count against the limit.
_SHARE_MAX = 0.95
_SHARE_MIN = 0.05
# An empty bucket is waited for no longer than this: `reset` is when it is full again, of use long before.
_EMPTY_WAIT_MAX_S = 10.0

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")


@dataclass(slots=True)
class _Bucket:
    per_minute: float
    level: float

    @property
    def size(self) -> float:
        return max(1.0, self.per_minute * BURST)

    def fill(self, seconds: float, share: float) -> None:
        self.level = min(self.size, self.level + seconds * self.per_minute * share / 60)

    def wait_s(self, amount: float, share: float) -> float:
        """Until `amount` may be taken; what never fits waits for a full bucket."""
        return max(0.0, (min(amount, self.size) - self.level) * 60 / (self.per_minute * share))


class RateLimiter:
    """Requests and tokens per minute of one account."""

    def __init__(self, requests_per_minute: float, tokens_per_minute: float, now: float) -> None:
        self._lock = Lock()
        self._share = _SHARE_MAX
        self._filled_at = now
        self._paused_until = -math.inf
        self._requests = _Bucket(requests_per_minute, max(1.0, requests_per_minute * BURST))
        self._tokens = _Bucket(tokens_per_minute, max(1.0, tokens_per_minute * BURST))

    def acquire(self, tokens: int, now: float) -> float:
        """Takes one request of `tokens` and returns 0, or takes nothing and returns the seconds to wait first."""
        with self._lock:
            self._fill(now)
            wait = max(
                self._paused_until - now,
                self._requests.wait_s(1, self._share),
                self._tokens.wait_s(tokens, self._share),
            )
            if wait > 1e-6:  # less is a rounding error of the division above
                return wait
            self._requests.level -= 1
            self._tokens.level -= tokens
            return 0.0

    def answered(self, headers: Mapping[str, str], now: float) -> None:
        """A request succeeded: adopts what its x-ratelimit-* headers tell; absent or odd ones are ignored."""
        with self._lock:
            self._fill(now)
            self._share = min(_SHARE_MAX, self._share + 0.005)
            self._adopt(headers, now)

    def throttled(self, headers: Mapping[str, str], retry_after_s: float | None, now: float) -> None:
        """A request was refused for its rate: pauses everything as long as asked, and goes slower after that."""
        with self._lock:
            self._fill(now)
            self._share = max(_SHARE_MIN, self._share * 0.7)
            self._adopt(headers, now)
            self._paused_until = max(self._paused_until, now + (retry_after_s or 1.0))

    def _fill(self, now: float) -> None:
        seconds = max(0.0, now - self._filled_at)
        self._filled_at = max(self._filled_at, now)
        for bucket in (self._requests, self._tokens):
            bucket.fill(seconds, self._share)

    def _adopt(self, headers: Mapping[str, str], now: float) -> None:
        for kind, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            limit = _number(headers.get(f"x-ratelimit-limit-{kind}"))
            if limit is not None and limit >= 1:
                bucket.per_minute = limit
            remaining = _number(headers.get(f"x-ratelimit-remaining-{kind}"))
            if remaining is not None:
                bucket.level = min(bucket.level, remaining, bucket.size)
                reset = duration_s(headers.get(f"x-ratelimit-reset-{kind}") or "")
                if remaining < 1 and reset:
                    self._paused_until = max(self._paused_until, now + min(reset, _EMPTY_WAIT_MAX_S))


def duration_s(text: str) -> float | None:
    """Seconds of `1s`, `6m0s`, `12ms`, `1h0m3s`, `1m2.5s` or bare seconds; None for anything else."""
    bare = _number(text)
    if bare is not None:
        return bare
    match = _DURATION.fullmatch(text.strip())
    if not match or not any(match.groups()):
        return None
    units = (86400.0, 3600.0, 60.0, 1.0, 0.001)
    return sum(float(value) * unit for value, unit in zip(match.groups(), units, strict=True) if value)


def _number(text: str | None) -> float | None:
    """A finite number that is not negative, or None."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
