"""A provider's rate limits: requests and tokens per minute, taken together, and used to the full.

Guarantee: in no 60 s are more requests or tokens granted than the limit that was told last; one request that is larger
than a whole minute's limit goes when nothing else was granted for a minute. Grants come evenly: whoever asks when
nothing is owed is let through and may leave a debt, so big requests and small ones wait alike, and those with a name
in the order they asked. A query (`is_urgent`) overtakes all of them: HEADROOM is kept free for it.

The key may have other users, ours (the query replicas) or strangers. While the headers of answers tell what is left of
the limit, nothing that can't be there is asked for, and ingest goes slower the less is left, long before it is
nothing: so users of one key that do likewise share it evenly, queries come first, and the limit is used up by whoever
has work. While they tell nothing, only `share` of the limit is taken. A refusal (429) pauses everything as long as
asked, and makes it slower for a while.

Limits in the headers replace the configured ones, up and down, since the account's tier is not ours to know. Pure:
`now` is seconds of one monotonic clock (a step back counts as no time). A lock makes it safe to call from several
threads. It never sleeps: the caller does.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from threading import Lock

WINDOW_S = 60.0
# What may be granted at once after a pause, as a share of a minute. Above: a second user of the key meets a bucket
# that was emptied under it. Below: a late wake-up of the caller is time that is lost (T5: 0.36 s between requests).
BURST, URGENT_BURST = 0.02, 0.1
# Of the limit, not granted to ingest in any 60 s: what a query finds there at once.
HEADROOM = 0.02
# (at this share of the limit left: the least; from this one on: all). Between them the rate grows evenly. The upper
# bound of ingest lies below what its own requests on their way leave at the smallest tier.
_YIELD, _YIELD_URGENT = (0.35, 0.85), (0.05, 0.25)
# Of a process that only brings history beside the embedder: where both have work it gets about a quarter, as the lane
# of backfills does beside live documents; alone it gets nearly all.
_YIELD_BACKFILL = (0.65, 0.92)
# Of the full rate, however little is left and however often we were refused: never nothing.
RATE_MIN = 0.05
# What a header told of what is left is believed for so long.
_KNOWN_S = 15.0
_REFUSED_FACTOR, _REFUSED_BLINDLY_FACTOR = 0.9, 0.7
_RECOVERY_PER_S = 0.01
# The rate may rise while somebody waits: no one sleeps longer than this without asking again, but for a pause.
_ASK_AGAIN_S = 5.0
# Whoever was told to wait keeps the place so much longer.
_LATE_S = 0.5

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")


@dataclass(slots=True)
class _Grant:
    at: float
    requests: int
    tokens: int


@dataclass(slots=True)
class _Limit:
    """One of the two kinds: so many a minute."""

    per_minute: float
    level: float  # may be granted now; below 0: owed
    urgent_level: float
    granted: int = 0  # in the last 60 s
    left: float = 0.0  # at the provider, by our reckoning since it told
    refill_per_s: float = 0.0
    told_at: float = -math.inf
    yields: tuple[float, float] = _YIELD

    def left_at(self, now: float) -> float | None:
        """What the provider has left; None: nothing is known."""
        return self.left if now - self.told_at <= _KNOWN_S else None

    def cap(self, is_urgent: bool) -> float:
        """Of grants in 60 s."""
        return self.per_minute if is_urgent else self.per_minute - math.floor(self.per_minute * HEADROOM)

    def rate_per_s(self, caution: float, share: float, is_urgent: bool, now: float) -> float:
        left = self.left_at(now)
        part = share
        if left is not None:
            least, all_from = _YIELD_URGENT if is_urgent else self.yields
            part = min(1.0, (left / self.per_minute - least) / (all_from - least))
        return self.per_minute * max(RATE_MIN, caution * part) / 60

    def pass_time(self, seconds: float, rate_per_s: float, urgent_rate_per_s: float) -> None:
        self.level = min(max(1.0, self.per_minute * BURST), self.level + seconds * rate_per_s)
        self.urgent_level = min(
            max(1.0, self.per_minute * URGENT_BURST), self.urgent_level + seconds * urgent_rate_per_s
        )
        self.left = min(self.per_minute, self.left + seconds * self.refill_per_s)

    def become(self, per_minute: float) -> None:
        """What is owed under a larger limit is owed no longer under a smaller one."""
        times = min(1.0, per_minute / self.per_minute)
        self.level, self.urgent_level = self.level * times, self.urgent_level * times
        self.per_minute = per_minute
        self.pass_time(0.0, 0.0, 0.0)  # nothing is above a smaller limit

    def take(self, amount: float, is_urgent: bool) -> None:
        self.level -= amount
        self.left = max(0.0, self.left - amount)
        if is_urgent:
            self.urgent_level -= amount

    def give_back(self, amount: float) -> None:
        self.level = min(max(1.0, self.per_minute * BURST), self.level + amount)
        self.left = min(self.per_minute, self.left + amount)


class RateLimiter:
    """Requests and tokens per minute of one account."""

    def __init__(self, requests_per_minute: float, tokens_per_minute: float, now: float, *, share: float = 1.0) -> None:
        """`share`: of the limits, what is taken while the provider does not tell how much is left."""
        self._lock = Lock()
        self._share = share
        self._caution = 1.0
        self._now = self._heard_at = now
        self._paused_until = self._refused_at = -math.inf
        self._requests, self._tokens = (
            _Limit(limit, max(1.0, limit * BURST), max(1.0, limit * URGENT_BURST))
            for limit in (requests_per_minute, tokens_per_minute)
        )
        self._grants: deque[_Grant] = deque()  # of the last 60 s
        self._waiting: dict[Hashable, float] = {}  # in the order they asked first; until when the place is kept

    @property
    def limits(self) -> tuple[float, float]:
        """Requests and tokens per minute, as last told."""
        with self._lock:
            return self._requests.per_minute, self._tokens.per_minute

    def take_share(self, share: float) -> None:
        """Who shares the key with others of ours says how much is its own, see `__init__`."""
        with self._lock:
            self._share = share

    def yield_to_live(self) -> None:
        """Another process of ours embeds live documents with the same key: it comes first."""
        with self._lock:
            self._requests.yields = self._tokens.yields = _YIELD_BACKFILL

    def acquire(self, tokens: int, now: float, *, is_urgent: bool = False, who: Hashable = None) -> float:
        """Takes one request of `tokens` and returns 0, or takes nothing and returns the seconds to wait first.

        Who gives a name (`who`) keeps the place in the order while it waits; who gives none, and a query, waits for
        nobody's turn: for callers that have an order of their own.
        """
        with self._lock:
            now = self._advance(now)
            amounts = ((self._requests, 1), (self._tokens, tokens))
            wait = max(self._paused_until - now, *(self._wait_s(*amount, is_urgent, now) for amount in amounts))
            has_place = who is not None and not is_urgent
            if has_place:
                wait = max(wait, self._turn_s(who, now))
            if wait > 1e-6:  # less is a rounding error of a division
                if has_place:
                    self._waiting[who] = now + wait + _LATE_S
                return wait
            self._waiting.pop(who, None)
            self._grants.append(_Grant(now, 1, tokens))
            for limit, amount in amounts:
                limit.granted += amount
                limit.take(amount, is_urgent)
            return 0.0

    def withdraw(self, who: Hashable) -> None:
        """Who was told to wait does not come back. (Whose place is not given up holds up the rest a little.)"""
        with self._lock:
            self._waiting.pop(who, None)

    def refund(self, tokens: int, granted_at: float, now: float) -> None:
        """What was granted at `granted_at` was never sent."""
        with self._lock:
            self._advance(now)
            self._give_back(1, tokens, granted_at)

    def answered(
        self, headers: Mapping[str, str], now: float, *, sent_at: float | None = None, tokens: int = 0, used: int = 0
    ) -> None:
        """A request succeeded: adopts what its x-ratelimit-* headers tell; absent or odd ones are ignored.

        `sent_at` tells which grants the headers don't know of yet. Where `tokens` were granted and the provider
        says `used`, the difference is given back, or taken; a figure that is off by more than half is not believed.
        """
        with self._lock:
            now = self._advance(now)
            self._caution = min(1.0, self._caution + _RECOVERY_PER_S * min(now - self._heard_at, _ASK_AGAIN_S))
            self._heard_at = now
            if 0 < used < tokens:
                self._give_back(0, min(tokens - used, tokens // 2), now if sent_at is None else sent_at)
            elif 0 < tokens < used:
                more = min(used - tokens, tokens // 2)
                self._grants.append(_Grant(now, 0, more))
                self._tokens.granted += more
                self._tokens.take(more, is_urgent=False)
            self._adopt(headers, now, sent_at)

    def throttled(
        self, headers: Mapping[str, str], retry_after_s: float | None, now: float, *, sent_at: float | None = None
    ) -> None:
        """A request was refused for its rate: pauses everything as long as asked, and goes slower after that."""
        with self._lock:
            now = self._advance(now)
            self._adopt(headers, now, sent_at)
            if now - self._refused_at >= 1.0:  # what was under way together is refused together: that is one sign
                is_told = any(_number(headers.get(f"x-ratelimit-remaining-{kind}")) is not None for kind in _KINDS)
                factor = _REFUSED_FACTOR if is_told else _REFUSED_BLINDLY_FACTOR
                self._caution = max(RATE_MIN, self._caution * factor)
                self._refused_at = now
            self._heard_at = now
            self._paused_until = max(self._paused_until, now + (1.0 if retry_after_s is None else retry_after_s))

    # --- under the lock -----------------------------------------------------------------------

    def _advance(self, now: float) -> float:
        """Lets time pass; the time that it is, never before one that it was."""
        now = max(now, self._now)
        for limit in (self._requests, self._tokens):
            slow, fast = (limit.rate_per_s(self._caution, self._share, urgent, now) for urgent in (False, True))
            limit.pass_time(now - self._now, slow, fast)
        self._now = now
        while self._grants and self._grants[0].at + WINDOW_S <= now:
            gone = self._grants.popleft()
            self._requests.granted -= gone.requests
            self._tokens.granted -= gone.tokens
        return now

    def _wait_s(self, limit: _Limit, amount: int, is_urgent: bool, now: float) -> float:
        rate_per_s = limit.rate_per_s(self._caution, self._share, is_urgent, now)
        wait = -(limit.urgent_level if is_urgent else limit.level) / rate_per_s
        left = limit.left_at(now)
        if left is not None and (missing := min(amount, limit.per_minute) - left) > 0:
            known_s = limit.told_at + _KNOWN_S - now
            wait = max(wait, min(missing / limit.refill_per_s, known_s) if limit.refill_per_s else known_s)
        wait = min(wait, _ASK_AGAIN_S)
        cap = limit.cap(is_urgent) * (self._share if left is None else 1.0)
        excess = limit.granted + min(amount, cap) - cap
        if excess > 0:
            wait = max(wait, self._window_s(limit, excess, now))
        return wait

    def _window_s(self, limit: _Limit, excess: float, now: float) -> float:
        """Until grants of at least `excess` are older than the window."""
        for grant in self._grants:
            excess -= grant.requests if limit is self._requests else grant.tokens
            if excess <= 0:
                return grant.at + WINDOW_S - now
        return 0.0  # nothing more is granted than what the sum says

    def _turn_s(self, who: Hashable, now: float) -> float:
        """Until those who asked before `who` had their turn."""
        for other in [other for other, until in self._waiting.items() if until < now]:
            del self._waiting[other]
        first = next(iter(self._waiting), who)
        return 0.0 if first == who else max(0.01, self._waiting[first] - _LATE_S - now)

    def _give_back(self, requests: int, tokens: int, granted_at: float) -> None:
        """Takes it out of the newest grant that is no younger and large enough; what has left the window is over."""
        for grant in reversed(self._grants):
            if grant.at <= granted_at and grant.requests >= requests and grant.tokens >= tokens:
                for limit, amount in ((self._requests, requests), (self._tokens, tokens)):
                    limit.granted -= amount
                    limit.give_back(amount)
                grant.requests -= requests
                grant.tokens -= tokens
                return

    def _adopt(self, headers: Mapping[str, str], now: float, sent_at: float | None) -> None:
        for kind, limit in zip(_KINDS, (self._requests, self._tokens), strict=True):
            told = _number(headers.get(f"x-ratelimit-limit-{kind}"))
            if told is not None and told >= 1:
                limit.become(told)
            remaining = _number(headers.get(f"x-ratelimit-remaining-{kind}"))
            if remaining is None:
                continue
            remaining = min(remaining, limit.per_minute)
            reset_s = duration_s(headers.get(f"x-ratelimit-reset-{kind}") or "")
            # A bucket that is filled steadily is full again when it says; one that is filled by the minute later.
            limit.refill_per_s = limit.per_minute / 60
            if reset_s and remaining < limit.per_minute:
                limit.refill_per_s = min(limit.refill_per_s, (limit.per_minute - remaining) / reset_s)
            # It was told of the moment when the request arrived: what was granted after is not in it.
            since_s = 0.0 if sent_at is None else max(0.0, now - sent_at)
            after = sum(
                grant.requests if kind == "requests" else grant.tokens for grant in self._granted_after(now - since_s)
            )
            limit.left = max(0.0, min(limit.per_minute, remaining + since_s * limit.refill_per_s) - after)
            limit.told_at = now

    def _granted_after(self, at: float) -> Iterator[_Grant]:
        for grant in reversed(self._grants):
            if grant.at <= at:
                return
            yield grant


_KINDS = ("requests", "tokens")


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
