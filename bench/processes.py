"""What a stack of processes uses: memory by role and CPU time, read from the operating system.

Memory is PSS (shared pages divided among those who share them), so that the sum over the stack is what it
really occupies; USS is what would be freed if the process ended. CPU time counts children that have ended, if
somebody of the stack waited for them. Linux only (PSS).
"""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

import psutil

MIB = 1024 * 1024
_RAY_TITLE = re.compile(r"^(ray::[^.(\s]+)")  # "ray::Writer.write" while it works


def role(command_line: Sequence[str]) -> str:
    """A process's part in the stack, from its command line."""
    first = command_line[0] if command_line else ""
    if match := _RAY_TITLE.match(first):
        return match.group(1)
    words = first.split() + list(command_line[1:])
    names = [PurePath(word).name for word in words]
    joined = " ".join(words)
    for mark, name in (
        ("shoal.cluster.embedded_broker", "embedded broker"),
        ("multiprocessing.resource_tracker", "resource tracker"),
        ("multiprocessing.spawn", "extraction child"),
        ("autoscaler/_private/monitor.py", "ray autoscaler monitor"),
        ("dashboard/dashboard.py", "ray dashboard"),
        ("_private/log_monitor.py", "ray log monitor"),
    ):
        if mark in joined:
            return name
    for name in ("raylet", "gcs_server", "haproxy"):
        if name in names[:1]:
            return name
    if "shoal" in names[:2] and "up" in names:
        return "shoal up"
    return names[0] if names and names[0] else "unnamed"


@dataclass(frozen=True, slots=True)
class Usage:
    """Memory of one role at one moment, in bytes."""

    processes: int = 0
    pss: int = 0
    uss: int = 0


Snapshot = dict[str, Usage]


@dataclass(slots=True)
class Peak:
    """The most of each: the moments need not be the same."""

    total_pss: int = 0
    by_role: dict[str, int] = field(default_factory=dict)


class Tree:
    """A root process and everything under it."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def processes(self) -> list[psutil.Process]:
        """The root and its living descendants; empty once the root has ended."""
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu_s(self) -> float:
        """CPU-seconds spent so far, by the living and by their children that have ended."""
        total = 0.0
        for process in self.processes():
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue  # ended meanwhile: its parent's children times have it
            total += times.user + times.system + times.children_user + times.children_system
        return total

    def cpu_by_role_s(self) -> dict[str, float]:
        """Likewise by role; what has ended counts for the role of its parent."""
        found: dict[str, float] = defaultdict(float)
        for process in self.processes():
            try:
                times, name = process.cpu_times(), role(process.cmdline())
            except psutil.Error:
                continue
            found[name] += times.user + times.system + times.children_user + times.children_system
        return dict(found)

    def memory(self) -> Snapshot:
        """Memory by role, now."""
        found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for process in self.processes():
            try:
                full = process.memory_full_info()
                found[role(process.cmdline())].append((full.pss, full.uss))
            except psutil.Error:
                continue  # ended meanwhile
        return {
            name: Usage(len(sizes), sum(pss for pss, _ in sizes), sum(uss for _, uss in sizes))
            for name, sizes in found.items()
        }


class MemoryWatch:
    """Samples a tree's memory in a thread of its own until it is closed. A context manager."""

    def __init__(self, tree: Tree, every_s: float = 1.0) -> None:
        self._tree, self._every_s = tree, every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self.peak = Peak()

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            snapshot = self._tree.memory()
            self.peak.total_pss = max(self.peak.total_pss, sum(usage.pss for usage in snapshot.values()))
            for name, usage in snapshot.items():
                self.peak.by_role[name] = max(self.peak.by_role.get(name, 0), usage.pss)
            if self._ended.wait(self._every_s):
                return
