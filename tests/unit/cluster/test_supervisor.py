"""The supervisor tells the truth also when it has nothing to supervise, and drains without a crew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from shoal.settings import load
from shoal.store.state_files import read_state

# In a process of its own: importing Ray Serve leaves loops and warnings behind in whoever does it.
TURN = """
import asyncio, dataclasses, os, sys
from shoal.cluster import supervisor
from shoal.settings import load
from shoal.sources.kafka import Connection

def refuse(_):
    raise RuntimeError("no node has room")

async def turn():
    made = supervisor.posts
    supervisor.posts = lambda *given: [dataclasses.replace(post, create=refuse) for post in made(*given)]
    place = Connection("127.0.0.1:1", "c")
    settings = load(data_dir=sys.argv[1], kafka_brokers="127.0.0.1:1")
    supervising = supervisor.Supervisor(settings, place, "hash:8", 8, "proxy", "life-1")
    await supervising._guarded("turn", supervising._turn)
    await supervising.drain(1.0, "asked")
    await supervising._guarded("status", supervising._report)
    os._exit(0)

asyncio.run(turn())
"""


def test_a_crew_that_can_not_be_made_is_told_in_the_status(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", TURN, str(tmp_path)], capture_output=True, text=True, timeout=60)
    status = read_state(load(data_dir=tmp_path), "status.json")
    assert status is not None, done.stderr
    assert status["health"] != "ok"
    assert status["problems"]["writer create"] == "RuntimeError: no node has room"
    assert status["actors"]["writer"]["state"] == "crash loop"
    assert status["life"] == "life-1"
    assert status["drain"] == {"id": "asked", "state": "drained", "left": {}}
