"""Watching: from what is heard of a process, whether to leave it alone, end it, or begin it again, and when.

Pure core, one object per actor (and one each for the embedded broker and the cluster under `shoal up`). Events come
in (`created`, `answered`, `died`, ...), `decide` says what to do now. Times are seconds of any monotonic clock.

A late answer is not a death. Hung is who gives no answer at all, or whose own loop has not turned, for `hang_s`;
who is only just starting (loading a model, opening tables) has `start_s`. Who ends is begun again at once, unless
its last lives were short: then after 1, 2, 4, ... 60 s, so that a crash loop neither burns the machine nor hides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

STEADY_S = 5.0
"""A life this long is no crash in a loop: an actor has loaded and worked for seconds. Much longer, and what others kill
looks like a loop: with 20 s a campaign that killed the writer every ten seconds kept it waiting for half a minute at
a time. Shorter, and a process that dies as soon as it has loaded is begun again without a pause."""
SHORT_LIVES_FREE = 3
BACKOFF_MAX_S = 60.0
FREE_NAME_S = 1.0
"""Whoever was ended by force keeps its name for a moment: created sooner, the dying one would be found."""
GAP_S = 5.0
"""A watcher that stood still this long (stopped, starved) holds nobody's silence against them."""


class State(StrEnum):
    """What the status shows."""

    WAITING = "waiting"  # not running: begun again at the next turn, or after the backoff
    CRASH_LOOP = "crash loop"  # as waiting or starting, after too many short lives
    STARTING = "starting"
    RUNNING = "running"
    RETIRED = "drained"  # ended on purpose, for good
    LEAVING = "leaving"  # as RUNNING, but not wanted any more: it ends what it has
    OFF = "off duty"  # not wanted now


PENDING = "pending"
"""What the status shows of one that waits for a place, and that the others do without."""
_UNWANTED = (State.RETIRED, State.LEAVING, State.OFF)


class Do(StrEnum):
    """What to do with it now."""

    NOTHING = "nothing"
    CREATE = "create"
    END = "end"  # by force: it answers nobody


@dataclass(slots=True)
class Streak:
    """Short lives in a row, and the pause that they earn."""

    free: int = SHORT_LIVES_FREE
    steady_s: float = STEADY_S
    short_lives: int = 0

    def ended(self, lived_s: float, *, hopeless: bool = False) -> float:
        """Seconds to wait before the next life. `hopeless`: it could not even be made, so nothing is free."""
        self.short_lives = 1 if lived_s >= self.steady_s else self.short_lives + 1
        excess = self.short_lives - (0 if hopeless else self.free)
        return min(BACKOFF_MAX_S, 2.0 ** (min(excess, 16) - 1)) if excess > 0 else 0.0

    def lives(self, lived_s: float) -> None:
        """It lives for `lived_s` by now."""
        if lived_s >= self.steady_s:
            self.short_lives = 0

    @property
    def is_loop(self) -> bool:
        return self.short_lives > self.free


@dataclass(slots=True)
class Watched:
    """One process, through all of its lives."""

    hang_s: float
    start_s: float
    streak: Streak = field(default_factory=Streak)
    state: State = State.WAITING
    pid: int | None = None
    restarts: int = 0
    reason: str | None = None  # why it last ended
    _due_at: float = float("-inf")
    _heard_at: float = 0.0
    _begun_at: float = 0.0
    _stalled_s: float = 0.0
    _called_at: float | None = None  # start() was called and has not returned
    _had_a_life: bool = False
    _ran: bool = False

    def remember(self, pid: int | None, restarts: int, reason: str | None, *, ran: bool) -> None:
        """What an earlier watcher of it knew: a living process is adopted, another pid is a restart. Where it `ran`
        it had started already: that it may hang since then must not take `start_s` to find out."""
        self.pid, self.restarts, self.reason = pid, restarts, reason
        self._ran = ran

    def created(self, now: float) -> None:
        """It was created, or one that lives already was found."""
        if self.state in _UNWANTED:
            return
        if self._had_a_life:
            self.restarts += 1
            self.pid, self._ran = None, False
        self.state, self._had_a_life = State.STARTING, True
        self._heard_at = self._begun_at = now
        self._stalled_s, self._called_at = 0.0, None

    def start_called(self, now: float) -> None:
        self._called_at = now

    def start_returned(self) -> None:
        self._called_at = None

    def answered(self, pid: int, uptime_s: float, stalled_s: float, now: float) -> None:
        """It told its statistics."""
        if self.state not in (State.STARTING, State.RUNNING):
            return  # an answer from the life before
        if self.pid is not None and self.pid != pid:  # begun again by somebody else
            self.restarts += 1
        self.state, self.pid = State.RUNNING, pid
        self._heard_at, self._stalled_s = now, stalled_s
        self._begun_at = now - uptime_s
        self.streak.lives(uptime_s)

    def died(self, reason: str, now: float, *, hopeless: bool = False) -> None:
        """It is gone. `hopeless`: its constructor failed, or it could not be created at all."""
        if self.state in _UNWANTED:
            return
        pause_s = self.streak.ended(now - self._begun_at if self.state is State.RUNNING else 0.0, hopeless=hopeless)
        self.state, self.reason, self._due_at = State.WAITING, reason, now + pause_s

    def replace(self, reason: str, now: float) -> None:
        """It is well, but no longer what is wanted: it was ended, and is begun again at once."""
        self.state, self.reason, self._due_at = State.WAITING, reason, now + FREE_NAME_S

    def retire(self) -> None:
        """It is not wanted any more."""
        self.state = State.RETIRED

    def leave(self) -> None:
        """It is one too many: nobody is begun again in its place."""
        self.state = State.LEAVING

    def left(self) -> None:
        """It has ended, and is off duty."""
        self.state, self.pid, self.reason = State.OFF, None, None
        self.streak, self._had_a_life, self._ran = Streak(), False, False

    def hire(self, now: float) -> None:
        """It is wanted (again)."""
        self.state, self._due_at = State.WAITING, now + FREE_NAME_S

    @property
    def has_run(self) -> bool:
        """Whether this life of it has been heard, also by an earlier watcher."""
        return self._ran or self.state in (State.RUNNING, State.LEAVING)

    def skip(self, gap_s: float) -> None:
        """The watcher itself did nothing for `gap_s`: that was nobody's silence."""
        self._heard_at += gap_s
        if self._called_at is not None:
            self._called_at += gap_s

    def has_no_room(self, now: float) -> None:
        """It was created and can't be placed yet: no silence of its own."""
        if self.state is State.STARTING:
            self._heard_at = now

    def decide(self, now: float) -> Do:
        """What to do now. Whoever must END counts as dead from here on."""
        if self.state is State.WAITING:
            return Do.CREATE if now >= self._due_at else Do.NOTHING
        if (why := self._hung(now)) is None:
            return Do.NOTHING
        self.died(why, now)
        self._due_at = max(self._due_at, now + FREE_NAME_S)
        return Do.END

    def _hung(self, now: float) -> str | None:
        silent_s = now - self._heard_at
        if self.state is State.STARTING:
            bound_s = self.hang_s if self._ran else self.start_s
            return f"hung: not started after {silent_s:.0f} s" if silent_s >= bound_s else None
        if self.state is not State.RUNNING:
            return None
        if silent_s >= self.hang_s:
            return f"hung: no answer for {silent_s:.0f} s"
        if self._stalled_s >= self.hang_s:
            return f"hung: its loop has not turned for {self._stalled_s:.0f} s"
        # How long opening tables and building their indexes may take is the actor's to say, by its own stall.
        if self._stalled_s > 0 and self._called_at is not None and now - self._called_at >= self.start_s:
            return f"hung: start() has not returned for {now - self._called_at:.0f} s"
        return None

    def backoff_s(self, now: float) -> float:
        """Seconds until it is begun again; 0 where it runs or is due."""
        return max(0.0, self._due_at - now) if self.state is State.WAITING else 0.0

    def shown(self, now: float) -> dict[str, str | int | float | None]:
        """As the status shows it."""
        state = self.state
        if state in (State.WAITING, State.STARTING) and (self.streak.is_loop or self.backoff_s(now) > 0):
            state = State.CRASH_LOOP
        return {
            "state": str(state),
            # Also while it is only being adopted: the next watcher must know it, if this one dies before it is heard.
            "has_run": self.has_run,
            "pid": self.pid,
            "restarts": self.restarts,
            "reason": self.reason,
            "backoff_s": round(self.backoff_s(now), 1),
        }
