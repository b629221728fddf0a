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


FOLLOW = """
import asyncio, os, sys
from types import SimpleNamespace
from shoal.cluster import supervisor
from shoal.settings import load
from shoal.sources.kafka import Connection

async def follow():
    used = SimpleNamespace(facts=SimpleNamespace(model="hash:16", width=16))
    supervisor.current_generation = lambda _: used
    settings = load(data_dir=sys.argv[1], kafka_brokers="127.0.0.1:1")
    for previous in ({"model": "hash:16", "changing_model": None}, {"model": "hash:8", "changing_model": None},
                     {"model": "hash:16", "changing_model": {"to": "hash:16"}}):
        supervising = supervisor.Supervisor(settings, Connection("127.0.0.1:1", "c"), "hash:8", 8, "proxy", "life-1")
        supervising._previous = previous
        await supervising._follow()
        print(supervising._model, supervising._width, flush=True)
    os._exit(0)

asyncio.run(follow())
"""


def test_a_supervisor_adopts_the_crew_of_another_model_where_the_one_before_it_had_made_all_of_it(
    tmp_path: Path,
) -> None:
    """1. The collection had moved and the crew was whole; 2. it moves now; 3. the crew was still being exchanged."""
    done = subprocess.run([sys.executable, "-c", FOLLOW, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["hash:16 16", "hash:8 8", "hash:8 8"], done.stderr
