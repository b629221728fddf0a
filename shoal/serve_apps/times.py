"""Times as callers write them: a date, or a time with or without a zone (UTC then)."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta


def time_bound(value: str, *, is_end: bool) -> tuple[datetime, bool]:
    """`value` as (bound in UTC, bound is exclusive). A date as end is the next midnight, exclusive: it
    includes that day. A '+' that a URL turned into a space is put back."""
    text = re.sub(r" (\d{2}:?\d{2})$", r"+\1", value.strip()) if "T" in value.upper() else value.strip()
    try:
        if ":" not in text and "T" not in text.upper():  # in any form of ISO 8601: 20250120 is that day too
            day = datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC)
            return (day + timedelta(days=1), True) if is_end else (day, False)
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC), False
    except (ValueError, OverflowError):
        raise ValueError("not a date (2025-01-20) or a time (2025-01-20T14:30:00Z)") from None
