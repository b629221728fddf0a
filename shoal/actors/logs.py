"""Logging of the actors: one format, to the process's stderr, which Ray keeps in its session's log directory."""

from __future__ import annotations

import logging
import sys

from shoal.settings import Settings


def configure_logging(settings: Settings) -> None:
    """Let `shoal.*` loggers write at the set level. Safe to call again."""
    root = logging.getLogger("shoal")
    root.setLevel(settings.log_level)
    root.propagate = False  # Ray Serve and Ray's workers configure the root logger each in their own way
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(handler)
