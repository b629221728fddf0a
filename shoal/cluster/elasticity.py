"""Elasticity: how many readers and fetch workers the load wants, and when to follow it.

Pure core. Give every status to `Elasticity.look`; it says how many of each pool there should be, and why, in words.

* Readers follow the lag by the time it would take at the rate of now: many messages that are done in a moment want
  nobody, a few that take an hour do. They follow it only where another one would help: not where what comes after
  them (embedder, writer, fetch workers) or a dependency is what holds documents up, not where each partition that is
  behind has a reader of its own, and never past the number of partitions.
* Fetch workers follow their queue: documents that are with them against those that they can have in work.

Each change of the readers is a rebalance, so nothing is done for a moment's sake: pressure must have lasted `out_s`,
calm `in_s`, without a break; of what was wanted meanwhile the least (the most, for fewer) is taken; a step at most
doubles or halves; and after one the figures, which are of the last minute, get `out_s` to show what it did. How much
one reader does is remembered from under pressure, so that a calm that only the newcomers make sends none of them away.
Times are seconds of any monotonic clock. Only the wanted counts survive a supervisor (`resume`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

READERS, FETCHERS = "readers", "fetchers"
"""The pools, as the status and the metrics call them."""
CALM_SHARE = 0.25
"""Of what would be pressure: below it the pool is calm. Between the two nothing changes: the gap keeps one more actor,
which halves the pressure at most, from making the calm that sends it away."""
LOAD_SHARE = 0.7
"""How busy those that stay may be after some have gone: more, and the next breath of load brings them back."""
GAP_S = 15.0
"""Looks come every two seconds. Between two that are further apart nobody knows what was."""
_FOR_ALL = ("embedder", "kafka", "tables")
"""Dependencies that each document needs. A bucket is none: others may be well."""


@dataclass(frozen=True, slots=True)
class Staff:
    """Those of a pool that are there: at work, without a place or just starting, and on their way out."""

    working: int
    pending: int = 0
    leaving: int = 0


@dataclass(frozen=True, slots=True)
class Flow:
    """What one status says of the load. Counts are of documents (in Kafka: messages)."""

    lag: int | None
    """Not done; None where the brokers told of no partition."""
    per_s: float | None
    """Ended a second, over the last minute; None while that is not known."""
    partitions: int
    crowded: int
    """Of the partitions that are behind, the most that one reader has."""
    unowned: int
    full: int
    """Readers that hold all that they may."""
    unwell: str | None
    embedder_full: bool
    writer_rows: float
    fetching: int
    """With the fetch workers: in work, or waiting there."""
    room: int
    """How many of them can be in work at once."""

    @property
    def queue_is_long(self) -> bool:
        """As many wait for the fetch workers as are in work there."""
        return 0 < 2 * self.room <= self.fetching


@dataclass(frozen=True, slots=True)
class Demand:
    """How many the load would have now, without hysteresis, and why."""

    count: int
    why: str


def flow_of(status: Mapping[str, Any], commands: str) -> Flow:
    """Of a status as `build_status` makes it. `commands`: the topic whose partitions are nobody's reason to scale."""
    totals, embedder, writer = status["totals"], status["embedder"] or {}, status["writer"] or {}
    per_min = totals["rates"]["ended_per_min"]
    partitions = [entry for entry in status["partitions"] if entry["topic"] != commands]
    behind: dict[str, int] = {}
    for entry in partitions:
        if entry["owner"] is not None and entry["lag_records"]:
            behind[entry["owner"]] = behind.get(entry["owner"], 0) + 1
    unwell = [one["what"] for one in status["paused"] if one["kind"] == "dependency" and one["what"] in _FOR_ALL]
    if totals["broker_unreachable_s"]:
        unwell.append("kafka")
    documents = writer.get("documents") or 0
    chunks_each = writer["chunks"] / documents if documents else 1.0
    return Flow(
        lag=totals["lag_records"],
        per_s=None if per_min is None else per_min / 60,
        partitions=len(partitions),
        crowded=max(behind.values(), default=0),
        unowned=sum(entry["owner"] is None for entry in status["partitions"]),
        full=sum(reader["paused_because"] is not None for reader in status["readers"]),
        unwell=unwell[0] if unwell else None,
        embedder_full=bool(embedder.get("queued_texts")) and embedder["running"] >= embedder["running_max"] > 0,
        writer_rows=(writer.get("queued") or 0) * max(1.0, chunks_each),
        fetching=sum(fetcher["in_flight"] for fetcher in status["fetchers"]),
        room=sum(fetcher["slots"] for fetcher in status["fetchers"]),
    )


class Pool:
    """How many of one kind are wanted. Never fewer than `least` nor more than `most`."""

    def __init__(self, least: int, most: int, out_s: float, in_s: float) -> None:
        assert 1 <= least <= most
        self.least, self.most = least, most
        self.wanted, self.why = least, "not looked at yet"
        self._out_s, self._in_s = out_s, in_s
        self._seen_at: float | None = None
        self._since: float | None = None  # the pressure, or the calm, that lasts
        self._agreed = least  # what all of it wanted at least (at most, in a calm)
        self._rests_until = float("-inf")

    def resume(self, wanted: int) -> None:
        """Go on where another left off."""
        self.wanted = self._clamped(wanted)

    def follow(self, demand: Demand, staff: Staff, now: float) -> int:
        """How many are wanted from now on."""
        count = self._clamped(demand.count)
        if self._seen_at is not None and now - self._seen_at > GAP_S:
            self._since = None
        self._seen_at = now
        held = self._held(count, staff, now)
        if count == self.wanted or held:
            self._since = None
            self.why = f"{demand.why}; {held}" if held else demand.why
            return self.wanted
        is_more = count > self.wanted
        if self._since is None or (self._agreed > self.wanted) is not is_more:
            self._since, self._agreed = now, count
        self._agreed = min(self._agreed, count) if is_more else max(self._agreed, count)
        lasts_s, must_last_s = now - self._since, self._out_s if is_more else self._in_s
        if lasts_s < must_last_s:
            what = "more" if is_more else "fewer"
            self.why = f"{demand.why}; {what}, once that has lasted {must_last_s:.0f} s ({lasts_s:.0f} s by now)"
            return self.wanted
        step = min(self._agreed, 2 * self.wanted) if is_more else max(self._agreed, math.ceil(self.wanted / 2))
        self.why = f"{demand.why}: {step} instead of {self.wanted}"
        self.wanted, self._since, self._rests_until = step, None, now + self._out_s
        return self.wanted

    def _held(self, count: int, staff: Staff, now: float) -> str | None:
        """Why nothing changes now, whatever is wanted."""
        if staff.leaving:
            return f"{staff.leaving} on the way out"
        if count > self.wanted and staff.working < self.wanted:
            return f"{self.wanted - staff.working} of {self.wanted} not at work yet"
        if count != self.wanted and now < self._rests_until:
            return "the last change is still to show what it did"
        return None

    def _clamped(self, count: int) -> int:
        return min(max(count, self.least), self.most)


class Elasticity:
    """Both pools. `pools`: (least, most) of each."""

    def __init__(
        self, pools: Mapping[str, tuple[int, int]], *, lag_target_s: float, rows_max: int, out_s: float, in_s: float
    ) -> None:
        """`rows_max`: what closes a commit; a writer with so much waiting is busy."""
        self.pools = {name: Pool(least, most, out_s, in_s) for name, (least, most) in pools.items()}
        self._lag_target_s, self._rows_max = lag_target_s, rows_max
        self._per_reader_s: float | None = None  # what one does under pressure
        self._had_pressure = False

    def resume(self, scaling: Any) -> None:
        """Go on from what the supervisor before this one showed."""
        for name, pool in self.pools.items():
            known = scaling.get(name) if isinstance(scaling, Mapping) else None
            if isinstance(known, Mapping) and isinstance(known.get("wanted"), int):
                pool.resume(known["wanted"])

    def look(self, flow: Flow, staff: Mapping[str, Staff], now: float) -> dict[str, int]:
        """How many of each pool are wanted from now on."""
        demands = {READERS: self._readers, FETCHERS: self._fetchers}
        found = {}
        for name, pool in self.pools.items():
            if pool.least == pool.most:
                pool.why = "fixed"
            else:
                pool.follow(demands[name](flow, staff[name]), staff[name], now)
            found[name] = pool.wanted
        return found

    def shown(self, staff: Mapping[str, Staff]) -> dict[str, dict[str, Any]]:
        """As the status shows it."""
        return {
            name: {
                "min": pool.least,
                "max": pool.most,
                "wanted": pool.wanted,
                "working": staff[name].working,
                "pending": staff[name].pending,
                "leaving": staff[name].leaving,
                "why": pool.why,
            }
            for name, pool in self.pools.items()
        }

    # --- what the load wants ------------------------------------------------------------------

    def _readers(self, flow: Flow, staff: Staff) -> Demand:
        wanted, target_s = self.pools[READERS].wanted, self._lag_target_s
        if flow.lag is None or flow.per_s is None or not staff.working:
            return Demand(wanted, "the lag, or the rate at which it is done, is not known yet")
        done_s = flow.lag / flow.per_s if flow.per_s else math.inf if flow.lag else 0.0
        what = f"{flow.lag} messages behind"
        what += f", {done_s:.0f} s at {flow.per_s:.3g} a second" if flow.lag and flow.per_s else ""
        if done_s <= target_s * CALM_SHARE:
            self._had_pressure = False
            # With nothing in hand the rate is of what was. Where something comes all the time, some look sees it.
            busy = flow.per_s / (LOAD_SHARE * self._per_reader_s) if self._per_reader_s and flow.lag else 0.0
            return Demand(min(wanted, math.ceil(busy)), what)
        if done_s <= target_s:
            self._had_pressure = False
            return Demand(wanted, f"{what} (lag_target_s: {target_s:g})")
        if (held := self._no_help(flow, staff)) is not None:
            return Demand(wanted, f"{what}, but {held}")
        each = flow.per_s / staff.working
        known = self._per_reader_s if self._had_pressure and self._per_reader_s else 0.0
        self._per_reader_s, self._had_pressure = max(known, each), True
        return Demand(max(wanted, min(math.ceil(flow.lag / (target_s * each)), flow.partitions)), what)

    def _no_help(self, flow: Flow, staff: Staff) -> str | None:
        """Why another reader would not help; None where it would."""
        if flow.unwell is not None:
            return f"{flow.unwell} is unwell: more readers would not help"
        if not flow.per_s:
            return "nothing ends: more readers would not help"
        if flow.unowned:
            return "partitions are changing hands"
        if flow.crowded <= 1:
            return "each partition that is behind has a reader of its own: only more partitions would help"
        if 2 * flow.full >= staff.working:  # they hold all that they may: what do the documents wait for?
            if flow.embedder_full:
                return "the embedder has all that it can do: a higher quota or another model would help"
            if flow.writer_rows >= self._rows_max:
                return "the writer has all that it can do: larger commits would help"
            if flow.queue_is_long:
                return "the fetch workers have all that they can do: more of them would help"
        return None

    def _fetchers(self, flow: Flow, staff: Staff) -> Demand:
        wanted = self.pools[FETCHERS].wanted
        if not staff.working or not flow.room:
            return Demand(wanted, "their queue is not known yet")
        each = flow.room / staff.working
        what = f"{flow.fetching} documents with them, {flow.room} can be in work"
        if flow.queue_is_long:
            return Demand(max(wanted, math.ceil(flow.fetching / each)), what)
        if flow.fetching <= 2 * flow.room * CALM_SHARE:
            return Demand(min(wanted, math.ceil(flow.fetching / (LOAD_SHARE * each))), what)
        return Demand(wanted, what)
