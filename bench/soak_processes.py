"""The two processes of a soak: one that commits and keeps the tables up, one that asks all along.

They share nothing with their parent but counters and a file of words; the writer may be killed at any moment and is
begun anew behind what it acknowledged, a little before it, as a reader of the log would.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import tables
from bench.corpus import MODEL, SOURCES, sha256
from bench.soak_log import MESSAGES, Log, mark
from bench.store_queries import Questions
from shoal.errors import FencedError, ShoalError, TransientError
from shoal.settings import Settings
from shoal.store.filters import Equals
from shoal.store.requests import SearchPage, SearchRequest
from shoal.store.search import SearchIndex
from shoal.store.writing import TableWriter

CONTEXT = multiprocessing.get_context("spawn")
REDELIVERED = 3  # commits that a new writer is given again
TRIES_MAX = 20  # of one batch; a conflict passes at the first or second
SETTLE_S = 600.0
BUILD_REST_S = 30.0
RECALL_EVERY = 100  # questions
WORDS_MAX = 50
WRITING, UPKEEP, SETTLED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Plan:
    """What a soak is. `index_rows_min` and `cleanup_age_s` are lower than any setting may be: a soak is a month of
    commits in minutes, and tables as old as that have been indexed and cleaned often."""

    uri: str
    commits: int
    seed: int
    width: int
    cleanup_age_s: float
    compact_commits: int
    index_rows_min: int
    pause_s: float  # between two questions

    def settings(self, **changes: Any) -> Settings:
        """Lower than the bounds of the settings allow; those that this Shoal doesn't know are left out."""
        wanted = {
            "cleanup_age_s": self.cleanup_age_s,
            "index_rows_min": self.index_rows_min,
            "index_interval_s": BUILD_REST_S,
            "as_of_bytes_min": 0,  # on tables as small as these, kept states would be all that the disk holds
            **changes,
        }
        made = Settings(lancedb_path=self.uri, compact_commits=self.compact_commits)
        return made.model_copy(update={name: value for name, value in wanted.items() if name in Settings.model_fields})


@dataclass(slots=True)
class Shared:
    """What the processes tell. Counters have one writer each and no lock: who is killed over one would keep it."""

    acked: Any = field(default_factory=lambda: CONTEXT.RawValue("q", 0))  # commits
    phase: Any = field(default_factory=lambda: CONTEXT.RawValue("q", WRITING))
    steps: Any = field(default_factory=lambda: CONTEXT.RawValue("q", 0))  # of upkeep
    refused: Any = field(default_factory=lambda: CONTEXT.RawValue("q", 0))  # commits and steps that were tried again
    queries: Any = field(default_factory=lambda: CONTEXT.RawValue("q", 0))
    errors: Any = field(default_factory=lambda: CONTEXT.RawValue("q", 0))
    torn: Any = field(default_factory=lambda: CONTEXT.RawValue("q", 0))
    slowest_ms: Any = field(default_factory=lambda: CONTEXT.RawValue("d", 0.0))
    recalls: Any = field(default_factory=lambda: CONTEXT.RawValue("q", 0))
    recall_sum: Any = field(default_factory=lambda: CONTEXT.RawValue("d", 0.0))
    stop: Any = field(default_factory=lambda: CONTEXT.RawValue("q", 0))
    words: str = ""  # a file

    def say(self, text: str) -> None:
        """A line for whoever reads the report."""
        with Path(self.words).open("a") as file:
            file.write(text.replace("\n", " ")[:400] + "\n")


# --- the writer -------------------------------------------------------------------------------


def write(plan: Plan, shared: Shared) -> None:
    """Commit what is left of the log, then bring upkeep to its end. Ends itself when its parent has gone."""
    parent, log = os.getppid(), Log(plan.seed, plan.width)
    writer = _opened(plan.settings(), plan)
    for number in range(max(0, shared.acked.value - REDELIVERED), plan.commits):
        _apply(writer, log, number, shared)
        shared.acked.value = max(shared.acked.value, number + 1)
        shared.phase.value = UPKEEP
        _step(writer, shared)
        shared.phase.value = WRITING
        if os.getppid() != parent:
            return
    shared.phase.value = UPKEEP
    _settle(plan, log, shared)
    shared.phase.value = SETTLED


def _opened(settings: Settings, plan: Plan) -> TableWriter:
    return TableWriter.open(plan.uri, {}, MODEL, plan.width, settings=settings, now=datetime.now(UTC))


def _apply(writer: TableWriter, log: Log, number: int, shared: Shared) -> None:
    for _ in range(TRIES_MAX):
        try:
            writer.apply(log.batch(number), log.progress(number), datetime.now(UTC))
            return
        except TransientError as error:
            _note(shared, f"commit {number}: {error}")
            time.sleep(0.05)
    raise RuntimeError(f"commit {number} was refused {TRIES_MAX} times")


def _step(writer: TableWriter, shared: Shared) -> bool:
    """A step of upkeep; whether there was one. A failure is noted, and comes again, as in the writer actor."""
    try:
        did = writer.maintain(datetime.now(UTC))
    except FencedError:
        raise
    except ShoalError as error:
        _note(shared, f"upkeep: {error}")
        return True
    shared.steps.value += did is not None
    return did is not None


def _note(shared: Shared, words: str) -> None:
    shared.refused.value += 1
    if shared.refused.value <= WORDS_MAX:
        shared.say(f"tried again: {words[:300]}")


def _settle(plan: Plan, log: Log, shared: Shared) -> None:
    """Two commits of what is there already make upkeep due; then until every chunk is in its indexes, and no index is
    to be built."""
    settings = plan.settings(compact_commits=2)
    writer, deadline = _opened(settings, plan), time.monotonic() + SETTLE_S
    for number in range(max(0, plan.commits - 2), plan.commits):
        _apply(writer, log, number, shared)
    while time.monotonic() < deadline:
        if not _step(writer, shared):
            is_idle = not writer.is_building and not tables.owed(settings)
            if is_idle and tables.coverage(plan.uri).is_whole(with_vectors=False):
                return
            time.sleep(0.1)
    shared.say(f"upkeep did not come to an end within {SETTLE_S:g} s")


# --- who asks ---------------------------------------------------------------------------------


def ask(plan: Plan, shared: Shared) -> None:
    """Questions of every kind until told to stop. An error is counted, whatever it is; so is an answer that shows a
    chunk of another version than its metadata."""
    asyncio.run(_ask(plan, shared))


async def _ask(plan: Plan, shared: Shared) -> None:
    parent, log = os.getppid(), Log(plan.seed, plan.width)
    vectors, texts = log.corpus.queries(200)
    index = await _index(plan, shared)
    if index is None:
        return
    questions = Questions(plan.uri, vectors, texts, refresh_interval_s=0.0)  # as new as the exact scan
    await questions.open()

    def search(**fields: Any) -> Awaitable[SearchPage]:
        return index.search(SearchRequest(limit=10, **fields))

    kinds: tuple[Callable[[int], Awaitable[Any]], ...] = (
        lambda at: search(mode="vector", vector=vectors[at % 200]),
        lambda at: search(mode="keyword", query=texts[at % 200]),
        lambda at: search(mode="hybrid", query=texts[at % 200], vector=vectors[at % 200]),
        lambda at: search(mode="sql", filters=Equals("data_source", SOURCES[at % len(SOURCES)])),
        lambda at: search(mode="vector", vector=vectors[at % 200], filters=Equals("dataset", f"nyiso_{8 * (at % 5)}")),
        lambda at: index.by_hash(_known_hash(log, at, shared.acked.value)),
    )  # fmt: skip
    while not shared.stop.value and os.getppid() == parent:
        at = shared.queries.value
        began = time.perf_counter()
        try:
            answer = await kinds[at % len(kinds)](at // len(kinds))
            shared.torn.value += _torn(answer, shared)
            if at % RECALL_EVERY == 0:
                shared.recall_sum.value += await questions.core_recall(1, start=at // RECALL_EVERY)
                shared.recalls.value += 1
        except Exception as error:  # whatever a user would see as a failure
            shared.errors.value += 1
            if shared.errors.value <= WORDS_MAX:
                shared.say(f"query {at} of kind {at % len(kinds)}: {type(error).__name__}: {str(error)[:300]}")
        shared.slowest_ms.value = max(shared.slowest_ms.value, 1000 * (time.perf_counter() - began))
        shared.queries.value = at + 1
        await asyncio.sleep(plan.pause_s)
    await index.close()
    await questions.close()


async def _index(plan: Plan, shared: Shared) -> SearchIndex | None:
    """The index, as soon as there are tables."""
    while not shared.stop.value:
        if shared.acked.value:
            return await SearchIndex.open(plan.uri, {})
        await asyncio.sleep(0.05)
    return None


def _known_hash(log: Log, at: int, acked: int) -> str:
    """The hash of a file that was announced."""
    offset = (at * 7919) % max(1, MESSAGES * acked)
    return sha256(offset, offset)


def _torn(answer: Any, shared: Shared) -> int:
    """Hits whose chunk is not of the version that their metadata names."""
    if not isinstance(answer, SearchPage):
        return 0
    torn = [
        hit
        for hit in answer.hits
        if hit.chunk and not hit.chunk["content_summary"].startswith(mark(hit.metadata["id"], hit.metadata["version"]))
    ]
    for hit in torn[:3]:
        shared.say(f"torn: {hit.metadata['id']} {hit.metadata['version']} with {hit.chunk}")
    return len(torn)
