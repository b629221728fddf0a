"""Stored text as an agent may read it: cut, and without characters that a person would not see.

Control, bidirectional and tag characters can hide instructions; names and texts lose them before anything is shown.
Pure.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

FIELD_CHARS_MAX = 300
"""A name, URL or path of a hit: real ones are shorter; what is longer is somebody's prank."""


def clean(text: str, chars_max: int) -> str:
    """`text` without characters that can't be seen, cut to `chars_max` with an ellipsis."""
    seen = "".join(
        c for c in text[: 2 * chars_max] if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs")
    )
    return seen if len(seen) <= chars_max else seen[: max(0, chars_max - 1)] + "…"


def pick(row: Mapping[str, Any], names: Iterable[str], longer: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The named fields of `row` that hold something: strings cleaned and cut (`longer`: other limits), times as
    RFC 3339."""
    limits = longer or {}
    picked: dict[str, Any] = {}
    for name in names:
        value = row.get(name)
        if isinstance(value, datetime):
            picked[name] = value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        elif isinstance(value, str):
            picked[name] = clean(value, limits.get(name, FIELD_CHARS_MAX))
        elif value not in (None, []):
            picked[name] = value
    return picked
