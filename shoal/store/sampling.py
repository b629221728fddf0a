"""A random few of a collection's chunks, and the sums over all of them. Only reads."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pyarrow.compute as pc

from shoal.store.schemas import IS_DOCUMENT, table_uri, vectors_table
from shoal.store.tables import FencedTable, lance_errors


@dataclass(frozen=True, slots=True)
class ChunkSample:
    """`tokens`: of all chunks that say how many they have; `uncounted`: those that don't. `sample`: texts, each with
    its own count."""

    model: str
    chunks: int
    tokens: int
    uncounted: int
    sample: tuple[tuple[str, int | None], ...]


def sample_chunks(
    uri: str, options: dict[str, str], collection: str, size: int, rng: random.Random
) -> ChunkSample | None:
    """At most `size` chunks, each as likely as any other; None where there is no such collection. Raises
    TransientError, ConfigurationError."""
    table = FencedTable.open("vectors", table_uri(uri, vectors_table(collection)), options)
    if table is None:
        return None
    with lance_errors(f"sampling {table.uri}"):
        scanner = table.dataset.scanner(columns=["token_count"], filter=IS_DOCUMENT, with_row_address=True)
        counts = scanner.to_table()  # 12 bytes a chunk
    addresses, tokens = counts["_rowaddr"].to_pylist(), counts["token_count"]
    drawn = table.rows_at(rng.sample(addresses, min(size, len(addresses)))).values()
    return ChunkSample(
        table.facts.model, len(addresses), int(pc.sum(tokens).as_py() or 0), int(tokens.null_count),
        tuple((row["content_summary"] or "", row["token_count"]) for row in drawn),
    )  # fmt: skip
