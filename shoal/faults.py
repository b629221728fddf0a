"""Named points at which a campaign may end this process: nothing happens unless it was asked for.

`make chaos` kills processes at random moments and at the moments that matter most: between two commits, before an
ack, in a compaction. The code names such a moment with `reach("writer.after_chunks")`. Without the variable
SHOAL_FAULT_DIR that is one comparison. With it, a file `{directory}/{point}` arms the point: the first process to
get there claims the file and ends with SIGKILL, so that no handler, flush or `finally` of ours softens it.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

DIRECTORY_VARIABLE = "SHOAL_FAULT_DIR"
RARE = (
    "writer.folding",
    "writer.answering",
    "writer.repairing",
    "writer.migrating",
    "writer.migrated",
    "writer.purging",
    "writer.purged",
    "writer.scrubbing",
    "build.made",
    "recall.measured",
    "state.writing",
)
"""Those of upkeep that comes seldom, or only where it is asked for: armed in a running service, they would wait there.
tests/parts/test_upkeep_killed.py reaches each."""
POINTS = (
    "writer.opening",
    "writer.before_chunks",
    "writer.after_chunks",
    "writer.before_metadata",
    "writer.after_metadata",
    "writer.before_ack",
    "writer.compacting",
    "writer.indexing",
    "writer.cleaning",
    "writer.snapshotting",
    "writer.expiring",
    "reader.before_commit",
    "reader.after_commit",
    "reader.before_dead_letter",
    "reader.after_dead_letter",
    "fetcher.after_download",
    "embedder.after_call",
    *RARE,
)
"""What a campaign arms; with those below, every point there is: a test holds them against the code."""
MIGRATION_POINTS = (
    "mirror.before_chunks",
    "mirror.after_chunks",
    "mirror.after_metadata",
    "handover.before",
    "handover.after",
    "migration.after_call",
    "migration.holding",
    "migration.dropping",
)
"""In a change of the model, which no campaign makes."""

_directory = os.environ.get(DIRECTORY_VARIABLE)


def reach(point: str) -> None:
    """This process is at `point`; if that is armed, it ends here, or so many milliseconds from here as the file
    says (then the work goes on meanwhile, and is hit in its middle)."""
    if _directory is None:
        return
    armed = Path(_directory) / point
    taken = armed.with_name(f"{point}.taken-{os.getpid()}")
    try:
        armed.rename(taken)  # of several processes that get here, one wins
    except OSError:
        return
    delay_ms = float(taken.read_text() or 0)
    if delay_ms > 0:
        timer = threading.Timer(delay_ms / 1000, _end)
        timer.daemon = True
        timer.start()
    else:
        _end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
