"""The reference: the same files indexed by one process in a straight line, without any guarantee.

Reads every file, extracts it, embeds all texts in full batches, and writes everything in one `TableWriter.apply`:
no log, no actors, nothing that survives a crash, nothing searchable before the end. What the pipeline's
throughput is judged against, in the same run on the same machine. Storing the files and loading the model is
not timed, as it isn't for a pipeline that is already up. Prints its figures as one JSON object.

    python -m bench.straight_line DIRECTORY       # settings as for shoal; SHOAL_DATA_DIR must be a new directory
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from shoal import settings as shoal_settings
from shoal.documents.pipeline import Context, Limits, TokenBudget, extract_document
from shoal.embeddings.embedding_model import EmbeddingModel
from shoal.embeddings.models import create_model, token_budget
from shoal.embeddings.texts import Kind
from shoal.errors import BadDocument
from shoal.records import Announcement, Embedded, Failure, Fetched, Position, Vector
from shoal.settings import Settings
from shoal.sources.ids import parse_location
from shoal.sources.messages import RawMessage, parse_message
from shoal.sources.publishing import prepare
from shoal.store.writing import TableWriter, storage_options

_Text = tuple[Kind, str]


@dataclass(frozen=True, slots=True)
class StraightLine:
    """Counts, seconds of each step, CPU-seconds of all of them."""

    documents: int
    failed: int
    chunks: int
    texts_embedded: int
    extract_s: float
    embed_s: float
    write_s: float
    cpu_s: float

    @property
    def took_s(self) -> float:
        return self.extract_s + self.embed_s + self.write_s


def run(paths: Sequence[Path], settings: Settings) -> StraightLine:
    """Index what `paths` name into the tables of `settings`."""
    announcements = _announcements(paths, settings)
    model = create_model(settings)
    count, max_tokens, overlap = token_budget(settings, model.name)
    budget = TokenBudget(count, max_tokens, overlap)
    limits = Limits(settings.decompressed_bytes_max, settings.chunks_per_document_max)
    now = datetime.now(UTC)
    writer = TableWriter.open(
        settings.tables_uri, storage_options(settings), model.name, model.width, settings=settings, now=now
    )
    model.embed(["warm"])

    began, cpu_began = time.perf_counter(), time.process_time()
    fetched = [_fetch(announcement, limits, budget) for announcement in announcements]
    extracted = time.perf_counter()
    vectors = _embed(dict.fromkeys(text for one in fetched for text in _texts(one)), model)
    embedded = time.perf_counter()
    writer.apply([_embedded(one, model, vectors) for one in fetched], (), datetime.now(UTC))
    written = time.perf_counter()
    return StraightLine(
        documents=len(fetched),
        failed=sum(one.failure is not None for one in fetched),
        chunks=sum(len(one.extraction.chunks) for one in fetched if one.extraction),
        texts_embedded=len(vectors),
        extract_s=extracted - began,
        embed_s=embedded - extracted,
        write_s=written - embedded,
        cpu_s=time.process_time() - cpu_began,
    )


def _announcements(paths: Sequence[Path], settings: Settings) -> list[Announcement]:
    found: list[Announcement] = []
    for offset, prepared in enumerate(prepare(paths, settings)):
        raw = RawMessage(Position("straight-line", "none", 0, offset, 0), prepared.key, prepared.value)
        found += [work for work in parse_message(raw, settings) if isinstance(work, Announcement)]
    return found


def _fetch(announcement: Announcement, limits: Limits, budget: TokenBudget) -> Fetched:
    assert announcement.location is not None
    data = Path(str(parse_location(announcement.location).path)).read_bytes()
    hashes = hashlib.sha256(data).hexdigest(), hashlib.md5(data, usedforsecurity=False).hexdigest()
    context = Context(
        name=announcement.urn,
        content_type=announcement.content_type,
        source_url=announcement.source_url,
        data_source=announcement.data_source,
        data_type=announcement.data_type,
        dataset=announcement.dataset,
        collected_at=announcement.collected_at,
    )
    try:
        return Fetched(announcement, *hashes, len(data), extraction=extract_document(data, context, limits, budget))
    except BadDocument as error:
        return Fetched(announcement, *hashes, len(data), failure=Failure(error.reason, error.message, "extract"))


def _texts(fetched: Fetched) -> Iterator[_Text]:
    if fetched.extraction is not None:
        for chunk in fetched.extraction.chunks:
            yield "document", chunk.text
        if fetched.extraction.api_text:
            yield "query", fetched.extraction.api_text


def _embed(texts: Iterable[_Text], model: EmbeddingModel) -> dict[_Text, Vector]:
    """Each distinct text once, in full batches, in the order they came."""
    vectors: dict[_Text, Vector] = {}
    batches: dict[Kind, list[str]] = {"document": [], "query": []}

    def close(kind: Kind) -> None:
        if batches[kind]:
            rows = model.embed(batches[kind], kind)
            vectors.update(zip(((kind, text) for text in batches[kind]), rows, strict=True))
            batches[kind] = []

    for kind, text in texts:
        batches[kind].append(text)
        if len(batches[kind]) == model.batch_inputs_max:
            close(kind)
    for kind in batches:
        close(kind)
    return vectors


def _embedded(fetched: Fetched, model: EmbeddingModel, vectors: dict[_Text, Vector]) -> Embedded:
    if fetched.extraction is None:
        return Embedded(fetched)
    rows = [vectors["document", chunk.text] for chunk in fetched.extraction.chunks]
    matrix = np.stack(rows) if rows else np.empty((0, model.width), np.float32)
    api_text = fetched.extraction.api_text
    return Embedded(fetched, model.name, matrix, vectors["query", api_text] if api_text else None)


def main() -> None:
    result = run([Path(argument) for argument in sys.argv[1:]], shoal_settings.load())
    print(json.dumps(asdict(result) | {"took_s": result.took_s}))


if __name__ == "__main__":
    main()
