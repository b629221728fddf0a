"""Log lines that can be followed: each says which document, message or request it is about, as text or as JSON.

`about` sets it for the task that runs (an asyncio task, a Ray call, a request): every line that is logged below it has
these fields, without anybody passing them on. As JSON each line is one object for a log collector; secrets are taken
out of both, since errors of others may quote an address.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

from shoal.redaction import redact_text
from shoal.settings import Settings

_ABOUT: ContextVar[dict[str, Any]] = ContextVar("shoal_log_about", default={})  # noqa: B039 - never changed in place


@contextlib.contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Lines logged in this block, by this task, have these fields beside those around it. None is left out."""
    token = _ABOUT.set(_ABOUT.get() | {name: value for name, value in fields.items() if value is not None})
    try:
        yield
    finally:
        _ABOUT.reset(token)


class JsonLines(logging.Formatter):
    """One JSON object per line: at, level, logger, message, the fields of `about`, error."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": redact_text(record.getMessage()),
        }
        line |= _ABOUT.get()
        if record.exc_info:
            line["error"] = redact_text(self.formatException(record.exc_info))
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


class TextLines(logging.Formatter):
    """For people: the same fields behind the message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in _ABOUT.get().items())
        first, _, rest = redact_text(super().format(record)).partition("\n")
        line = f"{first} [{fields}]" if fields else first
        return f"{line}\n{rest}" if rest else line


def configure(settings: Settings) -> None:
    """Let `shoal.*` loggers write to stderr at the set level, in the set form. Safe to call again."""
    root = logging.getLogger("shoal")
    root.setLevel(settings.log_level)
    root.propagate = False  # Ray Serve and Ray's workers configure the root logger each in their own way
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(formatter(settings.log_format))
        root.addHandler(handler)


def formatter(form: Literal["text", "json"]) -> logging.Formatter:
    return JsonLines() if form == "json" else TextLines()
