"""The extraction pool: hostile bytes are parsed in a child process that can be killed.

C parsers can't be interrupted from a thread (a nested HTML page keeps lexbor busy for minutes), so a document
that passes its deadline costs its child, not the fetch worker (G4). Children are bounded in memory too. A
killed or crashed child becomes `BadDocument(EXTRACTION_FAILED)`; the pool starts another by itself.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import resource
import sys
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool

from pebble import ProcessExpired, ProcessPool

from shoal.documents.pipeline import Context, Limits, TokenBudget, extract_document
from shoal.embeddings.models import token_budget
from shoal.errors import BadDocument, DeadReason, TransientError
from shoal.records import Extraction
from shoal.settings import MIB, Settings

MEMORY_BYTES_MAX = 3072 * MIB
"""Address space of a child. A 64 MB JSON parses in ~1 GB; less refuses honest files, more lets two children
and the rest of Shoal outgrow a small node."""

log = logging.getLogger("shoal.fetcher")

_limits: Limits
_budget: TokenBudget


def _start_child(settings: Settings, model: str) -> None:
    global _limits, _budget
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    _limits = Limits(settings.decompressed_bytes_max, settings.chunks_per_document_max)
    count, max_tokens, overlap = token_budget(settings, model)
    _budget = TokenBudget(count, max_tokens, overlap)


def _extract(data: bytes, context: Context) -> Extraction:
    try:
        return extract_document(data, context, _limits, _budget)
    except (MemoryError, RecursionError) as error:
        raise BadDocument(
            DeadReason.EXTRACTION_FAILED, f"needs more than this process may use ({type(error).__name__})"
        ) from None
    except BadDocument:
        raise
    except Exception as error:  # a bug of ours or of a parser: this document's end, nobody else's (G4)
        logging.getLogger(__name__).exception("extraction of %s failed unexpectedly", context.name)
        raise BadDocument(DeadReason.EXTRACTION_FAILED, f"{type(error).__name__}: {error}"[:500]) from None


class ExtractionPool:
    """`processes` children, started when first needed."""

    def __init__(self, settings: Settings, model: str, processes: int = 1) -> None:
        # spawn re-imports the parent's main module, which in an actor is Ray's worker script; without its
        # path the child imports only what it is asked to run.
        main = sys.modules["__main__"]
        if hasattr(main, "__file__"):
            del main.__file__
        self._timeout_s = settings.extraction_timeout_s
        self._settings, self._model, self._processes = settings, model, processes
        self._pool = self._new_pool()
        self.kills = 0

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(
            max_workers=self._processes,
            context=multiprocessing.get_context("spawn"),
            initializer=_start_child,
            initargs=(self._settings, self._model),
        )

    async def extract(self, data: bytes, context: Context) -> Extraction:
        """Raises BadDocument for bad input, TransientError where no child can be started."""
        try:
            return await self._extract(data, context)
        except ProcessExpired as error:
            self.kills += 1
            log.warning("the process extracting %s ended with code %s; once more", context.name, error.exitcode)
        try:  # it may have been killed for another reason than this document
            return await self._extract(data, context)
        except ProcessExpired as error:
            self.kills += 1
            raise BadDocument(
                DeadReason.EXTRACTION_FAILED, f"the extracting process ended twice, with code {error.exitcode}"
            ) from None

    async def _extract(self, data: bytes, context: Context) -> Extraction:
        pool = self._pool
        try:
            future = pool.schedule(_extract, args=(data, context), timeout=self._timeout_s)
            extraction: Extraction = await asyncio.wrap_future(future)
        except (TimeoutError, FutureTimeout):
            self.kills += 1
            raise BadDocument(
                DeadReason.EXTRACTION_FAILED,
                f"extraction took longer than {self._timeout_s:g} s (SHOAL_EXTRACTION_TIMEOUT_S)",
            ) from None
        except (BadDocument, ProcessExpired):
            raise
        except (BrokenProcessPool, RuntimeError) as error:
            # A pool whose child ended while idle or starting is broken for good: nothing that a document did.
            if pool is self._pool:
                self._pool = self._new_pool()
            raise TransientError(f"the extracting process is being replaced: {error}") from None
        return extraction

    def close(self) -> None:
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join(timeout=5)
