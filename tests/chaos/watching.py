"""Whether what was killed is back: the processes, the status, and what REST and MCP answer, looked at all the time."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import datetime
from typing import Any

import httpx

from tests.chaos.places import Place
from tests.chaos.recovery import Kill
from tests.chaos.victims import Victim, living

LOOK_S = 0.5
ASK_S = 0.5
ANSWER_S = 4.0
ENDING_S = 30.0  # a process that was killed, or stopped and then killed, is gone by then, and its pid may come again
CREW = {"reader": 2, "fetcher": 2, "embedder": 1, "writer": 1}
TOOLS = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}


class Watch:
    """Times are seconds of `time.time()`, since the status speaks of those."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.processes: dict[str, list[Victim]] = {}
        self.status: dict[str, Any] = {}
        self._killed: dict[int, float] = {}  # pid -> when
        self._answered: dict[str, float] = {}  # what -> when the last request that was answered well was sent
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._looking, daemon=True)] + [
            threading.Thread(target=self._asking, args=(what,), daemon=True) for what in ("rest", "ready", "mcp")
        ]

    def start(self) -> None:
        self._look()
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(10)

    def killed(self, pid: int) -> bool:
        """Note that this process is dead to us; False if it was already."""
        now = time.time()
        is_news = now - self._killed.get(pid, 0.0) > ENDING_S
        self._killed[pid] = now
        return is_news

    def is_there(self, pid: int) -> bool:
        """Whether the process itself is there, be it stopped."""
        return any(victim.pid == pid for victims in self.processes.values() for victim in victims)

    def revived(self, pid: int) -> None:
        """A process that was stopped goes on."""
        self._killed.pop(pid, None)

    def _is_dead(self, victim: Victim) -> bool:
        return victim.born <= self._killed.get(victim.pid, 0.0)

    def living(self, role: str) -> list[Victim]:
        """Those that were not killed yet, by the name that the status gives them."""
        names = {int(entry["pid"]): str(entry["name"]) for role in CREW for entry in self._entries(role)}
        return [
            replace(victim, name=names.get(victim.pid, role if role in ("embedder", "writer") else ""))
            for victim in self.processes.get(role, [])
            if not self._is_dead(victim)
        ]

    def partition_of(self, reader_pid: int) -> int | None:
        """A partition of the notifications' topic that this reader has."""
        for entry in self._entries("reader"):
            if entry["pid"] == reader_pid:
                for partition in entry["partitions"]:
                    if partition["topic"] == "scrapes":
                        return int(partition["partition"])
        return None

    def is_back(self, kill: Kill) -> bool:
        """Whether the role of `kill` does its work again."""
        role = kill.role
        if role in CREW:
            return self._reports(role, kill)
        if role == "extraction":
            return self._reports("fetcher", kill)
        if role == "supervisor":
            return self._reported_at() > kill.at and self._started_at() > kill.at
        if role in ("rest", "controller", "haproxy"):
            return bool(self.living(role)) and self._answers("rest", kill)
        if role == "mcp":
            return bool(self.living(role)) and self._answers("mcp", kill)
        if role == "query_embedder":
            return bool(self.living(role)) and self._answers("ready", kill)
        if role in ("node", "head"):
            crew = all(self._reports(part, kill) for part in CREW)
            return crew and self._answers("rest", kill) and self._answers("mcp", kill)
        return True  # servers and connections: the campaign itself brings them back; the probe tells

    def answered_since(self, moment: float) -> bool:
        """Whether REST has answered well since."""
        return self._answered.get("rest", 0.0) > moment

    def _reports(self, role: str, kill: Kill) -> bool:
        entries = self._entries(role)
        if self._reported_at() <= kill.at or len(entries) < CREW[role]:
            return False
        if role == "writer" and (entries[0].get("ended") or not entries[0].get("epoch")):
            return False
        living = {victim.pid for victim in self.processes.get(role, []) if not self._is_dead(victim)}
        return all(int(entry["pid"]) in living for entry in entries)

    def _entries(self, role: str) -> list[dict[str, Any]]:
        found = self.status.get(role + "s") if CREW[role] > 1 else self.status.get(role)
        if isinstance(found, dict):
            return [{"name": role, **found}]
        return list(found or [])

    def _reported_at(self) -> float:
        at = self.status.get("at")
        return datetime.fromisoformat(at).timestamp() if at else 0.0

    def _started_at(self) -> float:
        at = self.status.get("started_at")
        return datetime.fromisoformat(at).timestamp() if at else 0.0

    def _answers(self, what: str, kill: Kill) -> bool:
        return self._answered.get(what, 0.0) > kill.at

    def _looking(self) -> None:
        while not self._ending.wait(LOOK_S):
            self._look()

    def _look(self) -> None:
        self.processes = living(self._place.roots)
        self.status = self._place.status() or self.status

    def _asking(self, what: str) -> None:
        with httpx.Client(timeout=ANSWER_S) as client:
            while not self._ending.wait(ASK_S):
                began = time.time()
                try:
                    if self._ask(client, what):
                        self._answered[what] = began
                except (httpx.HTTPError, ValueError):
                    pass

    def _ask(self, client: httpx.Client, what: str) -> bool:
        url = self._place.stack.url
        # A new connection each time: a kept one would tell of one replica only.
        headers = {"Connection": "close"}
        if what == "mcp":
            headers |= {"Accept": "application/json, text/event-stream"}
            return client.post(f"{url}/mcp", json=TOOLS, headers=headers).status_code == 200
        answer = client.get(f"{url}/readyz", headers=headers)
        return answer.status_code == 200 and (what == "rest" or answer.json().get("status") == "ready")
