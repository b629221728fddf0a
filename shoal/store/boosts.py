"""Boosts: what a document's metadata adds to how well its text matches. Pure; the time is an argument.

Guarantee: scores stay in 0..1, a better match or a larger boost never ranks lower, and with all weights 0 nothing
changes. score = match * (1 + sum(weight * value)) / (1 + sum(weight)): a document that has all of every boost keeps
its match, one that has none of them loses at most sum(weight) / (1 + sum(weight)) of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from shoal.store.filters import QueryError
from shoal.store.terms import share

WEIGHT_MAX = 10.0  # at 10 the boost decides alone: a match counts for an eleventh
DAY_S = 86_400.0
_TITLE_CHARS_MAX = 1_000  # what is looked at of one; publishers' titles are under 200, but may be anything


@dataclass(frozen=True, slots=True)
class Boosts:
    """Weights, 0 is off. `recency` halves every `half_life_s` since the document was collected; `title` is the share
    of the question's words in the title. `identifier`: a document whose id, urn, path or hash is the question itself
    comes first, with score 1."""

    recency: float = 0.0
    half_life_s: float = 30 * DAY_S
    title: float = 0.0
    identifier: bool = True

    @property
    def reorders(self) -> bool:
        return self.recency > 0 or self.title > 0

    def check(self) -> None:
        """Raises QueryError."""
        for name, weight in (("recency", self.recency), ("title", self.title)):
            if not 0.0 <= weight <= WEIGHT_MAX:
                raise QueryError(f"the boost {name} is {weight}; it must be 0 to {WEIGHT_MAX:g}")
        if not 1.0 <= self.half_life_s <= 1e10:
            raise QueryError("the half-life of the boost recency must be 1 second to some 300 years")


NO_BOOSTS = Boosts()
"""Only an exact identifier comes first."""


@dataclass(frozen=True, slots=True)
class Boosted:
    """`values`: by boost, what the document has of it (0..1) and its weight; for `explain`."""

    score: float
    values: Mapping[str, Mapping[str, float]]


def boosted(match: float, row: Mapping[str, Any], terms: tuple[str, ...], boosts: Boosts, now: datetime) -> Boosted:
    """`match` (0..1) of the document whose metadata is `row`, with its boosts."""
    values: dict[str, Mapping[str, float]] = {}
    if boosts.recency > 0:
        values["recency"] = {
            "value": recency(row.get("collected_at"), now, boosts.half_life_s),
            "weight": boosts.recency,
        }
    if boosts.title > 0:
        values["title"] = {"value": share((row.get("title") or "")[:_TITLE_CHARS_MAX], terms), "weight": boosts.title}
    total = sum(one["weight"] for one in values.values())
    has = sum(one["weight"] * one["value"] for one in values.values())
    return Boosted(min(1.0, match * (1.0 + has) / (1.0 + total)), values)


def recency(at: datetime | None, now: datetime, half_life_s: float) -> float:
    """1 for now (and the future), half of it every half-life before; 0 without a time."""
    if at is None:
        return 0.0
    return float(0.5 ** (max(0.0, (now - at).total_seconds()) / half_life_s))
