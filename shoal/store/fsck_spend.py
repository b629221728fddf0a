"""What may be wrong with a row of the ledger by itself. Pure: a stored row in, words out.

The writer joins what is told with what a row holds, so a row that can't be read refuses every later telling of its
key, and one whose sums are not its books' tells other money than was spent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

import orjson

from shoal.spending import COUNT_NAMES, KEY_NAMES, Counts, SpendKey, read_entry


def spend_fault(row: Mapping[str, Any]) -> str | None:
    """Why `row` can't be so; None where it can. `row`: the columns of `shoal_spend`, but for the fence row."""
    try:
        key, counts = read_entry(row)
    except ValueError as error:
        return str(error)
    if row.get("key") != SpendKey(*(row[name] for name in KEY_NAMES)).text:
        return f"its key is not that of {key.text}"
    if counts.failed_requests > counts.requests or counts.failed_tokens > counts.tokens:
        return "more has failed than was sent"
    try:
        told = orjson.loads(row.get("books") or "")
        books = [dict(zip(COUNT_NAMES, book, strict=True)) for book in told.values()]
        names = {name: row[name] for name in KEY_NAMES}
        total = sum((read_entry(names | book)[1] for book in books), Counts())
    except (ValueError, TypeError, AttributeError) as error:
        return f"its books can't be read: {str(error)[:100]}"
    if total != counts:
        return f"its books sum up to {astuple(total)}, it says {astuple(counts)} ({', '.join(COUNT_NAMES)})"
    return None
