"""The pipeline: drives one message's documents through fetch, embed and write, to its end.

The reader owns an item until its outcome is durable; this module is that ownership, without Ray: the stages
are a protocol, so that tests script their faults. Guarantees it carries:

* an item ends exactly once, and only after the ack of the writer or the durable dead letter (G1, G4);
* bad records become dead letters, bad systems are retried with backoff behind a breaker, and shown (G5);
* what was fetched is held only within the credits' bytes (G6);
* two items of one document never run at the same time: they run in log order (G2).

It holds no offsets: the reader learns the end of an item from the coroutine's return.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from shoal import tracing
from shoal.actors.backpressure import Credits
from shoal.actors.breaker import Breakers
from shoal.actors.retry import DependencyHealth, Verdict, backoff_s
from shoal.errors import BadDocument, ConfigurationError, DeadReason, PermanentError, TransientError
from shoal.histograms import Durations
from shoal.records import (
    Ack,
    Announcement,
    Command,
    Deletion,
    Embedded,
    EmbeddedCommand,
    Failure,
    Fetched,
    Outcome,
    Work,
    Writable,
)
from shoal.sources.messages import RawMessage

Result = TypeVar("Result")

log = logging.getLogger("shoal.reader")

RECORDS_AT_ONCE = 16  # of one message: it counts as one item in flight, whatever it holds


PAYLOAD_BYTES = 1024 * 1024
"""Reserved for a document while it is fetched, where the caller knows no better."""

EMBEDDED_KIND = "fix"
"""The one kind of command that carries a vector."""

UNFORESEEN = {"embed": DeadReason.EMBEDDING_REJECTED, "write": DeadReason.WRITE_REJECTED}
"""What a document ends as that alone keeps making a stage fail (at fetch its location is the judge)."""


class UnforeseenError(TransientError):
    """A stage raised what is none of our errors: a bug, which one document may meet and others not."""


class _NotReportedError(Exception):
    pass


class PayloadLostError(TransientError):
    """What a stage handed on is gone (a node died): the document starts over at its fetch."""


@dataclass(frozen=True, slots=True)
class FetchResult:
    """What a fetch worker says to the reader; the text itself travels as an opaque payload.

    `failed` is the whole `Fetched` where the document is bad, else None. `payload_bytes`: what the payload takes
    until it is written, vectors included.
    """

    failed: Fetched | None
    payload_bytes: int = 0


class Stages(Protocol):
    """What the pipeline needs done. Every method may raise TransientError or ConfigurationError."""

    async def fetch(self, announcement: Announcement) -> tuple[FetchResult, Any]: ...

    async def alive(self, dependency: str) -> bool:
        """Whether a dependency of fetches (`dependency_of`) answers at all, whatever it makes of one object."""

    async def embed(self, fetched: Any) -> tuple[Failure | None, Any]:
        """`fetched`, the payload of `fetch` -> (why the texts were refused or None, payload to write)."""

    async def embed_command(self, command: Command) -> EmbeddedCommand: ...

    async def write(self, writable: Any) -> Ack:
        """A payload of `embed` or a Writable; returns once it is durable."""

    async def resolve(self, s3_path: str) -> str | None:
        """The id of the current document stored at `s3_path`, or None."""

    async def dead_letter(self, raw: RawMessage, failure: Failure) -> None:
        """Returns once the dead letter is durable."""

    async def settle(self, raw: RawMessage, outcome: Outcome | None, failure: Failure | None) -> None:
        """Where `raw` is a replayed dead letter, record what became of it (None: it asked for nothing); returns
        once that is durable."""

    async def report(self, outcome_id: str, outcome: Outcome, raw: RawMessage, detail: dict[str, Any]) -> None:
        """Tell the waiting publisher; returns once durable."""


@dataclass(slots=True)
class Item:
    """One message in flight, with what the status shows of it."""

    raw: RawMessage
    started_at: float
    stage: str = "parse"
    error: str | None = None  # why it must wait or try again
    task: asyncio.Task[None] | None = None  # drives it
    trace: str | None = None  # traceparent of its span
    abandoned: bool = False  # its partition has another owner, who does it again


def dependency_of(announcement: Announcement) -> str:
    """What a failing location says is unwell: its bucket, or the local disk."""
    if announcement.location is None:
        return "inline"
    parts = urlsplit(announcement.location)
    return f"{parts.scheme}://{parts.netloc}"


class Pipeline:
    """Runs items concurrently on one event loop. Counters are read by the reader's statistics."""

    def __init__(
        self,
        stages: Stages,
        parse: Callable[[RawMessage], Sequence[Work]],
        give_up_after_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        is_s3_event_id: Callable[[str], bool] = lambda _: False,
        outcome_id_of: Callable[[RawMessage], str | None] = lambda _: None,
        credits: Credits | None = None,
        payload_bytes: int = PAYLOAD_BYTES,
        is_replay: Callable[[RawMessage], bool] = lambda _: True,
        rng: random.Random | None = None,
    ) -> None:
        """`payload_bytes` is reserved of `credits` while a document is fetched: the most it may become."""
        self._stages, self._parse = stages, parse
        self._clock, self._pause = clock, pause
        self._is_s3_event_id, self._outcome_id_of = is_s3_event_id, outcome_id_of
        self._give_up_after_s = give_up_after_s
        self._health = DependencyHealth(give_up_after_s)
        self._breakers = Breakers()
        self._credits = credits or Credits(2**31, 2**62)
        self._payload_bytes = payload_bytes
        self._is_replay = is_replay
        self._heirs: set[asyncio.Task[None]] = set()  # of abandoned works, whose turn must still not be skipped
        self._gate = asyncio.Lock()  # who waits for room, in order
        self._room = asyncio.Event()
        self._calls = itertools.count()
        self._rng = rng or random.Random()  # noqa: S311 - jitter
        self._tails: dict[str, asyncio.Event] = {}
        self.outcomes: Counter[str] = Counter()
        self.dead_letters: Counter[str] = Counter()
        self.retries = 0
        self.retried: Counter[str] = Counter()  # by stage
        self.durations = Durations()  # of each stage's single calls, whatever became of them
        self.last_error: str | None = None

    def breakers(self) -> dict[str, str]:
        """What nothing is asked of now, and why."""
        return self._breakers.open(self._clock())

    async def run(self, item: Item) -> None:
        """Drive `item` to its end. Returns only when its outcome is durable; only cancellation ends it early.

        Call in log order: documents that share an id wait for those whose `run` began before.
        """
        try:
            works = self._parse(item.raw)
        except BadDocument as error:
            bad = Failure(error.reason, error.message, "parse")
            await self._bury(item, bad)
            await self._count(item, self._outcome_id_of(item.raw), Ack(Outcome.DEAD_LETTERED), bad)
            return
        if item.trace is not None:
            works = [replace(work, trace=item.trace) for work in works]
        slots = asyncio.Semaphore(RECORDS_AT_ONCE)
        ends = await asyncio.gather(*(self._in_turn(item, work, slots) for work in works))
        failures = [failure for _, failure in ends if failure]
        if failures:
            # One message, one dead letter: replaying it redoes all its records, which is idempotent.
            await self._bury(item, failures[0])
        else:
            await self._settle(item, ends[-1][0].outcome if ends else None)
        for work, (ack, failure) in zip(works, ends, strict=True):
            await self._count(item, work.outcome_id, ack, failure)

    async def _bury(self, item: Item, failure: Failure) -> None:
        log.info("becomes a dead letter: %s, at %s", failure.reason, failure.stage)
        await self._retrying(item, "dead letter", "kafka", lambda: self._stages.dead_letter(item.raw, failure))
        await self._settle(item, Outcome.DEAD_LETTERED, failure)

    async def _settle(self, item: Item, outcome: Outcome | None, failure: Failure | None = None) -> None:
        if self._is_replay(item.raw):
            await self._retrying(item, "settle", "kafka", lambda: self._stages.settle(item.raw, outcome, failure))

    async def _count(self, item: Item, outcome_id: str | None, ack: Ack, failure: Failure | None) -> None:
        outcome = Outcome.DEAD_LETTERED if failure else ack.outcome
        detail: dict[str, Any] = {"commit_sequence": ack.commit_sequence}
        if failure:
            self.dead_letters[failure.reason] += 1
            detail |= {"reason": failure.reason, "message": failure.message[:500]}
        self.outcomes[outcome] += 1
        if outcome_id is not None:
            await self._report(item, outcome_id, outcome, detail)

    async def _report(self, item: Item, outcome_id: str, outcome: Outcome, detail: dict[str, Any]) -> None:
        """A courtesy to whoever waits: what is durable already must not wait for it for ever."""
        deadline = self._clock() + self._give_up_after_s

        async def give_up(error: Exception) -> None:
            if self._clock() >= deadline:
                raise _NotReportedError from error

        def call() -> Awaitable[None]:
            return self._stages.report(outcome_id, outcome, item.raw, detail)

        try:
            await self._retrying(item, "report", None, call, give_up)
        except _NotReportedError:
            log.warning("the outcome of %s could not be reported: %s", item.raw.position, self.last_error)

    async def _in_turn(self, item: Item, work: Work, slots: asyncio.Semaphore) -> tuple[Ack, Failure | None]:
        """One work, after every earlier one that touches the same document or object."""
        keys = _keys(work)
        before = [self._tails[key] for key in keys if key in self._tails]
        mine = asyncio.Event()
        for key in keys:
            self._tails[key] = mine
        try:
            for event in before:
                item.stage = "waiting for an earlier version"
                await event.wait()
            async with slots:  # after the waiting: whoever is waited for must not need the slot that this one holds
                return await self._to_the_end(item, work)
        finally:
            if all(event.is_set() for event in before):
                self._pass_on(keys, mine)
            else:  # abandoned while it waited: whoever waits for it must wait for those before it
                heir = asyncio.ensure_future(self._inherit(keys, mine, before))
                self._heirs.add(heir)
                heir.add_done_callback(self._heirs.discard)

    def _pass_on(self, keys: Sequence[str], mine: asyncio.Event) -> None:
        mine.set()
        for key in keys:
            if self._tails.get(key) is mine:
                del self._tails[key]

    async def _inherit(self, keys: Sequence[str], mine: asyncio.Event, before: Sequence[asyncio.Event]) -> None:
        for event in before:
            await event.wait()
        self._pass_on(keys, mine)

    async def _to_the_end(self, item: Item, work: Work) -> tuple[Ack, Failure | None]:
        attempt = 0
        while True:
            try:
                return await self._work(item, work)
            except PayloadLostError as error:
                attempt += 1
                self._retries("payload lost")
                self.last_error = str(error)
                await self._pause(backoff_s(attempt, None, self._rng))
            except BadDocument as error:  # whichever stage says so: a bad record is never our own failure (G4)
                stage = item.stage.partition(":")[0]  # without what it waited for
                return Ack(Outcome.DEAD_LETTERED), Failure(error.reason, error.message, stage)

    async def _work(self, item: Item, work: Work) -> tuple[Ack, Failure | None]:
        if isinstance(work, Command):
            command = work
            # The others carry no vector: what was spent, or is to be done, goes on while the budget or the provider
            # says no.
            if command.kind != EMBEDDED_KIND:
                return await self._write(item, EmbeddedCommand(command))
            return await self._write(
                item, await self._retrying(item, "embed", "embedder", lambda: self._stages.embed_command(command))
            )
        if isinstance(work, Deletion):
            return await self._write(item, work)
        if self._is_s3_event_id(work.document_id) and work.location:
            location = work.location
            known = await self._retrying(item, "resolve", "tables", lambda: self._stages.resolve(location))
            if known:
                work = replace(work, document_id=known)
        return await self._document(item, work)

    async def _document(self, item: Item, announcement: Announcement) -> tuple[Ack, Failure | None]:
        result, payload = await self._fetch(item, announcement)
        try:
            if result.failed is not None and result.failed.failure is not None:
                failure = result.failed.failure
                if result.failed.sha256 is not None:  # it exists: "have we got this file" is answered truly
                    await self._write(item, Embedded(result.failed))
                return Ack(Outcome.DEAD_LETTERED), failure
            refused, payload = await self._retrying(item, "embed", "embedder", lambda: self._stages.embed(payload))
            ack, failure_of_write = await self._write(item, payload)
            return ack, refused or failure_of_write
        finally:
            self._give_room(result.payload_bytes)

    def _give_room(self, payload_bytes: int) -> None:
        self._credits.drop(payload_bytes)
        self._room.set()

    async def _fetch(self, item: Item, announcement: Announcement) -> tuple[FetchResult, Any]:
        """Fetch with retries; the result's payload holds its bytes of the credits. Raises BadDocument once this
        object, and not its system, is what fails."""
        dependency, key = dependency_of(announcement), announcement.location or announcement.document_id

        async def call() -> tuple[FetchResult, Any]:
            item.stage = "waiting for room"
            began = self._clock()
            async with self._gate:  # a lock is fair: the first to come is the first to get room
                while not self._credits.admit(self._payload_bytes):
                    self._room.clear()
                    await self._room.wait()
            item.stage = "fetch"
            self.durations.observe("stage.wait_for_room", self._clock() - began)
            try:
                result, payload = await self._timed("fetch", self._stages.fetch(announcement))
            except BaseException:  # also before it waits to try again: others may go meanwhile
                self._give_room(self._payload_bytes)
                raise
            self._credits.resize(self._payload_bytes, result.payload_bytes)
            self._room.set()
            return result, payload

        async def judge(error: Exception) -> None:
            verdict = self._health.failed(dependency, key, self._clock())
            if verdict is Verdict.GIVE_UP or (verdict is Verdict.UNKNOWN and await self._is_alive(dependency)):
                refused = isinstance(error, ConfigurationError)
                reason = DeadReason.ACCESS_REFUSED if refused else DeadReason.OBJECT_UNAVAILABLE
                raise BadDocument(reason, str(error)) from error

        try:
            result = await self._retrying(item, "fetch", dependency, call, judge)
        finally:
            self._health.forget(dependency, key)
        self._health.succeeded(dependency, key)
        return result

    async def _is_alive(self, dependency: str) -> bool:
        try:
            return await self._stages.alive(dependency)
        except (TransientError, PermanentError):
            return False

    async def _write(self, item: Item, writable: Writable | Any) -> tuple[Ack, Failure | None]:
        ack = await self._retrying(item, "write", "tables", lambda: self._stages.write(writable))
        return ack, ack.failure

    async def _retrying(
        self,
        item: Item,
        stage: str,
        dependency: str | None,
        call: Callable[[], Awaitable[Result]],
        judge: Callable[[Exception], Awaitable[None]] | None = None,
    ) -> Result:
        """`call` until it succeeds, or `judge` raises. A bad system never loses an item: the reader's credits hold
        back the rest, and the breaker of `dependency` lets only probes through."""
        attempt = 0
        me = f"{item.raw.position} {next(self._calls)}"  # records of one message are each their own
        try:
            while True:
                if dependency is not None:
                    await self._let_through(item, stage, dependency, me, judge)
                item.stage = stage
                try:  # a fetch tells its waiting for room apart
                    result = await (call() if stage == "fetch" else self._timed(stage, call()))
                except (PayloadLostError, BadDocument):
                    raise
                except (TransientError, PermanentError) as error:
                    attempt += 1
                    self._retries(stage)
                    self.last_error = item.error = f"{stage}: {error}"
                    await self._judge(stage, me, error, judge)
                    told = error.retry_after_s if isinstance(error, TransientError) else None
                    if dependency is not None and not isinstance(error, UnforeseenError):
                        self._breakers.failed(dependency, me, error, told, self._clock())
                    if dependency is None or not self._breakers.wait_s(dependency, me, self._clock()):
                        item.stage = f"{stage}: waiting to retry ({type(error).__name__})"
                        await self._pause(backoff_s(attempt, told, self._rng))
                else:
                    if dependency is not None:
                        self._breakers.succeeded(dependency, me)
                    if stage in UNFORESEEN:
                        self._health.succeeded(stage, me)
                    item.error = None
                    return result
        finally:
            if dependency is not None:
                self._breakers.left(dependency, me)
            if stage in UNFORESEEN:
                self._health.forget(stage, me)

    async def _timed(self, stage: str, call: Awaitable[Result]) -> Result:
        began = self._clock()
        try:
            with tracing.span(f"await {stage}"):
                return await call
        finally:
            self.durations.observe(f"stage.{stage.replace(' ', '_')}", self._clock() - began)

    def _retries(self, stage: str) -> None:
        self.retries += 1
        self.retried[stage.replace(" ", "_")] += 1

    async def _let_through(
        self,
        item: Item,
        stage: str,
        dependency: str,
        me: str,
        judge: Callable[[Exception], Awaitable[None]] | None,
    ) -> None:
        """Wait until the breaker of `dependency` is closed, or it is for this item to probe. Who waits is judged as
        those that tried: of a bucket that does not exist each would else be given up only after its turn as a probe."""
        while wait_s := self._breakers.wait_s(dependency, me, self._clock()):
            item.stage = f"{stage}: {dependency} is unwell"
            error = self._breakers.error(dependency)
            if error is not None:
                item.error = f"{stage}: {error}"
                if judge is not None:
                    await judge(error)
            await self._pause(wait_s)

    async def _judge(
        self, stage: str, me: str, error: Exception, judge: Callable[[Exception], Awaitable[None]] | None
    ) -> None:
        """Raises BadDocument where the document is what fails, and not its system."""
        if judge is not None:
            await judge(error)
        if not isinstance(error, UnforeseenError) or stage not in UNFORESEEN:
            return
        verdict = self._health.failed(stage, me, self._clock())
        # A stage that has worked needs no probe: nearly nobody else failing means that only this document meets it.
        if verdict is Verdict.GIVE_UP or (verdict is Verdict.UNKNOWN and self._health.has_worked(stage)):
            raise BadDocument(UNFORESEEN[stage], str(error)) from error


def _keys(work: Work) -> tuple[str, ...]:
    """What a work touches: works that share a key run in log order."""
    if isinstance(work, Announcement):
        path = work.location if work.location and work.location.startswith("s3://") else None
        return (work.document_id, path) if path else (work.document_id,)
    if isinstance(work, Deletion):
        return tuple(key for key in (work.document_id, work.s3_path) if key)
    return (f"command:{work.command_id}",)
