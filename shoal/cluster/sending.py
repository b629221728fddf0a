"""Sending much at a bounded pace: what `shoal replay` and `shoal backfill` have in common.

`Window` is the pure core: messages in the order they were sent, with what answers each; it settles them from
the front. So what is remembered (`marks`, `counts`) is always true of everything up to one point: after a kill a
run goes on behind it, and what was sent beyond is sent again, which idempotence makes harmless. `PacedSender`
is the shell: it keeps to a rate and to the window's size, and listens for outcomes while it waits. A run's
memory is one small file, written whole (`StateFile`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from shoal.cluster.output import Exit, say
from shoal.errors import ConfigurationError, TransientError
from shoal.records import Outcome
from shoal.settings import Settings
from shoal.sources.kafka import TailReader, connection, open_producer
from shoal.sources.messages import OUTCOME_HEADER

Header = tuple[str, bytes | None]

FLUSH_S = 30.0
BATCH = 100  # messages between two flushes: more are at risk of being sent twice, fewer wait for the log each time
LISTEN_S = 0.2  # one wait for outcomes: how late a SIGINT may be noticed
SAVE_S = 1.0  # between two writes of the state: what a kill makes the next run send again
SKIPPED_A_LOOK = 1_000  # names or messages passed over between two looks at outcomes, signals and the clock
DEAD_KEPT_MAX = 20


# --- the pure core ----------------------------------------------------------------------------


@dataclass(slots=True)
class _Sent:
    """One message, and what was passed over after it. `waiting`: the outcomes it still lacks."""

    name: str
    waiting: set[str]
    marks: dict[str, Any] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)


class Window:
    """What was sent and is not yet settled. `marks` and `counts` hold of everything settled."""

    def __init__(self, marks: Mapping[str, Any] | None = None, counts: Mapping[str, int] | None = None) -> None:
        self.marks: dict[str, Any] = dict(marks or {})
        self.counts: Counter[str] = Counter(counts or {})
        self.dead: list[tuple[str, str, str]] = []
        self._sent: deque[_Sent] = deque()
        self._by_outcome: dict[str, _Sent] = {}
        self._unanswered = 0

    @property
    def unanswered(self) -> int:
        """Messages that lack an outcome."""
        return self._unanswered

    def send(self, name: str, outcome_ids: Sequence[str], mark: tuple[str, Any]) -> None:
        """A message goes out that answers under `outcome_ids`; once it has, all up to `mark` is settled."""
        entry = _Sent(name, set(outcome_ids), dict([mark]), Counter(sent=1))
        self._sent.append(entry)
        for outcome_id in outcome_ids:
            self._by_outcome[outcome_id] = entry
        self._unanswered += bool(outcome_ids)

    def skip(self, why: str, mark: tuple[str, Any]) -> None:
        """Something is not sent, for a reason that is counted."""
        if not self._sent:
            self.counts[why] += 1
            self.marks[mark[0]] = mark[1]
            return
        last = self._sent[-1]
        last.counts[why] += 1
        last.marks[mark[0]] = mark[1]

    def answer(self, outcome_id: str, outcome: Outcome, reason: str = "", message: str = "") -> bool:
        """An outcome was heard; False where nobody waits for it (any more)."""
        entry = self._by_outcome.pop(outcome_id, None)
        if entry is None:
            return False
        entry.waiting.discard(outcome_id)
        entry.counts[outcome.value] += 1
        if outcome is Outcome.DEAD_LETTERED and len(self.dead) < DEAD_KEPT_MAX:
            self.dead.append((entry.name, reason, message))
        self._unanswered -= not entry.waiting
        return True

    def flushed(self, token: str) -> None:
        """A message that nobody answers is durable."""
        entry = self._by_outcome.pop(token, None)
        if entry is not None:
            entry.waiting.discard(token)
            self._unanswered -= not entry.waiting

    def settle(self) -> None:
        """Take from the front what has all its outcomes."""
        while self._sent and not self._sent[0].waiting:
            entry = self._sent.popleft()
            self.marks.update(entry.marks)
            self.counts += entry.counts


class Pace:
    """`rate` a second, evenly, without catching up after a pause; 0: no bound."""

    def __init__(self, rate: float) -> None:
        self._gap_s = 1 / rate if rate > 0 else 0.0
        self._next_at = float("-inf")

    def wait_s(self, now: float) -> float:
        """How long until the next may go."""
        return max(0.0, self._next_at - now)

    def gone(self, now: float) -> None:
        """One went."""
        self._next_at = max(now, self._next_at) + self._gap_s


# --- memory -----------------------------------------------------------------------------------


class StateFile:
    """What an unfinished run has done, as JSON; named by its arguments, so that the same command goes on."""

    def __init__(self, directory: Path, arguments: Mapping[str, Any]) -> None:
        self._arguments = orjson.loads(orjson.dumps(arguments, default=str))
        name = hashlib.sha256(orjson.dumps(self._arguments, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
        self.path = directory / f"{name}.json"

    def load(self) -> dict[str, Any] | None:
        """The state of the run that was interrupted; None where there is none. Raises ConfigurationError."""
        try:
            found = orjson.loads(self.path.read_bytes())
            return dict(found["state"]) if found["arguments"] == self._arguments else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigurationError(f"{self.path} can't be read ({error}): remove it to start over") from None

    def save(self, state: Mapping[str, Any]) -> None:
        """Whole or not at all. Raises TransientError where the disk takes it not."""
        draft = self.path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                file.write(orjson.dumps({"arguments": self._arguments, "state": state}))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path)
        except OSError as error:
            raise TransientError(f"{self.path}: {error.strerror}") from error

    def forget(self) -> None:
        """The run is finished."""
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets, so that a run ends between two messages. A second one ends it at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, _frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- the shell --------------------------------------------------------------------------------


class SilenceError(TransientError):
    """No outcome came for too long."""


class PacedSender:
    """Sends messages one after the other, never faster than `rate` a second, and where it listens never with more
    than `in_flight_max` unanswered. Use as a context manager; one thread."""

    def __init__(
        self,
        settings: Settings,
        window: Window,
        *,
        listen: bool,
        rate: float,
        in_flight_max: int,
        timeout_s: float,
        save: Callable[[Window], None],
        asked_to_stop: threading.Event,
        progress: Callable[[Window], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`timeout_s`: without any outcome, when room is needed. `save` is called about once a second."""
        self.window = window
        self._batch = uuid.uuid4().hex[:12]
        self._number = self._skipped = 0
        self._pace, self._in_flight_max, self._timeout_s = Pace(rate), in_flight_max, timeout_s
        self._save, self._progress, self._clock = save, progress, clock
        self._stop = asked_to_stop
        self._unflushed: list[tuple[str, list[str]]] = []
        self._saved_at = self._heard_at = clock()
        # Listening begins before the first message is sent: no outcome can be missed.
        self._tail = TailReader(settings, connection(settings), settings.outcome_topic) if listen else None
        self._producer = open_producer(settings)

    def __enter__(self) -> PacedSender:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._tail is not None:
            self._tail.close()

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[Header],
        *,
        name: str,
        mark: tuple[str, Any],
        answers: int = 1,
    ) -> bool:
        """Send when rate and window allow; False where it was asked to stop instead, and nothing was sent.

        `answers`: how many outcomes the message will have. Raises SilenceError, TransientError.
        """
        while not self._stop.is_set():
            full = self._tail is not None and self.window.unanswered >= self._in_flight_max
            wait_s = self._pace.wait_s(self._clock())
            if not full and wait_s == 0:
                break
            self._flush()
            self._listen(LISTEN_S if full else min(wait_s, LISTEN_S))
            if full:
                self._refuse_silence()
        if self._stop.is_set():
            return False
        ids: list[str] = []
        sent = list(headers)
        if self._tail is not None:
            outcome_id = f"{self._batch}:{self._number}"
            ids = [outcome_id] if answers == 1 else [f"{outcome_id}/{part}" for part in range(1, answers + 1)]
            sent.append((OUTCOME_HEADER, outcome_id.encode()))
            if self.window.unanswered == 0:
                self._heard_at = self._clock()
        self._number += 1
        self._producer.send(topic, key, value, sent)
        # Without an answer to wait for, a message is settled once it is flushed.
        token = [f"flushed:{self._number}"] if self._tail is None else ids
        self.window.send(name, token, mark)
        self._pace.gone(self._clock())
        self._unflushed.append((name, token))
        if len(self._unflushed) >= BATCH:
            self._flush()
            self._listen(0.0)
        return True

    def skip(self, why: str, mark: tuple[str, Any]) -> bool:
        """Pass something over, for a reason that is counted; False where it was asked to stop."""
        self.window.skip(why, mark)
        self._skipped += 1
        if self._skipped % SKIPPED_A_LOOK == 0:
            self._flush()
            self._listen(0.0)
            self._settle()
        return not self._stop.is_set()

    def finish(self) -> bool:
        """Wait for every outcome; False where it was asked to stop before. Raises SilenceError."""
        self._flush()
        while self.window.unanswered and not self._stop.is_set():
            self._listen(LISTEN_S)
            self._refuse_silence()
        self.window.settle()
        return not self.window.unanswered

    def run(self, send: Callable[[], bool], file: StateFile) -> Exit:
        """Do `send`, which is False where it was asked to stop, and wait for every outcome. Whatever ends it early,
        what is settled is saved and the user is told how to go on; after a good end `file` is forgotten."""
        end = Exit.OK
        with self:
            try:
                end = Exit.OK if send() and self.finish() else Exit.INTERRUPTED
            except SilenceError as error:
                say(str(error))
                end = Exit.TIMEOUT
            except BaseException:
                self.leave()
                say(f"interrupted: the same command goes on behind what is settled ({file.path})")
                raise
            if end is not Exit.OK:
                self.leave()
        if end is Exit.OK:
            file.forget()
        return end

    def leave(self) -> None:
        """Before an early end, whatever its reason: flush what was sent, and save what is settled."""
        try:
            with contextlib.suppress(TransientError):
                self._flush()
                self._listen(0.0)
        finally:
            self.window.settle()
            self._save(self.window)

    def _flush(self) -> None:
        # A producer tells a failure once, and has dropped what failed: what an interrupted or failed flush was about
        # is never asked for again, so it stays unsettled and the next run sends it.
        asked, self._unflushed = self._unflushed, []
        if not asked:
            return
        self._producer.flush(FLUSH_S)
        if self._tail is None:
            for _, token in asked:
                self.window.flushed(token[0])
            self._settle()

    def _listen(self, timeout_s: float) -> None:
        if self._tail is None:
            if timeout_s > 0:
                self._stop.wait(timeout_s)
            return
        for raw in self._tail.poll(timeout_s):
            # The key is read first: others answer on this topic too, and what they write is not ours to parse.
            outcome_id = (raw.key or b"").decode(errors="replace")
            if not outcome_id.startswith(self._batch):
                continue
            record = orjson.loads(raw.value or b"{}")
            told = (str(record.get("reason") or ""), str(record.get("message") or ""))
            if self.window.answer(outcome_id, Outcome(record["outcome"]), *told):
                self._heard_at = self._clock()
        self._settle()

    def _settle(self) -> None:
        self.window.settle()
        self._progress(self.window)
        now = self._clock()
        if now - self._saved_at >= SAVE_S:
            self._saved_at = now
            self._save(self.window)

    def _refuse_silence(self) -> None:
        if self._clock() - self._heard_at > self._timeout_s:
            raise SilenceError(
                f"{self.window.unanswered} messages have no outcome after {self._timeout_s:g} s: see `shoal status`"
            )
