"""The pipeline: drives one message's documents through fetch, embed and write, to its end.

The reader owns an item until its outcome is durable; this module is that ownership, without Ray: the stages
are a protocol, so that tests script their faults. Guarantees it carries:

* an item ends exactly once, and only after the ack of the writer or the durable dead letter (G1, G4);
* bad records become dead letters, bad systems are retried with backoff and shown (G5);
* two items of one document never run at the same time: they run in log order (G2).

It holds no offsets: the reader learns the end of an item from the coroutine's return.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from shoal.actors.retry import DependencyHealth, backoff_s
from shoal.errors import BadDocument, ConfigurationError, DeadReason, PermanentError, TransientError
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

    `failed` is the whole `Fetched` where the document is bad, else None.
    """

    failed: Fetched | None


class Stages(Protocol):
    """What the pipeline needs done. Every method may raise TransientError or ConfigurationError."""

    async def fetch(self, announcement: Announcement) -> tuple[FetchResult, Any]: ...

    async def embed(self, fetched: Any) -> tuple[Failure | None, Any]:
        """`fetched`, the payload of `fetch` -> (why the texts were refused or None, payload to write)."""

    async def embed_command(self, command: Command) -> EmbeddedCommand: ...

    async def write(self, writable: Any) -> Ack:
        """A payload of `embed` or a Writable; returns once it is durable."""

    async def resolve(self, s3_path: str) -> str | None:
        """The id of the current document stored at `s3_path`, or None."""

    async def dead_letter(self, raw: RawMessage, failure: Failure) -> None:
        """Returns once the dead letter is durable."""

    async def report(self, outcome_id: str, outcome: Outcome, raw: RawMessage, detail: dict[str, Any]) -> None:
        """Tell the waiting publisher; returns once durable."""


@dataclass(slots=True)
class Item:
    """One message in flight, with what the status shows of it."""

    raw: RawMessage
    epoch: int
    started_at: float
    stage: str = "parse"
    task: asyncio.Task[None] | None = None  # drives it
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
    ) -> None:
        self._stages, self._parse = stages, parse
        self._clock, self._pause = clock, pause
        self._is_s3_event_id, self._outcome_id_of = is_s3_event_id, outcome_id_of
        self._give_up_after_s = give_up_after_s
        self._health = DependencyHealth(give_up_after_s)
        self._rng = random.Random()  # noqa: S311 - jitter
        self._tails: dict[str, asyncio.Event] = {}
        self.outcomes: Counter[str] = Counter()
        self.dead_letters: Counter[str] = Counter()
        self.retries = 0
        self.last_error: str | None = None

    async def run(self, item: Item) -> None:
        """Drive `item` to its end. Returns only when its outcome is durable; only cancellation ends it early.

        Call in log order: documents that share an id wait for those whose `run` began before.
        """
        try:
            works = self._parse(item.raw)
        except BadDocument as error:
            await self._bury(item, Failure(error.reason, error.message, "parse"), self._outcome_id_of(item.raw))
            return
        slots = asyncio.Semaphore(RECORDS_AT_ONCE)
        ends = await asyncio.gather(*(self._in_turn(item, work, slots) for work in works))
        failures = [failure for _, failure in ends if failure]
        if failures:
            # One message, one dead letter: replaying it redoes all its records, which is idempotent.
            await self._retrying(item, "dead letter", lambda: self._stages.dead_letter(item.raw, failures[0]))
        for work, (ack, failure) in zip(works, ends, strict=True):
            await self._count(item, work.outcome_id, ack, failure)

    async def _bury(self, item: Item, failure: Failure, outcome_id: str | None) -> None:
        await self._retrying(item, "dead letter", lambda: self._stages.dead_letter(item.raw, failure))
        await self._count(item, outcome_id, Ack(Outcome.DEAD_LETTERED), failure)

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

        def give_up(error: Exception) -> None:
            if self._clock() >= deadline:
                raise _NotReportedError from error

        try:
            await self._retrying(
                item, "report", lambda: self._stages.report(outcome_id, outcome, item.raw, detail), give_up
            )
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
            mine.set()
            for key in keys:
                if self._tails.get(key) is mine:
                    del self._tails[key]

    async def _to_the_end(self, item: Item, work: Work) -> tuple[Ack, Failure | None]:
        attempt = 0
        while True:
            try:
                return await self._work(item, work)
            except PayloadLostError as error:
                attempt += 1
                self.retries += 1
                self.last_error = str(error)
                await self._pause(backoff_s(attempt, None, self._rng))
            except BadDocument as error:  # whichever stage says so: a bad record is never our own failure (G4)
                return Ack(Outcome.DEAD_LETTERED), Failure(error.reason, error.message, item.stage)

    async def _work(self, item: Item, work: Work) -> tuple[Ack, Failure | None]:
        if isinstance(work, Command):
            command = work
            return await self._write(
                item, await self._retrying(item, "embed", lambda: self._stages.embed_command(command))
            )
        if isinstance(work, Deletion):
            return await self._write(item, work)
        if self._is_s3_event_id(work.document_id) and work.location:
            location = work.location
            known = await self._retrying(item, "resolve", lambda: self._stages.resolve(location))
            if known:
                work = replace(work, document_id=known)
        return await self._document(item, work)

    async def _document(self, item: Item, announcement: Announcement) -> tuple[Ack, Failure | None]:
        result, payload = await self._fetch(item, announcement)
        if result.failed is not None and result.failed.failure is not None:
            failure = result.failed.failure
            if result.failed.sha256 is not None:  # it exists: "have we got this file" is answered truly
                await self._write(item, Embedded(result.failed))
            return Ack(Outcome.DEAD_LETTERED), failure
        refused, payload = await self._retrying(item, "embed", lambda: self._stages.embed(payload))
        ack, failure_of_write = await self._write(item, payload)
        return ack, refused or failure_of_write

    async def _fetch(self, item: Item, announcement: Announcement) -> tuple[FetchResult, Any]:
        """Fetch with retries; raises BadDocument once this object, and not its system, is what fails."""
        dependency, key = dependency_of(announcement), announcement.location or announcement.document_id
        first_failed_at: float | None = None

        def give_up(error: Exception) -> None:
            nonlocal first_failed_at
            now = self._clock()
            first_failed_at = now if first_failed_at is None else first_failed_at
            if self._health.failed(dependency, key, first_failed_at, now):
                refused = isinstance(error, ConfigurationError)
                reason = DeadReason.ACCESS_REFUSED if refused else DeadReason.OBJECT_UNAVAILABLE
                raise BadDocument(reason, str(error)) from error

        try:
            result = await self._retrying(item, "fetch", lambda: self._stages.fetch(announcement), give_up)
        finally:
            self._health.forget(dependency, key)
        self._health.succeeded(dependency, key, self._clock())
        return result

    async def _write(self, item: Item, writable: Writable | Any) -> tuple[Ack, Failure | None]:
        ack = await self._retrying(item, "write", lambda: self._stages.write(writable))
        return ack, ack.failure

    async def _retrying(
        self,
        item: Item,
        stage: str,
        call: Callable[[], Awaitable[Result]],
        on_error: Callable[[Exception], None] = lambda _: None,
    ) -> Result:
        """`call` until it succeeds. A bad system never loses an item: the reader's credits hold back the rest."""
        attempt = 0
        first_unforeseen_at: float | None = None
        me = str(item.raw.position)
        while True:
            item.stage = stage
            try:
                result = await call()
            except (PayloadLostError, BadDocument):
                raise
            except (TransientError, PermanentError) as error:
                attempt += 1
                self.retries += 1
                self.last_error = f"{stage}: {error}"
                on_error(error)
                if isinstance(error, UnforeseenError) and stage in UNFORESEEN:
                    now = self._clock()
                    first_unforeseen_at = now if first_unforeseen_at is None else first_unforeseen_at
                    if self._health.failed(stage, me, first_unforeseen_at, now):
                        self._health.forget(stage, me)
                        raise BadDocument(UNFORESEEN[stage], str(error)) from error
                told = error.retry_after_s if isinstance(error, TransientError) else None
                item.stage = f"{stage}: waiting to retry ({type(error).__name__})"
                await self._pause(backoff_s(attempt, told, self._rng))
            else:
                if stage in UNFORESEEN:
                    self._health.succeeded(stage, me, self._clock())
                return result


def _keys(work: Work) -> tuple[str, ...]:
    """What a work touches: works that share a key run in log order."""
    if isinstance(work, Announcement):
        path = work.location if work.location and work.location.startswith("s3://") else None
        return (work.document_id, path) if path else (work.document_id,)
    if isinstance(work, Deletion):
        return tuple(key for key in (work.document_id, work.s3_path) if key)
    return (f"command:{work.command_id}",)
