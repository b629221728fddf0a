"""`shoal status --watch`: the status again and again until Ctrl-C.

On a terminal it is one view that changes in place; elsewhere a block per interval, or with `-o json` a line. It
outlives the service: while that is away it says since when, shows what was last known, and goes on. The service's
refusals (a wrong URL, no access) end it, since no waiting mends them.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from shoal.client.client import RefusedError
from shoal.cluster.output import Exit, Format, out
from shoal.cluster.status_view import render, span
from shoal.errors import TransientError

INTERVAL_S = 2.0  # as often as the supervisor writes; below that nothing new is seen
INTERVAL_S_MIN = 0.5

Answer = Mapping[str, Any]


class Watch:
    """What is known from one look to the next."""

    def __init__(self) -> None:
        self.is_over = False
        self.last: Answer | None = None
        self.away_since: datetime | None = None
        self.error = ""

    def look(self, ask: Callable[[], Answer], now: datetime) -> None:
        """Asks once. Raises PermanentError where the service refuses."""
        try:
            self.last = ask()
            self.away_since = None
        except TransientError as error:
            self._away(error, now)
        except RefusedError as error:
            if error.status < 500:
                raise
            self._away(error, now)

    def _away(self, error: Exception, now: datetime) -> None:
        self.away_since = self.away_since or now
        self.error = str(error)

    def view(self, now: datetime) -> RenderableType:
        """As a person sees it."""
        if self.away_since is None:
            assert self.last is not None
            return render(self.last)
        since = f"{self.away_since:%Y-%m-%d %H:%M:%S} UTC ({span((now - self.away_since).total_seconds())})"
        parts: list[RenderableType] = [Text(f"UNREACHABLE since {since}", style="bold red"), Text(self.error)]
        if self.last is not None:
            parts += [Text("\nlast known:", style="dim"), render(self.last)]
        return Group(*parts)

    def line(self, now: datetime) -> Answer:
        """As a program reads it."""
        if self.away_since is None:
            assert self.last is not None
            return self.last
        return {"health": "unreachable", "at": now, "since": self.away_since, "error": self.error}


def watch(
    ask: Callable[[], Answer],
    interval_s: float,
    form: Format,
    *,
    console: Console = out,
    pause: Callable[[float], None] = time.sleep,
) -> int:
    """Until Ctrl-C (which is how one ends it: exit code 0) or until nobody reads stdout any more."""
    watching = Watch()

    def interrupt(*_: Any) -> None:
        watching.is_over = True  # the interpreter drops an exception that is raised in a destructor or a callback
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        if form is Format.json:
            for now in _turns(watching, ask, interval_s, pause):
                sys.stdout.write(orjson.dumps(watching.line(now), default=str).decode() + "\n")
                sys.stdout.flush()
        elif not console.is_terminal:
            for now in _turns(watching, ask, interval_s, pause):
                # Not printed by the console itself: it answers a closed pipe with exit code 1.
                with console.capture() as block:
                    console.print(Text(f"--- {now:%Y-%m-%d %H:%M:%S} UTC"), watching.view(now), sep="\n")
                console.file.write(block.get())
                console.file.flush()
        else:
            _on_terminal(watching, ask, interval_s, console, pause)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # `| head`: whoever read has gone; the interpreter must not flush into that
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        signal.signal(signal.SIGINT, before)
    return Exit.OK


def _on_terminal(
    watching: Watch, ask: Callable[[], Answer], interval_s: float, console: Console, pause: Callable[[float], None]
) -> None:
    try:
        with Live(console=console, auto_refresh=False, screen=True, vertical_overflow="crop") as live:
            for now in _turns(watching, ask, interval_s, pause):
                live.update(watching.view(now), refresh=True)
    finally:  # the view vanishes with its screen: leave the last one behind
        if watching.last is not None or watching.away_since is not None:
            console.print(watching.view(datetime.now(UTC)))


def _turns(watching: Watch, ask: Callable[[], Answer], interval_s: float, pause: Callable[[float], None]) -> Any:
    while not watching.is_over:
        began = time.monotonic()
        watching.look(ask, datetime.now(UTC))
        yield datetime.now(UTC)
        pause(max(0.0, interval_s - (time.monotonic() - began)))
