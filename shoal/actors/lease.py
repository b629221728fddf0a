"""The lease: a detached actor that nobody leads any more ends itself.

Actors outlive the supervisor on purpose, so that its successor adopts them. Where no successor comes (its
application was deleted, its process killed and nobody restarts it) they would read, write and cost money for ever.
Each `statistics()` call renews the lease; `LeaseKeeper` ends the process once it has run out. Ray does not restart
it (`max_restarts=0`, shoal.cluster.topology) and frees its name. Nothing is lost: what was in flight is delivered
again to whoever comes next.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

import ray

LOOKS_PER_LEASE = 20

log = logging.getLogger("shoal.lease")


class Lease:
    """How long somebody has said nothing. Pure; seconds of any monotonic clock. One renews, any may ask."""

    def __init__(self, lease_s: float, now: float) -> None:
        self.lease_s = lease_s
        self._renewed_at = now

    def renew(self, now: float) -> None:
        self._renewed_at = now

    def has_run_out(self, now: float) -> bool:
        return now - self._renewed_at >= self.lease_s


GAP_S = 5.0


class LeaseKeeper:
    """Ends this process when nobody has renewed for `lease_s`. A thread: no loop of the actor must be well for it."""

    def __init__(self, name: str, lease_s: float, end: Callable[[], None] | None = None) -> None:
        """Only an actor's own process is ever ended; `end` does something else instead, anywhere."""
        self._name, self._lease = name, Lease(lease_s, time.monotonic())
        self._end = end or _end_process
        if end is not None or _is_actor():
            threading.Thread(target=self._watch, name="lease", daemon=True).start()

    def renew(self) -> None:
        """Somebody leads."""
        self._lease.renew(time.monotonic())

    def _watch(self) -> None:
        pause = threading.Event()
        while not self._lease.has_run_out(time.monotonic()):
            began, wait_s = time.monotonic(), self._lease.lease_s / LOOKS_PER_LEASE
            pause.wait(wait_s)
            if time.monotonic() - began > wait_s + GAP_S:  # the machine or this process slept: so did who leads
                self.renew()
        log.warning("%s: nobody has asked for %g s: it ends itself", self._name, self._lease.lease_s)
        self._end()


def _is_actor() -> bool:
    return bool(ray.is_initialized()) and ray.get_runtime_context().get_actor_id() is not None


def _end_process() -> None:
    logging.shutdown()
    os._exit(0)
