"""Versions and times as text that sorts: the order of a document's versions (contracts 1.1).

Guarantee: for two versions that name times, the texts compare as the times do; any other version is its own
text; no version is '' and sorts first. Pure functions; what can't be parsed is None, never an error.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

_TIME = re.compile(
    r"(\d{4})-?(\d{2})-?(\d{2})"
    r"(?:[Tt_ ](\d{2}):?(\d{2})(?::?(\d{2})(?:[.,](\d{1,9}))?)?\s*(Z|z|[+-]\d{2}:?\d{2})?)?",
    re.ASCII,
)
# Outside of this a "time" is a counter or a typing error, and conversions to other zones may overflow.
_YEARS = range(1900, 2200)


def parse_time(text: str) -> datetime | None:
    """The aware UTC time that `text` names (compact or extended ISO 8601; without a zone: UTC), or None."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    if int(year) not in _YEARS:
        return None
    offset = "+00:00" if zone in (None, "Z", "z") else f"{zone[:3]}:{zone[-2:]}"
    micros = (fraction or "")[:6].ljust(6, "0")
    try:
        moment = datetime.fromisoformat(
            f"{year}-{month}-{day}T{hour or '00'}:{minute or '00'}:{second or '00'}.{micros}{offset}"
        )
        return moment.astimezone(UTC)
    except ValueError:
        return None


def compact(moment: datetime) -> str:
    """`20250120T143000Z`; with a part of a second `20250120T143000Z.250000`, which sorts after it, as it must."""
    moment = moment.astimezone(UTC)
    whole = moment.strftime("%Y%m%dT%H%M%SZ")
    return f"{whole}.{moment.microsecond:06d}" if moment.microsecond else whole


def comparable(version: str | None) -> str:
    """The text by which versions of one document are ordered."""
    text = (version or "").strip()
    moment = parse_time(text)
    return text if moment is None else compact(moment)
