"""Fills tables for a load run, by the one writer, without the flow: 100,000 documents through extraction and a local
model would take two hours and measure nothing here.

Vectors are the local model's own of each topic, each document's moved a little, so that questions find neighbours as
dense as real ones. The index is built by `shoal up`, as its user would have it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np

from loadtests.texts import Topic, sha256, topics
from shoal.embeddings.models import create_model, model_width
from shoal.records import (
    SCRAPER_COLLECTION,
    Announcement,
    ApiTraits,
    Chunk,
    Embedded,
    Extraction,
    Fetched,
    Matrix,
    Position,
    Progress,
    Vector,
)
from shoal.settings import Settings
from shoal.store.writing import TableWriter, storage_options

BATCH = 5_000
NOISE = 0.35
"""Length of what is added to a unit vector: cosine 0.94 to its topic, about what two scrapes of one feed have."""
FIRST_AT = datetime(2025, 1, 1, tzinfo=UTC)
TOPIC = "filled"


def fill(settings: Settings, count: int, progress: Callable[[int], None]) -> None:
    """Writes documents 0 to `count` - 1 of one chunk each."""
    model = create_model(settings)
    width = model_width(settings, model.name)
    about = topics()
    centres: Matrix = np.concatenate([model.embed([topic.text for topic in about[at : at + 64]])
                                      for at in range(0, len(about), 64)])  # fmt: skip
    rng = np.random.default_rng(20250120)
    writer = TableWriter.open(
        settings.tables_uri, storage_options(settings), model.name, width, settings=settings, now=datetime.now(UTC)
    )
    for first in range(0, count, BATCH):
        numbers = range(first, min(first + BATCH, count))
        moved = rng.standard_normal((len(numbers), width)).astype(np.float32)
        moved *= NOISE / np.linalg.norm(moved, axis=1, keepdims=True)
        vectors = centres[[number % len(about) for number in numbers]] + moved
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        rows = [
            _document(number, about[number % len(about)], vector, model.name)
            for number, vector in zip(numbers, vectors, strict=True)
        ]
        writer.apply(rows, [Progress("load", TOPIC, 0, numbers[-1] + 1)], datetime.now(UTC))
        progress(numbers[-1] + 1)


def _document(number: int, topic: Topic, vector: Vector, model: str) -> Embedded:
    at = FIRST_AT + timedelta(minutes=number % 43_200)
    name = f"{topic.source.lower()}_{topic.data_type}"
    text = f"{topic.text}. Collected {at:%d %B %Y %H:%M}, file {number}."
    announcement = Announcement(
        Position("load", TOPIC, 0, number, 0), SCRAPER_COLLECTION, f"prod:{name}:f{number}.json",
        f"{at:%Y%m%dT%H%M%SZ}", f"s3://load/{name}/f{number}.json", None, name, "prod", f"f{number}.json", topic.source,
        topic.data_type, f"{name}_scraper", at, source_url=topic.endpoint,
    )  # fmt: skip
    chunk = Chunk(0, text, None, 0, len(text), 40)
    traits = ApiTraits(api_endpoint=topic.endpoint, auth_method="api_key")
    extraction = Extraction(
        "JSON", "application/json", "utf-8", topic.text, (chunk,), '{"fields": []}', topic.text, traits
    )
    row = vector.reshape(1, -1)
    return Embedded(Fetched(announcement, sha256(number), "0" * 32, 2_000, extraction=extraction), model, row, vector)
