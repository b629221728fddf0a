"""Is an index right after a step of upkeep? Rows, coverage, and a canary in each leg.

The canary is a row that the index covers, looked for through the index alone (`fast_search`, so that no scan of what
is not indexed finds it instead): by its own vector, or by a word of its own text. A row with the same vector will
do as well. A search without the index would hide that it is broken; a reader gets its errors or its gaps.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

import lance
import numpy as np
from lance.query import MatchQuery

from shoal.errors import ConfigurationError, TransientError
from shoal.store.index_views import IndexView
from shoal.store.rows import Row
from shoal.store.schemas import KEYS, literal
from shoal.store.tables import FencedTable, lance_errors

CANARIES = 4
FRAGMENTS_TRIED = 12
"""Old fragments of the metadata may hold only history, which has no vectors."""
SAME_DISTANCE = 1e-4
"""Cosine distance of equal vectors, with float32's rounding."""
_LOOKS = ((10, 20, 10), (100, 100_000, 20))
"""(hits, partitions, refinement) of the first look, and of the second, in every partition, for what it missed."""
_WORD = re.compile(r"[A-Za-z]{4,30}")
_STOPPING: dict[str, Any] = {"analyzer": "code", "language": "English", "stem": True, "remove_stop_words": True}
"""What of the index's options (FTS_OPTIONS) decides whether it drops a word. Lance's list is long ("doesn", of
"doesn't", is on it) and is held against the stems."""
_BROKEN = ("not found", "no such file", "nosuchkey", "panic", "corrupt", "out of range", "index out of bounds")


def rows_changed(before: int, after: int) -> str | None:
    """What is wrong with a step that must not change rows."""
    return None if before == after else f"the table had {before} rows before the step and {after} after it"


def coverage(view: IndexView, *, whole: bool = False) -> str | None:
    """What is wrong with what an index covers; `whole`: it must cover every row now."""
    if len(set(view.fragments)) != len(view.fragments):
        return f"{view.name} covers fragments twice"
    if view.indexed != sum(view.segments):
        return f"{view.name} holds {view.indexed} rows where its fragments have {sum(view.segments)}"
    if view.indexed + view.unindexed != view.rows:
        return f"{view.name}: {view.indexed} indexed and {view.unindexed} other rows are not {view.rows}"
    if whole and view.unindexed:
        return f"{view.name} leaves out {view.unindexed} rows after they were folded in"
    return None


def vector_canary(table: FencedTable, column: str, view: IndexView) -> str | None:
    """What is wrong with finding rows by their own vector. Raises TransientError where the storage is unwell."""
    key = KEYS[table.kind]
    try:
        for row in _sample(table, view, column):
            vector = np.asarray(row[column], np.float32)
            if not any(_finds(table, key, row[key], column, vector, look) for look in _LOOKS):
                return f"{view.name} does not find {key} {row[key]!r} by its own vector"
    except (TransientError, ConfigurationError, ValueError) as error:
        return _defect(view, error)
    return None


def text_canary(table: FencedTable, column: str, view: IndexView) -> str | None:
    """What is wrong with finding rows by a word of theirs. Raises TransientError where the storage is unwell."""
    key = KEYS[table.kind]
    try:
        for row in _sample(table, view, column):
            word = canary_word(row[column])
            # The key's own index may not hold the row yet, which a fast search then leaves out: the second look scans.
            if word is not None and not any(_says(table, key, row[key], column, word, by) for by in (True, False)):
                return f"{view.name} does not find {key} {row[key]!r} by its word {word!r}"
    except (TransientError, ConfigurationError, ValueError) as error:
        return _defect(view, error)
    return None


def canary_word(text: str) -> str | None:
    """The longest plain word: likely a rare one. None where there is none that the index must hold."""
    # Beside other letters or digits it is part of a longer token; an underscore parts tokens.
    whole = (word for word in set(_WORD.findall(text)) if re.search(rf"(?<![^\W_]){word}(?![^\W_])", text))
    by_length = sorted(whole, key=lambda word: (len(word), word), reverse=True)
    return next((word for word in by_length if lance.tokenize(word, **_STOPPING)), None)


def _says(table: FencedTable, key: str, wanted: str, column: str, word: str, by_key_index: bool) -> bool:
    with lance_errors(f"searching {table.uri}"):
        found = table.dataset.scanner(
            columns=[key, "_score"], full_text_query=MatchQuery(word, column), filter=f"{key} = {literal(wanted)}",
            prefilter=True, fast_search=True, use_scalar_index=by_key_index, limit=1,
        )  # fmt: skip
        return bool(found.to_table().num_rows)


def _finds(table: FencedTable, key: str, wanted: str, column: str, vector: Any, look: tuple[int, int, int]) -> bool:
    hits, probes, refine = look
    nearest = {
        "column": column, "q": vector, "k": hits, "metric": "cosine", "nprobes": probes, "refine_factor": refine,
    }  # fmt: skip
    with lance_errors(f"searching {table.uri}"):
        found = table.dataset.to_table(columns=[key, "_distance"], nearest=nearest, fast_search=True).to_pylist()
    return any(row[key] == wanted or row["_distance"] <= SAME_DISTANCE for row in found)


def _sample(table: FencedTable, view: IndexView, column: str) -> Iterator[Row]:
    """Up to CANARIES rows that the index covers and that have a value in `column`; others for each version."""
    draw, key = random.Random(table.dataset.version), KEYS[table.kind]  # noqa: S311
    left = CANARIES
    for number in draw.sample(view.fragments, min(FRAGMENTS_TRIED, len(view.fragments))):
        with lance_errors(f"reading {table.uri}"):
            fragment = table.dataset.get_fragment(number)
            count = fragment.count_rows()
            rows = table.dataset.scanner(
                columns=[key, column, "fence"], fragments=[fragment],
                offset=draw.randrange(max(1, count - 1)), limit=8,
            ).to_table().to_pylist()  # fmt: skip
        for row in [row for row in rows if row["fence"] is None and row[column] is not None][:2]:
            yield row
            left -= 1
            if not left:
                return


def _defect(view: IndexView, error: Exception) -> str:
    text = str(error).lower()
    if isinstance(error, ValueError) or any(mark in text for mark in _BROKEN):
        return f"{view.name} can't be searched: {error}"[:300]
    raise error
