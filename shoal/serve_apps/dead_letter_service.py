"""Dead letters over REST: a page of them, and replaying some (contracts 3; what they are: docs/dead-letters.md).

The log of dead letters has no index: each question reads it from its start, on a thread, and keeps no more than a page.
So few may ask at once (FullError beyond), and a question whose caller is gone ends. What is shown is redacted. A replay
sends messages as they were to their topics; it is durable when it answers, and what became of each is its `state`.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from shoal.errors import FullError, TransientError
from shoal.serve_apps import list_cursors
from shoal.serve_apps.models import InvalidParameter, Name, Request, Text
from shoal.serve_apps.times import time_bound
from shoal.settings import Settings
from shoal.sources.dead_letter_choice import FIRST, Choice, Selection, choose, header_text, row, value_of
from shoal.sources.dead_letter_log import DeadLetterLog, open_dead_letters
from shoal.sources.dead_letter_record import DeadLetter
from shoal.sources.dead_letter_replaying import REPLAYS_MAX, Replayer
from shoal.sources.dead_letter_state import parse_id
from shoal.sources.dead_letters import DEAD_LETTER_SUFFIX
from shoal.sources.kafka import connection, ensure_topics, open_producer
from shoal.sources.log_producer import LogProducer

Json = dict[str, Any]
Place = tuple[datetime, str, int, int]
T = TypeVar("T")

ASKING_MAX = 2
"""Readings of the log at once; the rest of `WAITING_MAX` wait for one of them."""
WAITING_MAX = 6
VALUE_CHARS_MAX = 20_000


class _Filters(Request):
    reason: Name | None = Field(None, description="Only this reason, as in docs/dead-letters.md; `none`: says none.")
    topic: Name | None = Field(None, description="Only messages of this topic.")
    dataset: Name | None = Field(None, description="Only this dataset.")
    since: Text | None = Field(None, max_length=40, description="Failed at or after: a date or a time (UTC).")
    until: Text | None = Field(None, max_length=40, description="Failed before: a time; a date: before its end.")

    @field_validator("since", "until")
    @classmethod
    def _time(cls, value: str | None, about: ValidationInfo) -> str | None:
        if value is not None:
            time_bound(value, is_end=about.field_name == "until")  # the end of the last day there is, is none
        return value

    def selection(self, ids: tuple[str, ...] = (), *, handled: bool = False) -> Selection:
        since = time_bound(self.since, is_end=False)[0] if self.since else None
        until = time_bound(self.until, is_end=True)[0] if self.until else None
        topics = frozenset({self.topic.removesuffix(DEAD_LETTER_SUFFIX)} if self.topic else ())
        reasons = frozenset({self.reason} if self.reason else ())
        return Selection(ids, reasons, topics, since, until, self.dataset or "", handled)


class DeadLetterQuery(_Filters):
    """Parameters of `GET /api/v1/dead-letters`."""

    id: Text | None = Field(None, max_length=400, description="This one, whatever its state, with its message.")
    handled: bool = Field(False, description="Also those that are replayed, succeeded, returned or purged.")
    limit: int = Field(50, ge=1, le=500, description="Dead letters per page, the newest first.")
    cursor: str | None = Field(None, max_length=1000, description="`next_cursor` of the page before.")


class DeadLetterReplay(_Filters):
    """Body of `POST /api/v1/dead-letters/replay`: ids or filters, not both, and not nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ids: tuple[Text, ...] = Field((), max_length=500, description="These ones.")
    limit: int = Field(100, ge=1, le=1000, description="At most so many; ask again for the rest.")
    replays_max: int = Field(REPLAYS_MAX, ge=1, le=100, description="Leave out what was replayed this often already.")
    dry_run: bool = Field(False, description="Only tell what would be done.")

    @model_validator(mode="after")
    def _some(self) -> DeadLetterReplay:
        if self.ids and not self.selection().is_empty:
            raise InvalidParameter("ids", "name dead letters by their ids or by filters, not by both")
        if not self.ids and self.selection().is_empty:
            raise InvalidParameter("ids", "replay which? Name ids, or filters: reason, topic, dataset, since, until")
        for named in self.ids:
            check_id("ids", named)
        return self


def check_id(parameter: str, text: str) -> None:
    """Raises InvalidParameter."""
    if parse_id(text) is None:
        raise InvalidParameter(parameter, "is no id of a dead letter, such as scraper-notifications_dlq/0/17")


class DeadLetters:
    """One per process."""

    def __init__(
        self,
        settings: Settings,
        open_log: Callable[[Settings], DeadLetterLog] = open_dead_letters,
        open_out: Callable[[Settings], LogProducer] = open_producer,
    ) -> None:
        self._settings, self._open_log, self._open_out = settings, open_log, open_out
        self._threads = ThreadPoolExecutor(ASKING_MAX, thread_name_prefix="dead-letters")
        self._waiting = 0
        self._replaying = threading.Lock()
        self._producer: LogProducer | None = None

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def page(self, parameters: DeadLetterQuery | Mapping[str, Any]) -> Json:
        """{dead_letters, matching, handled_left_out, next_cursor}."""
        asked = DeadLetterQuery.read(parameters)
        if asked.id is not None:
            check_id("id", asked.id)
        after = _place(asked.cursor) if asked.cursor else None
        return await self._ask(lambda stop: self._page(asked, after, stop))

    async def replay(self, parameters: DeadLetterReplay | Mapping[str, Any]) -> Json:
        """{replayed, would_be_replayed, replayed_too_often, not_replayable, handled_left_out, missing, is_complete}."""
        asked = DeadLetterReplay.read(parameters)
        return await self._ask(lambda stop: self._replay(asked, stop))

    async def _ask(self, work: Callable[[threading.Event], T]) -> T:
        if self._waiting >= WAITING_MAX:
            raise FullError("dead letters are being read for others: come back in some seconds", 5.0)
        stop = threading.Event()
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, stop)
        finally:
            stop.set()  # whoever asked is answered, or gone
            self._waiting -= 1

    def _page(self, asked: DeadLetterQuery, after: Place | None, stop: threading.Event) -> Json:
        wanted = asked.selection((asked.id,) if asked.id else (), handled=asked.handled or asked.id is not None)
        choice, matching = Choice(), 0
        newest: list[tuple[Place, Json]] = []
        with self._open_log(self._settings) as log:
            for letter in choose(log, wanted, choice, lambda _: _go_on(stop)):
                matching += 1
                place = _place_of(letter)
                if after is not None and place >= after:
                    continue
                shown = row(letter)
                if asked.id is not None:
                    shown |= _message(letter)
                entry = (place, shown)
                # One more than is shown: it tells whether another page follows.
                if len(newest) <= asked.limit:
                    heapq.heappush(newest, entry)
                else:
                    heapq.heappushpop(newest, entry)
        found = sorted(newest, key=lambda entry: entry[0], reverse=True)
        shown_ones = found[: asked.limit]
        return {
            "dead_letters": [shown for _, shown in shown_ones],
            "matching": matching,
            "handled_left_out": dict(choice.handled),
            "next_cursor": _cursor(shown_ones[-1][0]) if len(found) > asked.limit else None,
        }

    def _replay(self, asked: DeadLetterReplay, stop: threading.Event) -> Json:
        choice = Choice()
        with self._replaying:  # two at once would send the same letters twice: harmless, and of no use
            _go_on(stop)
            if not self._settings.is_embedded and not asked.dry_run:
                ensure_topics(self._settings, connection(self._settings))
            with self._open_log(self._settings) as log:
                replayer = Replayer(log, self._out, None, replays_max=asked.replays_max)
                would, is_complete = 0, True
                try:
                    for letter in choose(log, asked.selection(tuple(dict.fromkeys(asked.ids))), choice):
                        if would + replayer.tally.sent + replayer.held >= asked.limit or stop.is_set():
                            is_complete = False
                            break
                        if asked.dry_run:
                            would += replayer.parcel(letter) is not None
                        else:
                            replayer.add(letter)
                    replayer.flush()
                except TransientError:
                    self._producer = None
                    raise
        tally = replayer.tally
        return {
            "replayed": tally.sent,
            "would_be_replayed": would,
            "replayed_too_often": tally.often,
            "not_replayable": [{"id": id_, "why": why} for id_, why in tally.why_unsendable],
            "handled_left_out": dict(choice.handled),
            "missing": choice.missing,
            "is_complete": is_complete,
        }

    def _out(self) -> LogProducer:
        if self._producer is None:
            self._producer = self._open_out(self._settings)
        return self._producer


def _go_on(stop: threading.Event) -> None:
    if stop.is_set():
        raise TransientError("nobody waits for this any more")


def _message(letter: DeadLetter) -> Json:
    value = value_of(letter.raw.value)
    if isinstance(value, str):
        value = value[:VALUE_CHARS_MAX]
    headers = [[name, header_text(name, data)] for name, data in letter.raw.headers]
    return {"headers": headers, "value": value}


def _place_of(letter: DeadLetter) -> Place:
    position = letter.raw.position
    return (letter.failed_at or FIRST, position.topic, position.partition, position.offset)


def _cursor(place: Place) -> str:
    at, topic, partition, offset = place
    return list_cursors.encode("dead-letters", at.isoformat(), topic, partition, offset)


def _place(cursor: str) -> Place:
    at, topic, partition, offset = list_cursors.decode("dead-letters", cursor, (str, str, int, int))
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        raise list_cursors.no_cursor() from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC), topic, partition, offset)
