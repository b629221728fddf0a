"""What indexes a version of a table has, from its manifest alone: no index is opened for it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shoal.store.index_policy import LANCE_TYPES, Kind
from shoal.store.tables import FencedTable, lance_errors

_KINDS = {name: kind for kind, name in LANCE_TYPES.items()}


def index_name(column: str) -> str:
    """lancedb's name of a column's index."""
    return f"{column}_idx"


@dataclass(frozen=True, slots=True)
class IndexView:
    """One index. `segments`: rows of the base and of each delta, counted from their fragments; `fragments`: what they
    cover; `indexed`: the same rows as Lance counts them; `rows`: the table's, the fence row among them; `details`: what
    a full-text index was made with, empty for a scalar one."""

    name: str
    sort: str
    segments: Sequence[int]
    fragments: Sequence[int]
    indexed: int
    rows: int
    size_bytes: int
    base: str  # the first segment's own name
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Kind | None:
        """Of a vector index that a setting may name."""
        return _KINDS.get(self.sort)

    @property
    def unindexed(self) -> int:
        return max(0, self.rows - sum(self.segments))


def views(table: FencedTable) -> dict[str, IndexView]:
    """Name -> index, of the held version. Raises TransientError."""
    with lance_errors(f"looking at the indexes of {table.uri}"):
        living = {fragment.fragment_id: int(fragment.count_rows()) for fragment in table.dataset.get_fragments()}
        return {index.name: _view(index, living) for index in table.dataset.describe_indices()}


def _view(index: Any, living: dict[int, int]) -> IndexView:
    covered = [[number for number in segment.fragment_ids or () if number in living] for segment in index.segments]
    return IndexView(
        name=index.name,
        sort=index.index_type,
        segments=tuple(sum(living[number] for number in numbers) for numbers in covered),
        fragments=tuple(number for numbers in covered for number in numbers),
        indexed=int(index.num_rows_indexed),
        rows=sum(living.values()),
        size_bytes=int(index.total_size_bytes or 0),
        base=str(index.segments[0].uuid) if index.segments else "",
        details=index.details if isinstance(index.details, Mapping) else {},
    )


def training_of(table: FencedTable, name: str) -> tuple[str, int]:
    """(name of the training, its partitions) of a vector index: merges and folds keep its centroids. Opens the
    index. Raises TransientError; ValueError where it can't be read."""
    with lance_errors(f"reading {name} of {table.uri}"):
        centroids = table.dataset.get_ivf_model(name).centroids
    return training_name(centroids), len(centroids)


def training_name(centroids: Any) -> str:
    """What a training is known by, whoever looks."""
    values = np.asarray(centroids.values if hasattr(centroids, "values") else centroids, np.float32)
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]
