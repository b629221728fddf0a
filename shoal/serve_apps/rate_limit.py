"""Requests per minute of each caller: a token bucket (RFC 9110 429 with Retry-After says when the next one is due).

Pure: `now` is in seconds of any clock. A bucket holds ten seconds' worth, so that a page that asks for several things
at once is no offence. Each replica keeps buckets of its own and gives its share: the limit divided by the most
replicas there may be. So all together never give more than the limit, and while fewer run, less of it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

BURST_S = 10.0
CALLERS_MAX = 20_000
"""Beyond, whoever asked longest ago is forgotten: its bucket is full again, or nearly."""


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float


class RateLimiter:
    """One per replica; `share` is the replica's part of a limit, 0 to 1."""

    def __init__(self, per_minute: int, share: float = 1.0) -> None:
        """`per_minute`: for whoever has no limit of its own; 0: none."""
        self._per_minute, self._share = per_minute, share
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def wait_s(self, caller: str, now: float, per_minute: int = 0) -> float:
        """0.0 where `caller` may ask now, which is counted; else how long until it may."""
        rate = (per_minute or self._per_minute) * self._share / 60.0
        if rate <= 0:
            return 0.0
        most = max(1.0, rate * BURST_S)
        bucket = self._buckets.pop(caller, None) or _Bucket(most, now)
        bucket.left = min(most, bucket.left + max(0.0, now - bucket.at) * rate)
        bucket.at = now
        self._buckets[caller] = bucket
        while len(self._buckets) > CALLERS_MAX:
            self._buckets.popitem(last=False)
        if bucket.left >= 1.0:
            bucket.left -= 1.0
            return 0.0
        return (1.0 - bucket.left) / rate


def retry_after(wait_s: float) -> str:
    """The header: whole seconds, at least one."""
    return str(max(1, math.ceil(wait_s)))
