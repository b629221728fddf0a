"""Which texts a backfill will have embedded: its objects read, extracted and chunked exactly as ingest does.

Guarantee: a text is planned only as the very text that ingest will look up, and each once. What the tables hold for the
same document, what will be a dead letter and what can't be read now is left out, each counted; it costs nothing, or the
full price, when it flows. Extraction runs in children that can be killed; at most HELD_OBJECTS_MAX objects are in
memory. Nothing is paid for here.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from shoal.actors.embedder import purpose_of
from shoal.actors.extraction import ExtractionPool
from shoal.actors.fetcher import context_of
from shoal.cluster.backfilling import Found
from shoal.embeddings.batch_files import Limits, Parts
from shoal.embeddings.batch_provider import Entry
from shoal.embeddings.embedding_model import EmbeddingModel
from shoal.embeddings.models import create_model
from shoal.embeddings.purposes import Purpose
from shoal.embeddings.texts import Kind, check_texts
from shoal.errors import BadDocument, DeadReason, TransientError
from shoal.records import Announcement, Extraction, Position
from shoal.settings import Settings
from shoal.sources.messages import LANE_HEADER, RawMessage, parse_message
from shoal.sources.objects import ObjectReader
from shoal.store.known_vectors import KnownVectors

HELD_OBJECTS_MAX = 4
GROUP = 32
"""Objects looked up in the tables together, and between two looks at a Ctrl-C."""
PARTS_MAX = 900
"""Of a round: files of one listing are at most 1000."""
TRIES, PAUSE_S = 3, 2.0
UNREAD_MAX = 20
"""Objects in a row that the store does not give: then it is the store, not the objects."""
DEAD, UNREAD, KNOWN = "dead letters to be", "objects not to be read now", "texts that the tables hold"


@dataclass(slots=True)
class Plan:
    """Objects up to the name `until`; `is_last`: there are no more. `parts`: texts and tokens of each that is
    written."""

    until: str = ""
    is_last: bool = False
    parts: list[tuple[int, int]] = field(default_factory=list)
    purpose: Purpose = field(default_factory=Purpose)
    objects: int = 0
    texts: int = 0
    tokens: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


class Planner:
    """For one event loop. Close it."""

    def __init__(self, settings: Settings, model: str, width: int) -> None:
        self._settings = settings
        self._model: EmbeddingModel = create_model(settings, model, width=width)
        self._objects = ObjectReader(settings)
        self._pool = ExtractionPool(settings, model, settings.fetchers)
        self._known = KnownVectors(settings, model)
        self._held = asyncio.Semaphore(HELD_OBJECTS_MAX)
        self._unread = 0

    async def plan(
        self,
        found: Iterator[Found],
        limits: Limits,
        texts_max: int,
        write_part: Callable[[int, list[Entry]], None],
        asked_to_stop: threading.Event,
        progress: Callable[[Plan], None],
    ) -> Plan | None:
        """One round of about `texts_max` texts at most; None where it was asked to stop. Raises TransientError,
        ConfigurationError."""
        plan, parts = Plan(), Parts(limits)

        def write(entries: list[Entry] | None) -> None:
            if entries:
                write_part(len(plan.parts), entries)
                plan.parts.append((len(entries), sum(entry.tokens for entry in entries)))

        while parts.texts < texts_max and len(plan.parts) < PARTS_MAX:
            if asked_to_stop.is_set():
                return None
            group = list(islice(found, GROUP))
            if not group:
                plan.is_last = True
                break
            for entries in await asyncio.gather(*(self._entries(each, plan) for each in group)):
                for entry in entries:
                    write(parts.add(entry))
            plan.until = group[-1].name
            plan.texts, plan.tokens = parts.texts, parts.tokens
            progress(plan)
        write(parts.take())
        return plan

    async def close(self) -> None:
        await self._known.close()
        self._pool.close()
        self._model.close()

    async def _entries(self, found: Found, plan: Plan) -> list[Entry]:
        if found.message is None:
            return []
        raw = RawMessage(
            Position("", self._settings.kafka_topics[0], 0, 0, 0), *found.message, headers=((LANE_HEADER, b"backfill"),)
        )
        announcement = parse_message(raw, self._settings)[0]
        assert isinstance(announcement, Announcement), "a backfill announces objects"
        plan.purpose = purpose_of(announcement)
        plan.objects += 1
        try:
            async with self._held:
                extraction = await self._extracted(announcement)
            self._unread = 0
            wanted = await asyncio.to_thread(self._wanted, extraction)
        except BadDocument:
            plan.left_out[DEAD] += 1
            return []
        except TransientError as error:
            self._unread += 1
            plan.left_out[UNREAD] += 1
            if self._unread > UNREAD_MAX:
                raise TransientError(f"the last {self._unread} objects could not be read: {error}") from error
            return []
        known = await self._known.of(announcement.document_id, [entry.text for entry in wanted])
        # The tables hold chunks, by their text; a description of an API is looked up nowhere but in the cache.
        lacking = [entry for entry in wanted if entry.kind == "query" or entry.text not in known]
        plan.left_out[KNOWN] += len(wanted) - len(lacking)
        return lacking

    async def _extracted(self, announcement: Announcement) -> Extraction:
        for attempt in range(TRIES):
            try:
                body = await asyncio.to_thread(self._objects.read, announcement)
                return await self._pool.extract(body.data, context_of(announcement, body))
            except TransientError:
                if attempt + 1 == TRIES:
                    raise
                await asyncio.sleep(PAUSE_S * 2**attempt)
        raise AssertionError("unreachable")

    def _wanted(self, extraction: Extraction) -> list[Entry]:
        """The texts of one document. Raises BadDocument where ingest would refuse one of them."""
        wanted = [self._entry(chunk.text, "document", chunk.token_count) for chunk in extraction.chunks]
        if extraction.api_text:
            wanted.append(self._entry(extraction.api_text, "query", None))
        return wanted

    def _entry(self, text: str, kind: Kind, tokens: int | None) -> Entry:
        text, limit = check_texts([text], kind)[0], self._model.max_input_tokens
        # As the service counts: again near the limit, since what was counted may lack what the model adds.
        count = tokens if tokens is not None and tokens < 0.9 * limit else self._model.count_tokens(text)
        if kind == "document" and count > limit:
            raise BadDocument(DeadReason.EMBEDDING_REJECTED, f"a text of {count} tokens; the model takes {limit}")
        return Entry(text, kind, min(count, limit))
