"""What a text is embedded for: how urgent it is, who pays for it, and what was paid.

Guarantee: plain records that cross processes; no rule about them stands here. `service` carries them, the lanes and
the ledger read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Lane = Literal["query", "live", "backfill"]
"""In the order they are served: somebody waits; a scraper has announced it; it is history that is read again."""


@dataclass(frozen=True, slots=True)
class Purpose:
    """Whom a text is embedded for. Empty names mean nobody in particular (a command's own text, a warm-up)."""

    lane: Lane = "live"
    collection: str = ""
    data_source: str = ""
    dataset: str = ""


@dataclass(frozen=True, slots=True)
class Charge:
    """A part of one request that was sent to a model, successful or not: what one purpose had in it.

    The tokens of all charges of a request add up to the request's; `requests` is 1 in the first of them, 0 in the rest.
    """

    model: str
    purpose: Purpose
    requests: int
    texts: int
    tokens: int
    has_failed: bool = False
    is_batch: bool = False
    """Went through the provider's Batch API, at its price."""
