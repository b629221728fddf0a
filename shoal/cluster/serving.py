"""`shoal up`: run the service until Ctrl-C or SIGTERM, then stop it cleanly."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from shoal.cluster.exposure import open_buckets
from shoal.cluster.output import err, say
from shoal.cluster.runtime import Running, start
from shoal.settings import Settings

TURN_S = 0.5


class StopSignal:
    """Set by SIGINT or SIGTERM from `arm()` on; a second signal interrupts whatever is under way."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def arm(self) -> None:
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked.is_set():
            raise KeyboardInterrupt
        self._asked.set()

    def wait(self, running: Running) -> None:
        """Until asked to stop; what dies meanwhile is started again."""
        while not self._asked.wait(TURN_S):
            running.keep_up(say)


def begin(settings: Settings) -> Running:
    """Start everything, with its progress on stderr. SIGTERM interrupts it as Ctrl-C does: what runs is stopped."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with err.status("starting") as status:
        return start(settings, status.update)


def serve_until_stopped(settings: Settings) -> None:
    """Block until told to stop."""
    stop = StopSignal()
    running = begin(settings)
    try:
        describe(running)
        stop.arm()
        stop.wait(running)
    finally:
        end(running)


def describe(running: Running) -> None:
    """Where things are, on stderr: stdout is for data."""
    settings = running.settings
    broker = "embedded" if settings.is_embedded else settings.kafka_brokers
    say(f"Shoal is up after {running.started_s:.1f} s ({running.ingress}, {running.model}, broker {broker})")
    say(f"  REST   {running.url}/api/v1/scrapes/search?query=load+forecast")
    say(f"  page   {running.url}/ui")
    say(f"  docs   {running.url}/docs")
    say(f"  MCP    {running.url}/mcp      claude mcp add --transport http shoal {running.url}/mcp")
    say(f"  tables {settings.tables_uri}")
    if warning := open_buckets(settings):
        say(f"  Take care: {warning}")
    say("  Ctrl-C stops it")


def end(running: Running) -> None:
    # No spinner: it would keep what Ray prints while it ends, and show it afterwards.
    say("stopping: finishing what is in flight")
    running.stop()
    say("stopped")
