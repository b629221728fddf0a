"""The processes that a campaign may kill: those below what it started itself, told apart by their titles.

Ray gives each worker the name of its actor as its title. Nothing that isn't a descendant of one of `roots` is ever
looked at, so a campaign can't hurt another Shoal on the machine.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

TITLES = {
    "reader": "ray::Reader",
    "fetcher": "ray::Fetcher",
    "embedder": "ray::Embedder",
    "writer": "ray::Writer",
    "supervisor": "ray::ServeReplica:ingest:Supervisor",
    "rest": "ray::ServeReplica:rest:Rest",
    "mcp": "ray::ServeReplica:mcp:Mcp",
    "query_embedder": "ray::ServeReplica:rest:QueryEmbedder",
    "controller": "ray::ServeController",
}
CHILD = "multiprocessing.spawn"
HOST = "shoal.cluster.hosting"  # the process of `shoal up` that drives Ray


@dataclass(frozen=True, slots=True)
class Victim:
    """`name` is what the status calls it, where it does."""

    role: str
    pid: int
    name: str = ""
    born: float = 0.0  # of `time.time()`: pids come again within an hour of kills

    @property
    def target(self) -> str:
        return self.name or f"{self.role}:{self.pid}"

    def send(self, number: signal.Signals) -> bool:
        """Whether it was still there."""
        try:
            psutil.Process(self.pid).send_signal(number)
        except psutil.Error:
            return False
        return True


def living(roots: Iterable[int]) -> dict[str, list[Victim]]:
    """Role -> its processes. `raylet` and `gcs` are those of the roots in their order: the head's come first."""
    found: dict[str, list[Victim]] = {}
    for root in roots:
        try:
            below = psutil.Process(root).children(recursive=True)
        except psutil.Error:
            continue
        fetchers = set()
        for process in below:
            try:
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                words = process.cmdline()
                name, parent, born = process.name(), process.ppid(), process.create_time()
            except psutil.Error:
                continue
            role = "host" if HOST in words else _role(words[0].strip() if words else "", name)
            if role == "fetcher":
                fetchers.add(process.pid)
            elif role is None and parent in fetchers and any(CHILD in word for word in words):
                role = "extraction"
            if role is not None:
                found.setdefault(role, []).append(Victim(role, process.pid, born=born))
    return found


def _role(title: str, name: str) -> str | None:
    if name == "haproxy":
        return "haproxy"
    if name == "raylet":
        return "raylet"
    if name == "gcs_server":
        return "gcs"
    for role, wanted in TITLES.items():
        if title == wanted or title.startswith(wanted + "."):
            return role
    return None
