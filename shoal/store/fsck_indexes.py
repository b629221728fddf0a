"""The check of a table's indexes: those that the code expects, their files, and whether they hold what they claim.

An index that claims rows it does not hold makes searches lose them, silently. The key's index is asked for every
row. The full-text and the vector index tell how many entries they have, deleted rows among them, so that a few that
lack don't show; so they are asked for rows that are known to be there, too: the first and the last of each batch that
was read, which is at least one of every fragment (indexes claim whole fragments). Of the others, presence only.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from shoal.errors import TransientError
from shoal.records import Vector
from shoal.store.fsck import Code, Findings, Severity, Subject
from shoal.store.fsck_scan import Held
from shoal.store.index_keeping import FTS
from shoal.store.index_views import index_name
from shoal.store.maintenance import AT_ONCE, BTREE, LATER, SCALAR_ROWS_MIN
from shoal.store.orphans import fileless_indexes
from shoal.store.schemas import KEYS, VECTOR_COLUMNS
from shoal.store.tables import in_list, lance_errors
from shoal.store.verification import canary_word

SAMPLES_MAX = 200
"""Rows kept to ask the indexes for, the newest of the table: some milliseconds each."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A row that is there: its key, a word of its text that its index must hold, and its vector where it has them."""

    key: str
    word: str | None
    vector: Vector | None


@dataclass(slots=True)
class Samples:
    """The rows of one table to ask its indexes for."""

    held: Held
    rows: deque[Sample] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))

    def take(self, batch: pa.RecordBatch) -> None:
        """The first and the last row of the batch that is no fence."""
        keys, fences = batch.column(KEYS[self.held.kind]), batch.column("fence")
        places: list[int] = np.flatnonzero(fences.is_null().to_numpy(zero_copy_only=False)).tolist()
        text = next((each for each, sort in AT_ONCE[self.held.kind].items() if sort == FTS), None)
        vector = VECTOR_COLUMNS[self.held.kind]
        for at in dict.fromkeys([*places[:1], *places[-1:]]):
            word = canary_word(batch.column(text)[at].as_py() or "") if text else None
            values: Any = batch.column(vector)[at].as_py() if vector in batch.schema.names else None
            usable = values is not None and bool(np.all(np.isfinite(values))) and bool(np.any(values))
            self.rows.append(
                Sample(
                    keys[at].as_py(), word, np.asarray(values, np.float32) if usable else None,
                )
            )  # fmt: skip


def check_indexes(
    held: Held, findings: Findings, rows: int, nulls: int, samples: Samples, index_rows_min: int | None,
    *, is_whole: bool,
) -> None:  # fmt: skip
    """`rows`: of the table, as they were read, with the fence; `nulls`: those without a vector; `index_rows_min`: None
    where no vector index is wanted; `is_whole`: all of them could be read. Raises TransientError."""
    gone = set(fileless_indexes(held))
    for name in sorted(gone):
        findings.add(Code.INDEX_WITHOUT_FILES, held.name, Subject(name, "its files are gone"))
    with lance_errors(f"looking at the indexes of {held.uri}"):
        names = {str(index.name) for index in held.dataset.describe_indices()}
    for column in AT_ONCE[held.kind]:
        if index_name(column) not in names:
            detail = "no index: the writer makes it when it opens the tables"
            findings.add(Code.INDEX_MISSING, held.name, Subject(index_name(column), detail))
    later = list(LATER[held.kind]) if rows >= SCALAR_ROWS_MIN else []
    vector = VECTOR_COLUMNS[held.kind]
    if held.kind != "fixes" and vector and index_rows_min is not None and rows - nulls >= index_rows_min:
        later.append(vector)
    for column in later:
        if index_name(column) not in names:
            detail = "no index: the writer makes it when it next compacts; searches are slower till then"
            subject = Subject(index_name(column), detail)
            findings.add(Code.INDEX_MISSING, held.name, subject, severity=Severity.WARNING)
    for name in sorted(names - gone) if is_whole else ():
        if detail_of := _incomplete(held, name, rows, nulls, samples):
            findings.add(Code.INDEX_INCOMPLETE, held.name, Subject(name, detail_of))


def _incomplete(held: Held, name: str, rows: int, nulls: int, samples: Samples) -> str | None:
    """What an index leaves out of what it claims; None where it is whole as far as it can be told."""
    column = name.removesuffix("_idx")
    sort = AT_ONCE[held.kind].get(column)
    try:
        with lance_errors(f"looking at {name} of {held.uri}"):
            stats = held.dataset.stats.index_stats(name)
            indexed, rest = int(stats["num_indexed_rows"]), int(stats["num_unindexed_rows"])
            if indexed + rest != rows:
                return f"{indexed} rows indexed and {rest} not, of {rows}"
            if sort == BTREE and column == KEYS[held.kind]:
                found = int(held.dataset.count_rows(f"{column} >= ''"))
                return f"finds {found} rows of {rows}" if found != rows else None
            if sort == FTS:
                entries = sum(int(part["num_docs"]) for part in stats["indices"])
                entries += int(held.dataset.count_rows(f"{column} IS NULL"))
                lost = [each for each in samples.rows if each.word and not _by_word(held, column, each)]
            elif column == VECTOR_COLUMNS[held.kind]:
                parts = [part["partitions"] for part in stats["indices"] if "partitions" in part]
                entries = nulls + sum(int(each["size"]) for part in parts for each in part) if parts else indexed
                lost = [each for each in samples.rows if each.vector is not None and not _by_vector(held, column, each)]
            else:
                return None
    except (TransientError, ValueError, TypeError, KeyError) as error:
        return f"can't be read: {' '.join(str(error).split())[:200]}"
    if entries < indexed:
        return f"holds entries for {entries} of {indexed} rows"
    return f"does not find {len(lost)} rows of {len(samples.rows)}: {lost[0].key}" if lost else None


def _by_word(held: Held, column: str, sample: Sample) -> bool:
    asked = {"columns": [column], "query": sample.word}
    return _finds(held, sample, full_text_query=asked)


def _by_vector(held: Held, column: str, sample: Sample) -> bool:
    # Every partition is looked into: that the row is in the index is asked, not whether a search would be lucky.
    nearest = {"column": column, "q": sample.vector, "k": 1, "metric": "cosine", "minimum_nprobes": 2**20}
    return _finds(held, sample, nearest=nearest)


def _finds(held: Held, sample: Sample, **asked: Any) -> bool:
    key = KEYS[held.kind]
    scanner: Any = held.dataset.scanner(
        columns=[key], filter=in_list(key, [sample.key]), prefilter=True, disable_scoring_autoprojection=True, **asked
    )
    return int(scanner.to_table().num_rows) > 0
