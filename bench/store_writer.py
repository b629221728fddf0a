"""The writing side of `make bench-store`: a process of its own that owns the tables and does what it is told.

It runs the real `TableWriter` and does upkeep as the writer actor does (a step after each commit; all that is due
when asked to settle), and tells what each took: seconds of wall and of CPU, its children's included. Upkeep is
driven through `TableWriter.maintain` alone, and what it did is known by the words it returns: also how long a build
beside the writer took, which may be over between two looks.
"""

from __future__ import annotations

import multiprocessing
import re
import resource
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from typing import Any

from bench import tables
from bench.corpus import MODEL, Corpus
from shoal.settings import Settings
from shoal.store.writing import TableWriter

NEVER = 10**9
"""Rows of a table that is never indexed."""
UNINDEXED_MAX = 2_000
"""Chunks that upkeep may leave for later: it takes them in when they are worth it."""
SETTLE_S = 7_200.0
KINDS = {"compacted": "compaction", "folded": "fold", "indexed": "scalar index"}
BUILT = re.compile(r"\w+ of \w+ took (?P<took>[\d.]+) s \((?P<cpu>[\d.]+) CPU-s\)")
"""An index that was built in a child of the writer."""


@dataclass(frozen=True, slots=True)
class Span:
    """One piece of upkeep. `began`, `ended`: as time.time() tells."""

    kind: str
    text: str
    began: float
    ended: float
    cpu_s: float


@dataclass(slots=True)
class Work:
    """What a piece of work took. `upkeep_*` is part of the whole."""

    rows: int = 0
    commits: int = 0
    took_s: float = 0.0
    cpu_s: float = 0.0
    upkeep_s: float = 0.0
    upkeep_cpu_s: float = 0.0
    spans: list[Span] = field(default_factory=list)
    peak_rss_mib: float = 0.0


class WriterProcess:
    """The parent's end. Each call returns when the child is done; `begin` and `end` split one in two."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there,), name="bench-writer", daemon=False)
        self._process.start()
        there.close()

    def begin(self, what: str, **arguments: Any) -> None:
        self._here.send((what, arguments))

    @property
    def is_done(self) -> bool:
        return self._here.poll() or not self._process.is_alive()

    def end(self) -> Work:
        """What was begun. Raises RuntimeError with the child's own words where it failed."""
        try:
            answer = self._here.recv()
        except EOFError:
            raise RuntimeError(f"the writer ended with {self._process.exitcode}") from None
        if isinstance(answer, str):
            raise RuntimeError(f"the writer failed:\n{answer}")
        assert isinstance(answer, Work)
        return answer

    def call(self, what: str, **arguments: Any) -> Work:
        self.begin(what, **arguments)
        return self.end()

    def close(self) -> None:
        self._here.close()  # the end of its input is the end of it
        self._process.join(60)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def cpu_s() -> float:
    """CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _serve(connection: Connection) -> None:
    writer = _Writer()
    while True:
        try:
            what, arguments = connection.recv()
        except EOFError:
            return
        try:
            work: Work | str = getattr(writer, what)(**arguments)
        except Exception:
            work = traceback.format_exc()
        connection.send(work)


class _Writer:
    """The child's side; its methods are what may be asked for."""

    def open(self, uri: str, width: int, corpus: dict[str, Any], settings: dict[str, Any]) -> Work:
        """Open the tables, anew where they are open already. `settings` that this Shoal doesn't know are left out."""
        known = {name: value for name, value in settings.items() if name in Settings.model_fields}
        self._settings = Settings(lancedb_path=uri, **known)
        self._corpus = Corpus(width, **corpus)
        self._uri, self._offset = uri, 1 + getattr(self, "_offset", 0)
        self._tables = TableWriter.open(uri, {}, MODEL, width, settings=self._settings, now=datetime.now(UTC))
        return Work()

    def write(self, numbers: Sequence[int], batch: int, version: int, upkeep: bool) -> Work:
        """Commit documents, `batch` at a time; with `upkeep` a step of it after each, as the actor does."""
        work = Work()
        for start in range(0, len(numbers), batch):
            documents = self._corpus.documents(numbers[start : start + batch], self._offset, version)
            self._offset += len(documents)
            began, began_cpu = time.perf_counter(), cpu_s()
            self._tables.apply(documents, (), datetime.now(UTC))
            work.commits += 1
            work.rows += len(documents) * self._corpus.chunks
            work.took_s += time.perf_counter() - began
            work.cpu_s += cpu_s() - began_cpu
            if upkeep:
                self._step(work)
        return _measured(work)

    def settle(self, with_vectors: bool) -> Work:
        """Upkeep until nothing is due or under way and (nearly) every chunk is in its indexes, the vector index too
        where it is asked for."""
        work, deadline = Work(), time.monotonic() + SETTLE_S
        began, began_cpu = time.perf_counter(), cpu_s()
        while True:
            if self._step(work):
                continue
            if not self._tables.is_building and not tables.owed(self._settings):
                covered = tables.coverage(self._uri)
                if covered.is_whole(with_vectors=with_vectors, spare=UNINDEXED_MAX):
                    break
                if time.monotonic() > deadline:
                    owed = tables.owed(self._settings)
                    raise RuntimeError(
                        f"upkeep does not come to an end: {covered}, owed {owed}, last {work.spans[-3:]}"
                    )
            time.sleep(0.05)
        work.took_s, work.cpu_s = time.perf_counter() - began, cpu_s() - began_cpu
        return _measured(work)

    def _step(self, work: Work) -> bool:
        """One step of upkeep; whether there was one."""
        began, began_cpu = time.time(), cpu_s()
        text = self._tables.maintain(datetime.now(UTC))
        ended, spent = time.time(), cpu_s() - began_cpu
        work.took_s += ended - began
        work.cpu_s += spent
        work.upkeep_s += ended - began
        work.upkeep_cpu_s += spent
        if text is None:
            return False
        if found := BUILT.match(text):
            work.spans.append(Span("build", text, ended - float(found["took"]), ended, float(found["cpu"])))
        else:
            kind = next((kind for word, kind in KINDS.items() if text.startswith(word)), "other")
            work.spans.append(Span(kind, text, began, ended, spent))
        return True


def _measured(work: Work) -> Work:
    work.peak_rss_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return work
