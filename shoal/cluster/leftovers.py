"""Leftovers: what a hard-killed service of ours leaves behind on this machine, and would block the next start.

Ray's own processes notice that their parent is gone; HAProxy does not, and keeps the port. Only a HAProxy that
runs from this stack's own directory (this user, this port) and whose Ray is dead is ended.
"""

from __future__ import annotations

from contextlib import suppress

import psutil

from shoal.cluster.ray_environment import haproxy_directory
from shoal.settings import Settings

END_S = 5.0


def end_leftovers(settings: Settings) -> int:
    """How many orphaned processes were ended."""
    directory = str(haproxy_directory(settings)) + "/"
    orphans = [process for process in psutil.process_iter(["name", "cmdline"]) if _is_orphan(process, directory)]
    for process in orphans:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(orphans, timeout=END_S)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return len(orphans)


def _is_ours(process: psutil.Process) -> bool:
    return process.pid > 1 and not process.name().startswith(("ray::", "raylet", "haproxy"))


def _is_orphan(process: psutil.Process, directory: str) -> bool:
    try:
        if process.info["name"] != "haproxy" or not any(
            part.startswith(directory) for part in process.info["cmdline"] or ()
        ):
            return False
        # Of a running service: haproxy < ray::HAProxyManager < raylet < the `shoal` that started it.
        return not any(_is_ours(ancestor) for ancestor in process.parents())
    except psutil.Error:
        return False
