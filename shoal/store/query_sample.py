"""A sample of recent questions, as vectors: what recall is measured with.

Pure. Each search replica keeps the newest distinct vectors of its unfiltered searches and writes them beside the
tables (query_recorder.py); whoever measures gathers those of all replicas. No text, filter or caller is kept. A vector
still tells something of its question, so the files are as private as the tables that they lie beside.
"""

from __future__ import annotations

import base64
import binascii
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from itertools import zip_longest
from typing import Any

import numpy as np

from shoal.records import Vector

FILE_PREFIX = "queries-"
"""State files of samples are named `queries-{replica}.json`."""
KEPT_MAX = 256
"""Vectors in one file that are read at all: the bound of the setting. 1 MB of base64 at 1536 numbers each."""
AGE_MAX = timedelta(days=1)
"""Older samples count for nothing: the replica is gone, or nobody has asked it anything since."""


class QuerySample:
    """The newest `size` distinct vectors; the one that was not asked for longest gives way."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[bytes, None] = OrderedDict()  # float16: half the bytes, and recall can't tell

    def __len__(self) -> int:
        return len(self._kept)

    def note(self, vector: Vector) -> bool:
        """Take a question in; whether the sample has changed."""
        if self._size == 0:
            return False
        with np.errstate(over="ignore", under="ignore"):
            kept = vector.astype("<f2")
        if not np.isfinite(kept).all() or not kept.any():
            return False
        key = kept.tobytes()
        known = key in self._kept
        self._kept[key] = None
        self._kept.move_to_end(key)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return not known

    def to_json(self, now: datetime, width: int) -> dict[str, Any]:
        """What the file holds: the newest first."""
        vectors = [base64.b64encode(key).decode() for key in reversed(self._kept)]
        return {"at": now.isoformat(), "width": width, "vectors": vectors}


def written_at(value: Any) -> datetime | None:
    """When a file was written; None where it does not say so soundly."""
    try:
        at = datetime.fromisoformat(value["at"])
    except (KeyError, TypeError, ValueError):
        return None
    return at if at.tzinfo else None


def is_stale(value: Any, now: datetime) -> bool:
    """Whether a file counts for nothing any more, or never did: it may be removed."""
    at = written_at(value)
    return at is None or not -AGE_MAX <= now - at <= AGE_MAX


def vectors_of(value: Any, width: int, now: datetime) -> list[Vector]:
    """The vectors of one file, newest first; [] where it is stale, damaged or of another width. What is wrong with
    one vector costs only that one."""
    if not isinstance(value, Mapping) or value.get("width") != width or is_stale(value, now):
        return []
    listed = value.get("vectors")
    found = []
    for text in listed[:KEPT_MAX] if isinstance(listed, list) else []:
        try:
            raw = base64.b64decode(text, validate=True)
        except (TypeError, ValueError, binascii.Error):
            continue
        if len(raw) != 2 * width:
            continue
        vector = np.frombuffer(raw, "<f2").astype(np.float32)
        if np.isfinite(vector).all() and vector.any():
            found.append(vector)
    return found


def gathered(samples: Iterable[list[Vector]], size: int) -> list[Vector]:
    """At most `size` distinct vectors, each sample's newest before any sample's second."""
    seen: dict[bytes, Vector] = {}
    for turn in zip_longest(*samples):
        for vector in turn:
            if vector is not None and len(seen) < size:
                seen.setdefault(vector.tobytes(), vector)
    return list(seen.values())
