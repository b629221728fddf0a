"""`shoal import-lancedb`: the documents of an earlier index, with their embeddings, into tables of ours.

What was embedded is not embedded again. The documents have no message in our log, so they don't come by it: while no
Shoal runs, this process is the writer, by the same TableWriter, which takes an epoch and is fenced like any other. A
document becomes the same versions and chunks as one that was announced: ids by `environment:dataset:urn`, so that the
next announcement of the file replaces it. Whatever is there already stays as it is: running it twice, or again after
a kill, gives the same tables.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson

from shoal.cluster.living import living_status
from shoal.cluster.output import Exit, Format, emit_json, emit_pairs, emit_rows, err, say
from shoal.embeddings.model_names import OPENAI_WIDTHS, parse
from shoal.embeddings.models import model_width
from shoal.errors import BadDocument, ConfigurationError, DeadReason, FencedError, TransientError
from shoal.records import (
    SCRAPER_COLLECTION,
    Announcement,
    ApiTraits,
    Chunk,
    Embedded,
    Extraction,
    Failure,
    Fetched,
    Outcome,
    Position,
    Vector,
)
from shoal.redaction import redact_url
from shoal.settings import Settings
from shoal.sources.ids import S3_DATASET, document_id
from shoal.sources.versions import compact, comparable, parse_time
from shoal.store.foreign import IMPORTED, ForeignDocument, ForeignTables
from shoal.store.place import generation_to_open
from shoal.store.rows import Row, check_storable
from shoal.store.schemas import CollectionFacts
from shoal.store.writing import TableWriter, collection_model, storage_options

UPKEEP_COMMITS = 20
REFUSED_SHOWN = 10
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_ENVIRONMENTS = ("dev", "staging", "prod")


@dataclass(slots=True)
class Tally:
    """`counts`: documents, chunks, and one per outcome; `refused`: the first of those that can't be taken over."""

    counts: Counter[str] = field(default_factory=Counter)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def refuse(self, name: str, why: str) -> None:
        self.counts["refused"] += 1
        if len(self.refused) < REFUSED_SHOWN:
            self.refused.append((name, why))


def model_of(told: str, named: set[str], width: int, existing: tuple[str, int] | None, settings: Settings) -> str:
    """The model of the vectors. Raises ConfigurationError where that is not certain, or does not fit."""
    names = {f"openai:{name}" if name in OPENAI_WIDTHS else name for name in ({told} if told else named)}
    if len(names) != 1:
        said = f"the rows name {', '.join(sorted(names))}" if names else "the rows name none"
        raise ConfigurationError(f"which model made the vectors? {said}: say it with --model, e.g. openai:NAME")
    (model,) = names
    if ":" not in model:
        raise ConfigurationError(f"--model {model}: a name is local:MODEL, openai:MODEL or hash:WIDTH")
    parsed = parse(model)
    bare = str(replace(parsed, dimensions=0))  # rows name the model, not what was asked of it
    if others := {name for name in named if not {name, f"openai:{name}"} & {model, bare}}:
        raise ConfigurationError(f"--model {model}: the rows name {', '.join(sorted(others))}")
    # Of a compatible server's model only the server knows the width, unless it is asked for so many dimensions.
    is_known = parsed.provider != "openai" or parsed.is_openais or parsed.dimensions
    if is_known and (made := model_width(settings, model)) != width:
        raise ConfigurationError(f"the vectors have width {width}, {model} makes {made}")
    if existing is not None and existing != (model, width):
        raise ConfigurationError(
            f"{settings.tables_uri} holds vectors of {existing[0]} (width {existing[1]}), these are of {model} (width "
            f"{width}): import into another LANCEDB_PATH"
        )
    return model


def embedded_of(found: ForeignDocument, model: str, where: str) -> Embedded:
    """A document of the earlier index as one of ours. Raises BadDocument where it can't be."""
    row, old_id = found.row, str(found.row.get("id"))
    sha256 = str(row.get("sha256_hash") or "")
    if not _SHA256.fullmatch(sha256):
        raise _refused("it has no sha256_hash")
    announcement = _announcement(row, where)
    if row.get("validation_status") == "error":
        failure = Failure(DeadReason.EXTRACTION_FAILED, "it had no text in the earlier index", "import")
        return Embedded(Fetched(announcement, sha256.lower(), size_bytes=row.get("file_size_bytes"), failure=failure))
    if not found.chunks and row.get("chunk_count") != 0:
        raise _refused("no chunk has its id as metadata_id, and it says nothing of having none (chunk_count 0)")
    if found.vectors is None:
        raise _refused(f"a chunk of {old_id} has no vector, or one of another width")
    first = found.chunks[0] if found.chunks else {}
    schema_vector = row.get("schema_embedding") or first.get("schema_embedding")
    traits: dict[str, Any] = {name: _text(first.get(name)) for name in _TRAITS}
    extraction = Extraction(
        str(row.get("file_format") or first.get("file_format") or "TEXT").upper(), _text(row.get("content_type")),
        _text(row.get("charset")), _text(row.get("title")),
        tuple(_chunk(at, chunk) for at, chunk in enumerate(found.chunks)), _text(first.get("content_schema")), None,
        ApiTraits(**traits),
    )  # fmt: skip
    fetched = Fetched(
        announcement, sha256.lower(), md5=_text(row.get("md5sum")), size_bytes=row.get("file_size_bytes"),
        extraction=extraction,
    )  # fmt: skip
    return Embedded(fetched, model, found.vectors, _vector(schema_vector, found.vectors.shape[1]))


_TRAITS = ("api_endpoint", "auth_method", "rate_limit", "data_freshness", "pagination_type")


def _vector(values: Any, width: int) -> Vector | None:
    if not isinstance(values, list | tuple) or len(values) != width:  # text of it, say: it is optional
        return None
    vector = np.asarray(values, np.float32)
    return vector if bool(np.all(np.isfinite(vector))) and bool(np.any(vector)) else None


def _chunk(at: int, row: Row) -> Chunk:
    text = str(row.get("content_summary") or "")
    return Chunk(
        at, text, _text(row.get("heading")), row.get("char_start") or 0, row.get("char_end") or len(text),
        row.get("token_count") or 0,
    )  # fmt: skip


def _announcement(row: Row, where: str) -> Announcement:
    collected_at = _time(row.get("collected_at")) or _day(row)
    if collected_at is None:
        raise _refused("it has no collected_at")
    published_at = _time(row.get("published_at"))
    version = comparable(_text(row.get("version"))) or compact(published_at or collected_at)
    bucket, key = row.get("s3_bucket"), row.get("s3_key")
    location = _text(row.get("s3_path")) or (f"s3://{bucket}/{key}" if bucket and key else None)
    dataset = str(row.get("dataset") or row.get("scraper_name") or row.get("data_source") or "imported")
    dataset = dataset.replace(":", "_")
    dataset = f"{dataset}_" if dataset == S3_DATASET else dataset
    environment = row.get("environment") if row.get("environment") in _ENVIRONMENTS else "prod"
    urn = str(row.get("urn") or (location or "").rpartition("/")[2] or row.get("id"))
    url = _text(row.get("source_url"))
    return Announcement(
        position=Position(_cluster(where), where.rpartition("/")[2], 0, 0, int(collected_at.timestamp() * 1000)),
        collection=SCRAPER_COLLECTION,
        document_id=document_id(str(environment), dataset, urn),
        version=version,
        location=location,
        content=None,
        dataset=dataset,
        environment=str(environment),
        urn=urn,
        data_source=str(row.get("data_source") or "unknown").upper(),
        data_type=str(row.get("data_type") or "other"),
        scraper_name=str(row.get("scraper_name") or dataset),
        collected_at=collected_at,
        published_at=published_at or parse_time(version),
        source_url=redact_url(url) if url else None,
        etag=_text(row.get("etag")),
        version_id=_text(row.get("version_id")),
        content_type=_text(row.get("content_type")),
        extra=_extra(row),
    )


def _cluster(where: str) -> str:
    return IMPORTED + hashlib.sha256(where.encode()).hexdigest()[:16]


def _extra(row: Row) -> str:
    """What the row had as `extra`, and its id there."""
    try:
        extra = orjson.loads(row.get("extra") or "{}")
    except (orjson.JSONDecodeError, TypeError):
        extra = {}
    kept = extra if isinstance(extra, dict) else {"extra": extra}
    return orjson.dumps({**kept, "imported_id": str(row.get("id"))}).decode()


def _text(value: Any) -> str | None:
    """A value of a column that other indexes have as numbers or objects, as text."""
    if value is None or isinstance(value, str):
        return value
    return orjson.dumps(value).decode() if isinstance(value, dict | list) else str(value)


def _time(value: Any) -> datetime | None:
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return parse_time(value) if isinstance(value, str) else None


def _day(row: Row) -> datetime | None:
    try:
        return datetime(row["year"], row["month"], row["day"], tzinfo=UTC)
    except (KeyError, TypeError, ValueError):
        return None


def _refused(message: str) -> BadDocument:
    return BadDocument(DeadReason.WRITE_REJECTED, message)


def take_over(
    tables: ForeignTables,
    model: str,
    writer: TableWriter | None,
    now: Callable[[], datetime],
    progress: Callable[[str], None] = lambda _: None,
) -> Tally:
    """Write every document that can be taken over; without a writer only count them. Raises FencedError,
    TransientError, ConfigurationError."""
    facts, tally, commits = CollectionFacts(model, tables.width), Tally(), 0
    for part in tables.documents():
        batch: list[Embedded] = []
        for found in part:
            tally.counts["documents"] += 1
            tally.counts["chunks"] += len(found.chunks)
            try:
                made = embedded_of(found, model, tables.where)
                check_storable(made, facts)
            except BadDocument as error:
                tally.refuse(str(found.row.get("id")), error.message)
                continue
            except (AttributeError, TypeError, ValueError, OverflowError) as error:  # a column of another kind
                tally.refuse(str(found.row.get("id")), f"a value is not what its column's name says: {error}"[:200])
                continue
            batch.append(made)
        if writer is not None and batch:
            _write(writer, batch, tally, now)
            commits += 1
            if commits % UPKEEP_COMMITS == 0:
                _upkeep(writer, now)
        elif batch:
            tally.counts["would be imported"] += len(batch)
        progress(f"{tally.counts['documents']} documents, {tally.counts['refused']} refused")
    if writer is not None:
        _upkeep(writer, now)
    return tally


def _write(writer: TableWriter, batch: Sequence[Embedded], tally: Tally, now: Callable[[], datetime]) -> None:
    try:
        acks = writer.apply(batch, (), now())
    except (ValueError, TypeError) as error:  # a row that Arrow or Lance won't take: find the culprit
        if len(batch) == 1:
            tally.refuse(batch[0].fetched.announcement.document_id, str(error)[:200])
            return
        _write(writer, batch[: len(batch) // 2], tally, now)
        _write(writer, batch[len(batch) // 2 :], tally, now)
        return
    for item, ack in zip(batch, acks, strict=True):
        if ack.failure is not None:
            tally.refuse(item.fetched.announcement.document_id, ack.failure.message)
        elif ack.outcome is Outcome.DEAD_LETTERED:
            tally.counts["without text"] += 1
        else:
            tally.counts[ack.outcome.value] += 1


def _upkeep(writer: TableWriter, now: Callable[[], datetime]) -> None:
    while writer.maintain(now()) is not None:
        pass


def import_lancedb(
    settings: Settings, uri: str, *, metadata_table: str, vectors_table: str, model: str, dry_run: bool, form: Format
) -> int:
    """The `import-lancedb` command: an exit code."""
    began = time.monotonic()
    _refuse_beside_a_writer(settings)
    if uri.rstrip("/") == settings.tables_uri and metadata_table == f"{SCRAPER_COLLECTION}_metadata":
        raise ConfigurationError(f"{uri} are these very tables: say where the earlier index is")
    options = storage_options(settings.model_copy(update={"lancedb_path": uri}))
    foreign = ForeignTables.open(uri, options, metadata_table, vectors_table)
    own = storage_options(settings)
    existing = collection_model(settings.tables_uri, own)
    name = model_of(model, foreign.models(), foreign.width, existing, settings)
    rows, chunks = foreign.count()
    say(f"{rows} documents and {chunks} chunks of {name}, width {foreign.width}, at {foreign.where}")

    def now() -> datetime:
        return datetime.now(UTC)

    with err.status("opening the tables") as status:
        writer = None
        if not dry_run:
            place = generation_to_open(settings, CollectionFacts(name, foreign.width))
            writer = TableWriter.open(
                place.uri, own, name, foreign.width, settings=settings, now=now(), role=place.role
            )
        try:
            tally = take_over(foreign, name, writer, now, status.update)
        except FencedError as error:
            raise ConfigurationError(
                f"{error}: stop that Shoal, then import again; nothing is lost or doubled"
            ) from error
    found = {**tally.counts, "took_s": round(time.monotonic() - began, 2), "dry_run": dry_run}
    refused = [{"document": each, "why": why} for each, why in tally.refused]
    if form is Format.json:
        emit_json({**found, "refused_examples": refused})
    else:
        emit_pairs(found)
        if refused:
            emit_rows(refused, ("document", "why"))
    if dry_run:
        say("nothing was written (--dry-run)")
    return Exit.FAILED if tally.counts["refused"] else Exit.OK


def _refuse_beside_a_writer(settings: Settings) -> None:
    try:
        living_status(settings)
    except TransientError:
        return
    raise ConfigurationError(
        f"a Shoal indexes into {settings.tables_uri} now, and there is one writer: drain and stop it, then import"
    )
