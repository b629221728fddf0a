"""Vectors that the tables hold already, by document and text: what a lost embedding cache need not pay for again.

Role: for a document that is announced again, its chunks' vectors as they are stored, where the text is the very same
and the collection's model too. Guarantee: read only, and never an error: where the tables are away, of another model
or slow, nothing is known and the text is paid for. Many documents are looked up by one query while another runs. It is
asked only for what the cache lacks, so a document nobody has seen costs a share of one lookup.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from shoal.errors import ShoalError
from shoal.records import SCRAPER_COLLECTION, Vector
from shoal.settings import Settings
from shoal.store.reading import Tables
from shoal.store.schemas import IS_DOCUMENT, VECTOR_COLUMNS, collection_facts
from shoal.store.tables import in_list
from shoal.store.writing import storage_options

log = logging.getLogger(__name__)

DOCUMENTS_MAX = 64
"""Of one query: more make its list long, fewer make many queries of a burst."""
REST_S = 30.0
"""After an error nothing is asked for so long: embedding shall not wait for storage that is down."""
STALE_S = 30.0
"""Age of the versions that are read. An older version's vectors are as good, as long as the text is the same."""
CACHE_BYTES = 64 * 1024 * 1024
"""Of Lance's caches in this process, which reads one scalar index and little else."""
LOOKUP_S = 10.0
"""A lookup that takes longer counts as failed."""


@dataclass(slots=True)
class _Found:
    """Takes the rows of a lookup and keeps those that were asked for."""

    wanted: Mapping[str, set[str]]
    vectors: dict[str, dict[str, Vector]] = field(default_factory=dict)

    def take(self, batch: pa.RecordBatch) -> None:
        ids, texts = batch.column("metadata_id").to_pylist(), batch.column("content_summary").to_pylist()
        rows = [i for i, (name, text) in enumerate(zip(ids, texts, strict=True)) if text in self.wanted.get(name, ())]
        if not rows:
            return
        column = batch.column(str(VECTOR_COLUMNS["vectors"])).take(pa.array(rows))
        stored = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(rows), -1)
        for i, vector in zip(rows, stored, strict=True):
            length = float(np.linalg.norm(vector))
            if abs(length - 1) < 1e-2:  # half-width ones are a little off; a damaged one is not used
                self.vectors.setdefault(ids[i], {})[texts[i]] = vector / np.float32(length)


class KnownVectors:
    """For one event loop. `model`: the embedder's, whose vectors alone may be reused."""

    def __init__(
        self,
        settings: Settings,
        model: str,
        collection: str = SCRAPER_COLLECTION,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._model, self._collection, self._clock = settings, model, collection, clock
        self._tables: Tables | None = None
        self._waiting: dict[str, tuple[set[str], asyncio.Future[dict[str, Vector]]]] = {}
        self._looking: asyncio.Task[None] | None = None
        self._rests_until = float("-inf")

    async def of(self, document_id: str, texts: Sequence[str]) -> Mapping[str, Vector]:
        """Those of `texts` that are chunks of the document as it is stored, with their unit vectors. Never raises."""
        if self._clock() < self._rests_until:
            return {}
        wanted, answer = self._waiting.get(document_id) or (set[str](), asyncio.get_running_loop().create_future())
        wanted.update(texts)
        self._waiting[document_id] = wanted, answer
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        return await asyncio.shield(answer)

    async def close(self) -> None:
        """Ends the lookups; who waits is told that nothing is known."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        if self._tables is not None:
            await self._tables.close()

    async def _look(self) -> None:
        while self._waiting:
            names = list(self._waiting)[:DOCUMENTS_MAX]
            asked = {name: self._waiting.pop(name) for name in names}
            found: dict[str, dict[str, Vector]] = {}
            try:
                if self._clock() >= self._rests_until:
                    async with asyncio.timeout(LOOKUP_S):
                        found = await self._stored({name: wanted for name, (wanted, _) in asked.items()})
            except (ShoalError, TimeoutError) as error:
                log.info("stored vectors can't be looked up for %.0f s: %s", REST_S, error or "it takes too long")
                self._rests_until = self._clock() + REST_S
            except Exception:
                log.exception("stored vectors can't be looked up")
                self._rests_until = self._clock() + REST_S
            finally:
                for name, (_, answer) in asked.items():
                    if not answer.done():
                        answer.set_result(found.get(name, {}))

    async def _stored(self, wanted: Mapping[str, set[str]]) -> dict[str, dict[str, Vector]]:
        if self._tables is None:
            small = {"index_cache_bytes": CACHE_BYTES, "metadata_cache_bytes": CACHE_BYTES}
            self._tables = await Tables.open(
                self._settings.tables_uri,
                storage_options(self._settings),
                self._collection,
                STALE_S,
                settings=self._settings.model_copy(update=small),
            )
        await self._tables.view()
        columns = ("metadata_id", "content_summary", str(VECTOR_COLUMNS["vectors"]))
        where = f"{in_list('metadata_id', wanted)} AND {IS_DOCUMENT}"
        fold = await self._tables.folded("vectors", where, columns, lambda: _Found(wanted))
        # Looked at last: a handle may be opened anew on the way, on tables that were made with another model meanwhile.
        facts = collection_facts(await (await self._tables.handle("vectors")).schema())
        return fold.vectors if facts.model == self._model else {}
