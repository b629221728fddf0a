"""The fetch worker: an announcement in, verified and extracted text out.

Reads the object (or the inline body), hashes it, and has it extracted in a killable child. The bytes stay
here; what goes on is text and metadata. A bad document is a value (`Fetched.failure`), a bad system an
exception for the reader's retries. It keeps nothing that matters: a killed worker's calls are made again.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import ray

from shoal.actors.extraction import ExtractionPool
from shoal.actors.logs import configure_logging
from shoal.actors.pipeline import FetchResult
from shoal.documents.pipeline import Context
from shoal.errors import BadDocument
from shoal.metrics import FetcherStatistics
from shoal.records import Announcement, Failure, Fetched
from shoal.settings import Settings
from shoal.sources.objects import ObjectReader

DOWNLOADS_MAX = 8  # threads that wait for the object store; each may hold one object
HELD_OBJECTS_MAX = 4  # objects in memory at once: downloaded, waiting for or in extraction


class Fetcher:
    """Plain class; `FetcherActor` is its Ray shell."""

    def __init__(self, name: str, settings: Settings, model: str) -> None:
        self._name = name
        configure_logging(settings)
        self._started = time.monotonic()
        self._objects = ObjectReader(settings)
        self._pool = ExtractionPool(settings, model)
        self._threads = ThreadPoolExecutor(DOWNLOADS_MAX, thread_name_prefix="download")
        self._held = asyncio.Semaphore(HELD_OBJECTS_MAX)
        self._in_flight = self._fetched = self._fetched_bytes = self._failed = 0

    @ray.method(num_returns=2)
    async def fetch(self, announcement: Announcement) -> tuple[FetchResult, Fetched | None]:
        """What the reader needs to know, and the payload for the embedder (None for a bad document).

        Raises TransientError or ConfigurationError where the store is unwell.
        """
        self._in_flight += 1
        try:
            async with self._held:
                fetched = await self._fetch(announcement)
        finally:
            self._in_flight -= 1
        self._fetched += 1
        self._fetched_bytes += fetched.size_bytes or 0
        if fetched.failure is not None:
            self._failed += 1
            return FetchResult(fetched), None
        return FetchResult(None), fetched

    async def _fetch(self, announcement: Announcement) -> Fetched:
        loop = asyncio.get_running_loop()
        try:
            body = await loop.run_in_executor(self._threads, self._objects.read, announcement)
        except BadDocument as error:
            return Fetched(announcement, failure=Failure(error.reason, error.message, "fetch"))
        announcement = replace(announcement, warnings=(*announcement.warnings, *body.warnings))
        sha256, md5 = await loop.run_in_executor(self._threads, _hashes, body.data)
        fetched = Fetched(announcement, sha256, md5, len(body.data), etag=body.etag, version_id=body.version_id)
        context = Context(
            name=announcement.urn,
            content_type=announcement.content_type or body.content_type,
            source_url=announcement.source_url,
            data_source=announcement.data_source,
            data_type=announcement.data_type,
            dataset=announcement.dataset,
            collected_at=announcement.collected_at,
        )
        try:
            return replace(fetched, extraction=await self._pool.extract(body.data, context))
        except BadDocument as error:
            return replace(fetched, failure=Failure(error.reason, error.message, "extract"))

    @ray.method(concurrency_group="health")
    async def statistics(self) -> FetcherStatistics:
        return FetcherStatistics(
            name=self._name,
            pid=os.getpid(),
            uptime_s=time.monotonic() - self._started,
            in_flight=self._in_flight,
            fetched=self._fetched,
            fetched_bytes=self._fetched_bytes,
            failed=self._failed,
            extraction_kills=self._pool.kills,
        )

    async def __ray_shutdown__(self) -> None:
        self._pool.close()


def _hashes(data: bytes) -> tuple[str, str]:
    return hashlib.sha256(data).hexdigest(), hashlib.md5(data, usedforsecurity=False).hexdigest()


# "health" has an event loop of its own: statistics answer while work blocks.
FetcherActor = ray.remote(concurrency_groups={"health": 2})(Fetcher)  # type: ignore[call-overload]
