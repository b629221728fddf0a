"""The supervisor tells the truth also when it has nothing to supervise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from shoal.settings import load
from shoal.store.state_files import read_state

# In a process of its own: importing Ray Serve leaves loops and warnings behind in whoever does it.
TURN = """
import asyncio, os, sys
from shoal.cluster import supervisor
from shoal.settings import load
from shoal.sources.kafka import Connection

def refuse(*_):
    raise RuntimeError("no node has room")

async def turn():
    supervisor.ensure_crew = refuse
    place = Connection("127.0.0.1:1", "c")
    supervising = supervisor.Supervisor(load(data_dir=sys.argv[1]), place, "hash:8", 8, "proxy")
    await supervising._guarded("start", supervising._start)
    await supervising._guarded("status", supervising._report)
    os._exit(0)

asyncio.run(turn())
"""


def test_a_crew_that_can_not_be_made_is_told_in_the_status(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", TURN, str(tmp_path)], capture_output=True, text=True, timeout=60)
    status = read_state(load(data_dir=tmp_path), "status.json")
    assert status is not None, done.stderr
    assert status["health"] == "degraded"
    assert status["problems"] == {"supervisor start": "RuntimeError: no node has room"}
