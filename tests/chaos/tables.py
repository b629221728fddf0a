"""What the tables and the topics hold, read with lance and a consumer of the campaign's own: facts for the oracle."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lance
import numpy as np
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from shoal.documents.pipeline import Context, Limits, TokenBudget, extract_document
from shoal.embeddings.models import token_budget
from shoal.settings import Settings
from shoal.spending import SPEND_KIND
from tests.chaos.messages import WIDTH, Logged, Put
from tests.chaos.messages import Message as Announced
from tests.chaos.oracle import Fact, chunk_fact, row_fact
from tests.fixtures.openai_server import vectors

SERIAL_HEADER = "chaos.serial"
READ_S = 60.0
VECTOR_TOLERANCE = 1e-4  # float32 sent three times too long and normalised again


def facts(uri: str, options: dict[str, str]) -> Iterator[Fact]:
    """Every row of every table, but the fences and the memory of deletions."""
    for row in _rows(uri, "scraper_metadata", options, ["id", "version", "sha256_hash", "validation_status",
                                                        "superseded_at", "chunk_count"]):  # fmt: skip
        state = (row["validation_status"], row["chunk_count"]) if row["superseded_at"] is None else ("history",)
        yield row_fact(row["id"], row["version"], row["sha256_hash"], *state)
    chunks = _rows(uri, "scraper_vectors", options, ["id", "metadata_id", "document_version", "sha256_hash",
                                                     "content_summary", "content_embedding"])  # fmt: skip
    for start in range(0, len(chunks), 500):
        some = chunks[start : start + 500]
        right = vectors([row["content_summary"] for row in some], WIDTH)
        for row, vector in zip(some, right, strict=True):
            yield chunk_fact(
                row["id"], row["metadata_id"], row["document_version"], row["sha256_hash"], row["content_summary"]
            )
            if not np.allclose(np.asarray(row["content_embedding"]), vector, atol=VECTOR_TOLERANCE):
                yield ("vector of another text", row["id"])
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in _rows(uri, "scraper_fixes", options, ["id", "scraper_name", "summary", "count", "merged_into"]):
        groups.setdefault((row["scraper_name"], row["summary"]), []).append(row)
    for group, members in groups.items():
        firsts = [row for row in members if row["merged_into"] is None]
        strays = [row for row in members if row["merged_into"] not in (None, *(first["id"] for first in firsts))]
        if len(firsts) != 1 or strays:
            yield ("fix without one first report", *group, str(members))
        yield ("fix", *group, len(members), sum(row["count"] for row in firsts))
    for row in _rows(uri, "shoal_jobs", options, ["command_id", "status"]):
        yield ("job", row["command_id"], row["status"])


def _rows(uri: str, table: str, options: dict[str, str], columns: Sequence[str]) -> list[dict[str, Any]]:
    dataset = lance.dataset(f"{uri}/{table}.lance", storage_options=options or None)
    found: list[dict[str, Any]] = dataset.to_table(columns=list(columns), filter="fence IS NULL").to_pylist()
    return found


def chunks_by(settings: Settings, bodies: dict[str, tuple[bytes, str]]) -> Callable[[Put], Sequence[str]]:
    """The texts of a document's chunks. `bodies`: sha256 -> (bytes, the content type they are stored with)."""
    count, most, overlap = token_budget(settings, f"openai:{settings.openai_embedding_model}")
    budget = TokenBudget(count, most, overlap)
    limits = Limits(settings.decompressed_bytes_max, settings.chunks_per_document_max)

    def texts(put: Put) -> Sequence[str]:
        data, content_type = bodies[put.sha256]
        context = Context(put.urn, content_type, None, put.source.upper(), put.data_type, put.dataset, put.collected_at)
        return [chunk.text for chunk in extract_document(data, context, limits, budget).chunks]

    return texts


def logged(bootstrap: str, topics: Sequence[str], messages: dict[int, Announced]) -> list[Logged]:
    """Every message of `topics` but what the service tells itself of its costs. Raises AssertionError for another one
    that the campaign has not sent."""
    found = []
    for message in _all(bootstrap, topics):
        headers = dict(message.headers() or [])
        if SERIAL_HEADER not in headers and json.loads(message.value() or b"{}").get("kind") == SPEND_KIND:
            continue
        assert SERIAL_HEADER in headers, (
            f"nobody of ours sent {message.topic()}/{message.partition()}@{message.offset()}"
        )
        serial = int(headers[SERIAL_HEADER] or b"")
        found.append(Logged(messages[serial], message.partition() or 0, message.offset() or 0, message.timestamp()[1]))
    return found


def dead_letters(bootstrap: str, topics: Sequence[str]) -> list[tuple[tuple[str, int, int], str]]:
    """((topic, partition, offset) of the message, reason) of each dead letter."""
    found = []
    for message in _all(bootstrap, [f"{topic}_dlq" for topic in topics]):
        found_headers: Any = message.headers() or []  # what the client decodes is a list of (str, bytes or None)
        headers = {name: (value or b"").decode() for name, value in found_headers}
        at = [headers[f"__connect.errors.{name}"] for name in ("topic", "partition", "offset")]
        found.append(((at[0], int(at[1]), int(at[2])), headers["shoal.dlq.reason"]))
    return found


def _all(bootstrap: str, topics: Sequence[str]) -> Iterator[Message]:
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "chaos-reading", "enable.auto.commit": False, "log_level": 0}
    )
    try:
        left: dict[tuple[str, int], int] = {}
        places = []
        for topic in topics:
            for partition in consumer.list_topics(topic, timeout=READ_S).topics[topic].partitions:
                _, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=READ_S)
                places.append(TopicPartition(topic, partition, 0))
                if end:
                    left[topic, partition] = end
        consumer.assign(places)
        deadline = time.monotonic() + READ_S
        while left:
            for message in consumer.consume(500, timeout=0.1):
                if message.error() is not None:
                    continue
                deadline = time.monotonic() + READ_S
                yield message
                key = (message.topic() or "", message.partition() or 0)
                if (message.offset() or 0) + 1 >= left.get(key, 0):
                    left.pop(key, None)
            if time.monotonic() > deadline:
                raise KafkaException(f"nothing more comes, {left} are not read to their end")
    finally:
        consumer.close()
