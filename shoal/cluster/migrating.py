"""A change of a collection's model, as steps that may be killed anywhere and asked for again.

Build: the copy (shoal.store.generations) is brought to what its original holds, document by document
(shoal.store.mirroring), with vectors of the other model; then its indexes are made. Catch up: the same again, for
what was written meanwhile, until nothing differs. Switch: the writer is asked to wait, the rest is brought over, both
are compared once more, and one commit moves the collection. Back is the same the other way round. Readers notice at
their next refresh, the supervisor starts ingest anew with the other model.

No step keeps a place of its own: what is left to do is what differs. What was spent stands beside the copy, counted
before it is spent, so that a bound holds over all runs. Blocking; one thread; the original is read, never written,
but for the fences of its metadata and jobs (`Handover`). The copy has this process as its one writer, fenced like any.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from shoal.cluster.embedding_texts import FIX_TEXT_FIELDS, Embedder
from shoal.documents.stored_api import stored_api_text
from shoal.errors import BadDocument, ConfigurationError, ShoalError, TransientError
from shoal.faults import reach
from shoal.records import SCRAPER_COLLECTION
from shoal.settings import Settings
from shoal.store.fence import Fence
from shoal.store.generations import COPY, Generation, Handover, active, generation_uri, other, was_left_for
from shoal.store.mirroring import Difference, Page, difference, everything, opened, pages, refresh, texts_of
from shoal.store.place import at
from shoal.store.rows import Row, check_vectors
from shoal.store.schemas import (
    FIXES_TABLE,
    JOBS_TABLE,
    SPEND_TABLE,
    TableKind,
    metadata_table,
    table_uri,
    vectors_table,
)
from shoal.store.state_files import read_state, write_state
from shoal.store.tables import CommitRefused, FencedTable
from shoal.store.writing import TableWriter, storage_options

STATE = "migration.json"
"""Beside the copy's tables: what was spent on it."""
HOLD_S = 60.0
"""How long the writer is asked to wait for a switch. Bringing over what came in the last moments takes one or two."""
ROUNDS_MAX = 20
"""Looks at what is new before a switch. Each leaves less, but where documents come faster than they are embedded."""
SMALL_DOCUMENTS = 64
"""Few enough to be brought over while the writer waits."""
SWITCH_ATTEMPTS = 5
WRITE_ATTEMPTS = 5
BUILD_POLL_S = 0.5
API_TOKENS = 250
"""Of the text of `similar-apis`: api_text.PIECES_MAX by its estimate, which is within a fifth."""

Say = Callable[[str], None]


class BudgetReached(ShoalError):
    """The bound on what may be spent. Nothing is lost: a run with a higher one goes on."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a build would cost at most: the chunks by the new model's own counter, and for each document API_TOKENS.
    `longest`: tokens of the longest chunk."""

    documents: int
    chunks: int
    tokens: int
    longest: int
    too_long: int


@dataclass(slots=True)
class Budget:
    """`tokens_max` None: no bound. `spent` over all runs for this copy."""

    tokens_max: int | None
    spent: int = 0


def in_use(settings: Settings) -> Generation:
    """The generation of the collection that is in use. Raises ConfigurationError where there is no collection."""
    found = active(settings.tables_uri, storage_options(settings))
    if found is None:
        raise ConfigurationError(
            f"there are no tables at {settings.tables_uri}: is LANCEDB_PATH (SHOAL_DATA_DIR) right?"
        )
    return found


def beside(settings: Settings, used: Generation) -> Generation | None:
    """The one beside it, if any."""
    return other(settings.tables_uri, storage_options(settings), used)


def to_copy(settings: Settings, model: str, width: int) -> tuple[Generation, Generation]:
    """(the one in use, the one to build with `model`). Raises ConfigurationError where that can't be begun."""
    used = in_use(settings)
    if used.facts.model == model:
        raise ConfigurationError(f"the collection is embedded with {model} already")
    found = beside(settings, used)
    if found is None:
        number = used.number + 1
        uri = generation_uri(settings.tables_uri, number)
        return used, Generation(number, uri, replace(used.facts, model=model, width=width))
    if (found.facts.model, found.facts.width) != (model, width):
        raise ConfigurationError(
            f"a generation with {found.facts.model} lies beside the one in use: remove it first "
            "(`shoal migrate-model scraper --cancel`, or --drop where the collection was in it before)"
        )
    return used, found


def can_go_back(settings: Settings, one: Generation, used: Generation) -> bool:
    return was_left_for(settings.tables_uri, storage_options(settings), one, used)


def uris(uri: str) -> dict[TableKind, str]:
    """The tables of a generation."""
    return {
        "metadata": table_uri(uri, metadata_table(SCRAPER_COLLECTION)),
        "vectors": table_uri(uri, vectors_table(SCRAPER_COLLECTION)),
        "fixes": table_uri(uri, FIXES_TABLE),
        "jobs": table_uri(uri, JOBS_TABLE),
        "spend": table_uri(uri, SPEND_TABLE),
    }


@dataclass(slots=True)
class Migration:
    """From `used` to `copy`. `open` it, `close` it."""

    settings: Settings
    used: Generation
    copy: Generation
    embedder: Embedder
    original: dict[TableKind, FencedTable]
    writer: TableWriter
    budget: Budget
    say: Say
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    pause: Callable[[float], None] = field(default=time.sleep)

    @classmethod
    def open(
        cls,
        settings: Settings,
        used: Generation,
        copy: Generation,
        embedder: Embedder,
        tokens_max: int | None = None,
        say: Say = lambda _: None,
    ) -> Migration:
        """Opens the original for reading, and the copy, which is made where it is missing, for writing."""
        options = storage_options(settings)
        original = opened(uris(used.uri), options)
        own = at(settings, copy.uri)
        writer = TableWriter.open(
            copy.uri, options, copy.facts.model, copy.facts.width, settings=own, now=datetime.now(UTC), role=COPY
        )
        state = read_state(own, STATE)
        spent = int(state.get("spent_tokens", 0)) if isinstance(state, dict) else 0
        return cls(settings, used, copy, embedder, original, writer, Budget(tokens_max, spent), say)

    def close(self) -> None:
        self.writer.close()

    # --- looking ------------------------------------------------------------------------------

    def look(self, *, with_pending_jobs: bool = False) -> Difference:
        """What differs now. Raises MovedError where the collection is in other tables meanwhile."""
        refresh(self.original)
        self.used.role.check_left(self.original["metadata"])
        return difference(self.original, self.writer.tables, with_pending_jobs=with_pending_jobs)

    def estimate(self, found: Difference) -> Estimate:
        """What it costs at most to bring that over; the cache may save some of it."""
        return _estimate(self.original, found, self.embedder)

    @staticmethod
    def foresee(settings: Settings, used: Generation, copy: Generation, embedder: Embedder) -> Estimate:
        """The same before anything is made. Raises ConfigurationError where it can't be built."""
        options = storage_options(settings)
        original = opened(uris(used.uri), options)
        refresh(original)
        try:
            found = difference(original, opened(uris(copy.uri), options))
        except TransientError:  # the copy is not there, or not whole
            found = everything(original)
        estimate = _estimate(original, found, embedder)
        _refuse_too_long(estimate, used, copy, embedder)
        return estimate

    def check(self, estimate: Estimate) -> None:
        """Before anything is spent. Raises ConfigurationError, BudgetReached."""
        _refuse_too_long(estimate, self.used, self.copy, self.embedder)
        bound = self.budget.tokens_max
        if bound is not None and self.budget.spent + estimate.tokens > bound:
            raise BudgetReached(
                f"{estimate.tokens} tokens are to be embedded, {self.budget.spent} were before, {bound} are allowed: "
                "raise --max-tokens or --max-usd"
            )

    # --- building -----------------------------------------------------------------------------

    def build(self) -> None:
        """Bring over everything, and make the copy's indexes. Raises ShoalError; asked again it goes on."""
        found = self.look()
        estimate = self.estimate(found)
        self.check(estimate)
        self.say(f"{estimate.documents} documents, {estimate.chunks} chunks, {estimate.tokens} tokens to embed")
        self._bring(found)
        self.catch_up()

    def catch_up(self) -> None:
        """Bring over what has come since, until little differs; then the copy's upkeep. Raises TransientError where
        it comes faster than it can be brought over."""
        for _ in range(ROUNDS_MAX):
            found = self.look()
            small = len(found.documents) <= SMALL_DOCUMENTS
            self._bring(found)
            if small:
                break
        else:
            raise TransientError("documents come faster than they can be brought over: try again, or when less comes")
        self.keep_up()

    def keep_up(self) -> None:
        """The copy's upkeep: what is due of it, index builds to their end."""
        while True:
            done = self.writer.maintain(self.now())
            if done is not None:
                self.say(done)
            elif self.writer.is_building:
                self.pause(BUILD_POLL_S)
            else:
                return

    def _bring(self, found: Difference, *, in_haste: bool = False) -> None:
        done = 0
        source = self.original["metadata"].fence
        for page in pages(found, self.original):
            self._fill(page)
            reach("migration.after_call")
            self._write(page, source)
            done += len(page.documents)
            if in_haste:
                continue
            self.say(f"{done} of {len(found.documents)} documents")
            while not self.writer.is_building and (did := self.writer.maintain(self.now())) is not None:
                self.say(did)

    def _write(self, page: Page, source: Fence) -> None:
        for attempt in range(WRITE_ATTEMPTS):
            try:
                self.writer.mirror(page, source, self.now())
                return
            except CommitRefused:  # of an index that was built meanwhile, say: the next call looks again
                if attempt == WRITE_ATTEMPTS - 1:
                    raise

    def _fill(self, page: Page) -> None:
        """The vectors of a page, paid for before they are asked for."""
        chunks = [row for row in page.chunks if row["content_summary"] is not None]
        self._embed(chunks, "content_embedding", [str(row["content_summary"]) for row in chunks], "document")
        first = {row["metadata_id"]: row for row in page.chunks if row["chunk_index"] == 0}
        apis = [row for row in page.metadata if row["revision"] in page.with_vector]
        count, most = self.embedder.count, self.embedder.tokens_max
        texts = [stored_api_text(row, first.get(row["id"], {}), count, most) for row in apis]
        self._embed(apis, "schema_embedding", texts, "query")
        for row in page.metadata:
            if row["embedding_model"] is not None:
                row["embedding_model"] = self.copy.facts.model
        fixes = [row for key, row in page.keyed.get("fixes", {}).items() if key in page.with_vector]
        said = [" ".join(str(row[name]) for name in FIX_TEXT_FIELDS if row[name]) for row in fixes]
        self._embed(fixes, "error_embedding", said, "query")

    def _embed(self, rows: Sequence[Row], column: str, texts: Sequence[str], kind: Any) -> None:
        asked = [(row, text) for row, text in zip(rows, texts, strict=True) if text.strip()]
        if not asked:
            return
        self._spend(sum(min(self.embedder.count(text), self.embedder.tokens_max) for _, text in asked))
        try:
            vectors = self.embedder.embed([text for _, text in asked], kind)
            check_vectors(vectors, self.copy.facts)
        except BadDocument as error:
            raise ConfigurationError(
                f"{self.copy.facts.model} refuses a text ({error.message}) of one of {_named(rows)}: remove or mend "
                "that document, or stay with the model (--cancel)"
            ) from error
        for (row, _), vector in zip(asked, vectors, strict=True):
            row[column] = vector

    def _spend(self, tokens: int) -> None:
        budget = self.budget
        if budget.tokens_max is not None and budget.spent + tokens > budget.tokens_max:
            raise BudgetReached(
                f"{budget.spent} of {budget.tokens_max} tokens are spent, the next page needs {tokens}: what is done "
                "is kept; raise --max-tokens or --max-usd to go on"
            )
        budget.spent += tokens
        write_state(at(self.settings, self.copy.uri), STATE, {"spent_tokens": budget.spent})

    # --- switching ----------------------------------------------------------------------------

    def switch(self) -> Generation:
        """Move the collection into the copy; the generation as it is in use then. Ingest waits for some seconds,
        searches for nothing. Raises ShoalError: then it has not moved, or `in_use` says that it has."""
        for _ in range(SWITCH_ATTEMPTS):
            self.catch_up()
            try:
                return self._move()
            except CommitRefused as error:
                self.say(f"written to meanwhile, once more ({error})")
        raise TransientError(
            f"{SWITCH_ATTEMPTS} times the tables were written to in the moment of the switch: try again"
        )

    def _move(self) -> Generation:
        turn = self.used.turn + 1
        handover = Handover(self.original["metadata"])
        self.original["metadata"].refresh()
        handover.hold(self.now() + timedelta(seconds=HOLD_S))
        reach("migration.holding")
        try:
            handover.settle(self.original["jobs"])
            found = self.look(with_pending_jobs=True)
            compared = self.original["metadata"].fence
            self._bring(found, in_haste=True)
            if left := self.look(with_pending_jobs=True):
                if self.original["metadata"].fence != compared:
                    raise CommitRefused("its writer did not wait")
                names = [*left.documents, *left.keys]
                raise ShoalError(
                    f"{len(names)} things stay different, {', '.join(names[:3])} among them: `shoal check` says what "
                    "is wrong with the tables; nothing was switched"
                )
            handover.move(self.copy.number, turn)
        except BaseException:
            # Where the move landed in spite of an error this changes nothing.
            _quietly(handover.release)
            raise
        return replace(self.copy, turn=turn, came_from=self.used.number)


def _estimate(original: Mapping[TableKind, FencedTable], found: Difference, embedder: Embedder) -> Estimate:
    tokens = longest = too_long = chunks = 0
    for text in texts_of(original, found.documents):
        size = embedder.count(text)
        chunks, tokens, longest = chunks + 1, tokens + size, max(longest, size)
        too_long += size > embedder.tokens_max
    tokens += API_TOKENS * len(found.documents)
    return Estimate(len(found.documents), chunks, tokens, longest, too_long)


def _refuse_too_long(estimate: Estimate, used: Generation, copy: Generation, embedder: Embedder) -> None:
    if estimate.too_long:
        raise ConfigurationError(
            f"{estimate.too_long} chunks have up to {estimate.longest} tokens, {copy.facts.model} takes "
            f"{embedder.tokens_max}: they were cut for {used.facts.model}, and nothing is cut off silently. Index the "
            "files anew with that model: another LANCEDB_PATH, then `shoal backfill`"
        )


def _quietly(step: Callable[[], None]) -> None:
    try:
        step()
    except ShoalError:
        pass  # the hold ends by itself


def _named(rows: Sequence[Row]) -> str:
    names = dict.fromkeys(str(row.get("metadata_id") or row["id"]) for row in rows)
    return ", ".join(list(names)[:5]) + (" …" if len(names) > 5 else "")
