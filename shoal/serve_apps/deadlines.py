"""How long the request that is being answered may still take: set by the frame, asked by whoever waits.

A caller says it in `X-Request-Timeout` (seconds); without, the setting `request_timeout_s` holds. The frame ends the
request then; what asks here before it waits can give up earlier and still answer, only with less.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

HEADER = "x-request-timeout"
TIMEOUT_S_MIN, TIMEOUT_S_MAX = 0.01, 300.0
"""What a caller may ask for: a slow upload takes minutes; below the least nothing can be answered."""

_ends_at: ContextVar[float | None] = ContextVar("request_ends_at", default=None)


def asked_s(header: str | None, default_s: float) -> float:
    """The seconds that the header asks for. Raises ValueError where it is no such number."""
    if header is None or not header.strip():
        return default_s
    value = float(header) if len(header) <= 20 else math.nan
    if not TIMEOUT_S_MIN <= value <= TIMEOUT_S_MAX:
        raise ValueError
    return value


@contextmanager
def running(timeout_s: float) -> Iterator[None]:
    """The request that is answered within ends in `timeout_s`."""
    token = _ends_at.set(time.monotonic() + timeout_s)
    try:
        yield
    finally:
        _ends_at.reset(token)


def left_s() -> float:
    """Seconds until the request that is being answered ends; infinite outside of one."""
    ends_at = _ends_at.get()
    return math.inf if ends_at is None else max(0.0, ends_at - time.monotonic())
