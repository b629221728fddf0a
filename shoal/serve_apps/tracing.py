"""W3C trace context: the caller's `traceparent` taken in, and the one of our part of its trace handed back.

No tracer is needed for it: whoever sent it finds our log lines by its trace id. What is no traceparent counts as none.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

# https://www.w3.org/TR/trace-context/#traceparent-header: of a later version than 00 what we know of it is read.
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.{0,200})?")


@dataclass(frozen=True, slots=True)
class Trace:
    """Our part of a caller's trace; ids in lower-case hex."""

    trace_id: str
    span_id: str
    flags: str

    @property
    def header(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


def of(header: str | None) -> Trace | None:
    """Of a span of ours that is recorded; None where nobody traces."""
    found = _PARENT.fullmatch(header or "")
    return Trace(found[2], found[3], found[4]) if found else None


def continued(traceparent: str | None) -> Trace | None:
    """A new span of the trace that the header names, or None where it names none."""
    found = _PARENT.fullmatch(traceparent or "")
    if found is None or found[1] == "ff" or (found[1] == "00" and found[5]):
        return None
    if not found[2].strip("0") or not found[3].strip("0"):
        return None
    return Trace(found[2], secrets.token_hex(8), found[4])
