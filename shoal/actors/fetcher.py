"""The fetch worker: an announcement in, verified and extracted text out.

Reads the object (or the inline body), hashes it, and has it extracted in a killable child. The bytes stay
here; what goes on is text and metadata. At most HELD_OBJECTS_MAX objects of at most `object_bytes_max` bytes are in
memory at once, whatever is asked (G6). A bad document is a value (`Fetched.failure`), a bad system an
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

from shoal import tracing
from shoal.actors.extraction import ExtractionPool
from shoal.actors.lease import LeaseKeeper
from shoal.actors.logs import configure_logging
from shoal.actors.pipeline import FetchResult
from shoal.actors.pulse import Pulse
from shoal.documents.pipeline import Context
from shoal.errors import BadDocument
from shoal.faults import reach
from shoal.histograms import Durations
from shoal.log_format import about
from shoal.metrics import FetcherStatistics
from shoal.records import Announcement, Failure, Fetched
from shoal.settings import Settings
from shoal.sources.objects import ObjectBody, ObjectReader

DOWNLOADS_MAX = 8  # threads that wait for the object store; each may hold one object
HELD_OBJECTS_MAX = 4  # objects in memory at once: downloaded, waiting for or in extraction


class Fetcher:
    """Plain class; `FetcherActor` is its Ray shell."""

    def __init__(self, name: str, settings: Settings, model: str, width: int) -> None:
        self._name, self._width = name, width
        configure_logging(settings)
        self._started = time.monotonic()
        self._lease = LeaseKeeper(name, settings.lease_s)
        self._objects = ObjectReader(settings)
        self._pool = ExtractionPool(settings, model)
        self._threads = ThreadPoolExecutor(DOWNLOADS_MAX, thread_name_prefix="download")
        self._held = asyncio.Semaphore(HELD_OBJECTS_MAX)
        self._in_flight = self._fetched = self._fetched_bytes = self._failed = self._held_bytes = 0
        self._durations = Durations()
        self._pulse = Pulse()

    @ray.method(num_returns=2)
    async def fetch(self, announcement: Announcement) -> tuple[FetchResult, Fetched | None]:
        """What the reader needs to know, and the payload for the embedder (None for a bad document).

        Raises TransientError or ConfigurationError where the store is unwell.
        """
        self._pulse.follow_loop()
        self._in_flight += 1
        document, trace = announcement.document_id, announcement.trace
        try:
            with about(document=document, trace=tracing.trace_id(trace)), tracing.span("fetch", trace):
                async with self._held:
                    fetched = await self._fetch(announcement)
        finally:
            self._in_flight -= 1
        self._fetched += 1
        self._fetched_bytes += fetched.size_bytes or 0
        if fetched.failure is not None:
            self._failed += 1
            return FetchResult(fetched), None
        return FetchResult(None, payload_bytes(fetched, self._width)), fetched

    async def alive(self, dependency: str) -> bool:
        """Whether the bucket or the disk answers. Never raises."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._objects.is_alive, dependency)

    async def _fetch(self, announcement: Announcement) -> Fetched:
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        try:
            with tracing.span("download"):
                body = await loop.run_in_executor(self._threads, self._objects.read, announcement)
        except BadDocument as error:
            return Fetched(announcement, failure=Failure(error.reason, error.message, "fetch"))
        finally:
            self._durations.observe("stage.download", time.monotonic() - began)
        reach("fetcher.after_download")
        self._held_bytes += len(body.data)
        try:
            return await self._extracted(announcement, body)
        finally:
            self._held_bytes -= len(body.data)

    async def _extracted(self, announcement: Announcement, body: ObjectBody) -> Fetched:
        loop = asyncio.get_running_loop()
        announcement = replace(announcement, warnings=(*announcement.warnings, *body.warnings))
        sha256, md5 = await loop.run_in_executor(self._threads, _hashes, body.data)
        fetched = Fetched(announcement, sha256, md5, len(body.data), etag=body.etag, version_id=body.version_id)
        began = time.monotonic()
        try:
            with tracing.span("extract", shoal__bytes=len(body.data)):
                return replace(fetched, extraction=await self._pool.extract(body.data, context_of(announcement, body)))
        except BadDocument as error:
            return replace(fetched, failure=Failure(error.reason, error.message, "extract"))
        finally:
            self._durations.observe("stage.extract", time.monotonic() - began)

    @ray.method(concurrency_group="health")
    async def statistics(self) -> FetcherStatistics:
        self._lease.renew()
        return FetcherStatistics(
            name=self._name,
            pid=os.getpid(),
            uptime_s=time.monotonic() - self._started,
            in_flight=self._in_flight,
            fetched=self._fetched,
            fetched_bytes=self._fetched_bytes,
            failed=self._failed,
            extraction_kills=self._pool.kills,
            held_bytes=self._held_bytes,
            stalled_s=self._pulse.stalled_s(),
            durations=self._durations.counts(),
            slots=HELD_OBJECTS_MAX,
        )

    async def __ray_shutdown__(self) -> None:
        self._pool.close()


def context_of(announcement: Announcement, body: ObjectBody) -> Context:
    """What extraction is told beside the bytes."""
    return Context(
        name=announcement.urn,
        content_type=announcement.content_type or body.content_type,
        source_url=announcement.source_url,
        data_source=announcement.data_source,
        data_type=announcement.data_type,
        dataset=announcement.dataset,
        collected_at=announcement.collected_at,
    )


def payload_bytes(fetched: Fetched, width: int) -> int:
    """What a fetched document takes from here to its commit: its texts and, once embedded, its vectors."""
    extraction = fetched.extraction
    if extraction is None:
        return 0
    texts = sum(len(chunk.text.encode()) + len(chunk.heading or "") for chunk in extraction.chunks)
    return (
        4096
        + texts
        + len(extraction.schema or "")
        + len(extraction.api_text or "")
        + 4 * width * (1 + len(extraction.chunks))
    )


def _hashes(data: bytes) -> tuple[str, str]:
    return hashlib.sha256(data).hexdigest(), hashlib.md5(data, usedforsecurity=False).hexdigest()


# "health" has an event loop of its own: statistics answer while work blocks.
FetcherActor = ray.remote(concurrency_groups={"health": 2})(Fetcher)  # type: ignore[call-overload]
