"""Logging and tracing of the actors: to the process's stderr, which Ray keeps in its session's log directory."""

from __future__ import annotations

from shoal import log_format, tracing
from shoal.settings import Settings


def configure_logging(settings: Settings) -> None:
    """Let `shoal.*` loggers write at the set level, and trace where that is set. Safe to call again."""
    log_format.configure(settings)
    tracing.configure(settings, "shoal-ingest")
