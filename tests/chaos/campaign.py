"""The campaign: kills come every few seconds while messages flow; at the end the tables must hold what the log says.

A kill takes a process at a random moment, or at a named point of the code (shoal/faults.py), stops it (SIGSTOP), or
cuts a connection. Storms, in which the next one usually comes before the last is made good, take turns with calm
stretches, in which each kill finds a whole cluster. Kinds, moments and the load come from one seed; which process
exactly is hit depends on the machine. Recovery is measured for every kill (recovery.py), and
what is in the tables is compared with an oracle of our own (oracle.py).
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shoal.faults import POINTS, RARE
from tests.chaos.announcing import Announcing
from tests.chaos.checking import Progress, compare, stop, verify
from tests.chaos.load import Load
from tests.chaos.oracle import Difference
from tests.chaos.places import COMMAND_PARTITIONS, COMMANDS, HANG_S, OUTCOMES, PARTITIONS, TOPIC, Place
from tests.chaos.recovery import APART, Kill, Ledger
from tests.chaos.watching import Watch
from tests.fixtures.proxy import Mode

WEIGHTS = {
    "reader": 9, "fetcher": 10, "embedder": 9, "writer": 14, "extraction": 5, "supervisor": 5, "rest": 4, "mcp": 4,
    "query_embedder": 4, "controller": 3, "haproxy": 3, "node": 3, "head": 0.5, "broker": 1.5, "s3": 3,
    "stopped": 4, "point": 22, "connection": 5,
}  # fmt: skip
ACTORS = ("reader", "fetcher", "embedder", "writer")
OPEN_MAX = 5  # kills that wait to be made good: more, and nothing would run long enough to be killed in its work
PAUSE_S = (0.7, 2.6)
STRETCH = (6, 14)  # kills of one storm, or of the calm after it
AT_ONCE = 0.15  # share of the kills that come together with the next
GIVE_UP_S = 120.0  # a kill that is not made good in this time is told as unrecovered
HEAD_GIVE_UP_S = 240.0
DRAIN_S = 240.0  # without any progress
DOWN_S = (0.5, 4.0)  # how long a server stays away
STOPPED_S = 3 * HANG_S + 20.0  # after this long a stopped process must have been replaced
OWN = ("broker", "s3", "connection")  # taken away by the campaign, and brought back by it
CUTS = (Mode.DROP, Mode.RESET, Mode.HALF_OPEN, Mode.DELAY, Mode.DROP_AFTER_REQUEST)
TICK_S = 0.1
SLOW_S = 10.0  # what is told of a probe, for whoever looks why
PROBES_MAX = 6


@dataclass(slots=True)
class Result:
    """How it ended. `unrecovered`: kills that were not made good."""

    kills: int
    difference: Difference
    unrecovered: list[Kill]
    ledger: Ledger
    notes: list[str] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def is_good(self) -> bool:
        return self.difference.is_none and not self.unrecovered and not self.notes

    def line(self, seed: int) -> str:
        _, p95, _ = self.ledger.percentiles(lambda kill: kill.role not in APART)
        back = self.ledger.back_p95(lambda kill: kill.role not in APART)
        _, alone, _ = self.ledger.percentiles(lambda kill: kill.role not in APART and kill.alone)
        apart = {role: self.ledger.percentiles(lambda kill, role=role: kill.role == role)[1] for role in APART}  # type: ignore[misc]
        found = self.difference
        return (
            f"kills={self.kills} missing={len(found.missing)} extra={len(found.extra)} "
            f"duplicate={len(found.duplicate)} recovered_p95_s={p95:.1f} "
            f"dead_letters_wrong={len(found.dead_letters_wrong)} unrecovered={len(self.unrecovered)} "
            f"notes={len(self.notes)} back_p95_s={back:.1f} alone_p95_s={alone:.1f} "
            + " ".join(f"{role}_p95_s={value:.1f}" for role, value in apart.items())
            + f" seed={seed} took_s={self.took_s:.0f}"
        )


class Campaign:
    """One run of `kills` kills. `say` gets a line for every event, `show` the state now and then."""

    def __init__(
        self, place: Place, kills: int, seed: int, only: set[str], per_second: float, say: Callable[[str], None],
        show: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._place, self._wanted, self._seed = place, kills, seed
        self._say, self._show = say, show
        self._rng = random.Random(seed)
        self._weights = {role: weight for role, weight in WEIGHTS.items() if not only or role in only}
        self._ledger = Ledger()
        self._watch = Watch(place)
        self._load = Load(seed, TOPIC, PARTITIONS, COMMANDS, COMMAND_PARTITIONS)
        self._announcing = Announcing(
            self._load, place.kafka.bootstrap, place.s3.client(), OUTCOMES, per_second, self._outcome
        )
        self._later: list[tuple[float, Callable[[], None]]] = []  # what the campaign itself brings back
        self._stopped: dict[int, tuple[Kill, float]] = {}  # pid -> its kill, and when it must be let go on
        self._armed: dict[str, float] = {}
        self._outcomes: Counter[str] = Counter()
        self._notes: list[str] = []
        self._unrecovered: list[Kill] = []
        self._old_head: str | None = None  # the address of one that was killed
        self._killed_at = 0.0  # the last
        self._node_due = 0.0  # when the worker node may be started again
        self._busy_until_back: Kill | None = None  # the head's death: what else would there be to kill

    def run(self) -> Result:
        began = time.time()
        self._watch.start()
        if "node" in self._weights:
            self._place.start_node()
        with self._announcing:
            self._wait(lambda: self._announcing.sent > 40 and len(self._outcomes) > 0, 120, "the first outcomes")
            self._place.loose(True)
            self._kill_all()
            self._settle()
            self._announcing.stop()
            self._drain()
            wrong = verify(self._place, self._say)
        self._watch.close()
        self._notes += [note for note in (wrong, stop(self._place, self._say)) if note]
        found = compare(self._place, self._load, self._announcing.messages, self._say)
        return Result(
            len(self._ledger.kills), found, self._unrecovered, self._ledger, self._notes, time.time() - began
        )  # fmt: skip

    # --- killing ------------------------------------------------------------------------------

    def _kill_all(self) -> None:
        queue = self._schedule()
        due = self._killed_at = time.time()
        storm, turns_at = True, self._rng.randint(*STRETCH)
        while len(self._ledger.kills) < self._wanted:
            self._turn()
            if len(self._ledger.kills) >= turns_at:
                storm, turns_at = not storm, len(self._ledger.kills) + self._rng.randint(*STRETCH)
                self._say("a storm" if storm else "calm: one kill at a time")
            if len(self._ledger.open()) >= (OPEN_MAX if storm else 1):
                due = max(due, time.time() + (0.0 if storm else PAUSE_S[0]))
                continue
            if time.time() < due or self._busy_until_back is not None:
                continue
            if not queue:  # named points were armed and not reached: others instead
                queue = self._schedule()
            kind = queue.pop()
            while kind == "head" and self._ledger.open():  # alone, or nobody could tell how long it took
                self._turn()
            together = storm and self._rng.random() < AT_ONCE
            if not self._kill(kind):  # nobody of that kind is alive just now: a little later
                if time.time() - self._killed_at > GIVE_UP_S:
                    raise RuntimeError(f"nothing to kill of {set(queue) | {kind}} for {GIVE_UP_S:.0f} s")
                queue.insert(self._rng.randrange(len(queue) + 1), kind)
                due = time.time() + PAUSE_S[0]
                continue
            due = time.time() + (0.0 if together else self._rng.uniform(*PAUSE_S))

    def _schedule(self) -> list[str]:
        """Every kind at least once where there is room, the others by weight, shuffled."""
        left = self._wanted - len(self._ledger.kills)
        kinds = list(self._weights) if left >= 2 * len(self._weights) else []
        kinds += self._rng.choices(list(self._weights), list(self._weights.values()), k=left - len(kinds))
        self._rng.shuffle(kinds)
        return kinds

    def _kill(self, kind: str) -> bool:
        """Whether there was something to kill."""
        match kind:
            case "point":
                return self._arm()
            case "stopped":
                return self._hit(self._rng.choice(ACTORS), signal.SIGSTOP)
            case "broker":
                return self._server(kind, self._place.kafka)
            case "s3":
                return self._server(kind, self._place.s3)
            case "connection":
                return self._cut()
            case "node":
                return self._kill_node()
            case "head":
                return self._kill_head()
        return self._hit(kind, signal.SIGKILL)

    def _hit(self, role: str, number: signal.Signals) -> bool:
        victims = self._watch.living(role)
        if not victims:  # just killed, not back yet: another one
            return False
        victim = self._rng.choice(victims)
        partition = self._watch.partition_of(victim.pid) if role == "reader" else None
        if not victim.send(number):
            return False
        self._watch.killed(victim.pid)
        kill = self._note(role, number.name, victim.target, partition)
        if number is signal.SIGSTOP:
            self._stopped[victim.pid] = (kill, time.time() + STOPPED_S)
        return True

    def _arm(self) -> bool:
        free = [point for point in POINTS if point not in RARE and point not in self._armed]
        if not free:
            return False
        point = self._rng.choice(free)
        delay_ms = 0 if self._rng.random() < 0.6 else self._rng.choice((5, 30, 150))
        draft = self._place.fault_dir / f".{point}"
        draft.write_text(str(delay_ms))
        draft.rename(self._place.fault_dir / point)
        self._armed[point] = time.time()
        self._say(f"armed {point} delay_ms={delay_ms}")
        return True

    def _look_for_taken(self) -> None:
        for taken in self._place.fault_dir.glob("*.taken-*"):
            point, _, pid = taken.name.partition(".taken-")
            taken.rename(taken.with_name(f"done-{len(self._ledger.kills)}-{taken.name.replace('.taken', '')}"))
            self._armed.pop(point, None)
            role = point.partition(".")[0]
            if not self._watch.killed(int(pid)):  # it was about to end already
                self._say(f"{point} was reached by {pid}, which was killed already")
                continue
            self._note(role, point, f"{role}:{pid}", None)

    def _server(self, role: str, server: Any) -> bool:
        if not server.is_alive:
            return False
        server.kill()
        kill = self._note(role, "SIGKILL", role, None)

        def bring_back() -> None:
            server.start()
            now = time.time()
            # The broker's own restart belongs to its time, not to that of others.
            self._ledger.given_back(now, but=kill if role == "broker" else None)
            kill.back_at = now
            self._say(f"kill {kill.number}: {role} runs again")

        self._after(self._rng.uniform(*DOWN_S), bring_back)
        return True

    def _cut(self) -> bool:
        name = self._rng.choice(list(self._place.proxies))
        proxy, mode = self._place.proxies[name], self._rng.choice(CUTS)
        if proxy.mode is not Mode.PASS:
            return False
        proxy.set(mode)
        kill = self._note("connection", mode, f"to {name}", None)

        def heal() -> None:
            if mode is Mode.HALF_OPEN:  # bytes are lost in these connections, which TCP never does: they must end
                proxy.set(Mode.RESET)
            proxy.set(Mode.PASS)
            now = time.time()
            self._ledger.given_back(now)
            kill.back_at = now
            self._say(f"kill {kill.number}: connections to {name} work again")

        self._after(self._rng.uniform(*DOWN_S), heal)
        return True

    def _kill_node(self) -> bool:
        node = self._place.node
        raylets = self._watch.living("raylet")
        if node is None or not node.is_alive or len(raylets) < 2:
            return False
        victim = raylets[-1]
        if not victim.send(signal.SIGKILL):
            return False
        self._watch.killed(victim.pid)
        self._note("node", "SIGKILL", "node", None)
        self._node_due = time.time() + self._rng.uniform(*DOWN_S)
        return True

    def _kill_head(self) -> bool:
        part = self._rng.choice(("gcs", "raylet", "host"))
        victims = self._watch.living(part)
        if not victims or not victims[0].send(signal.SIGKILL):
            return False
        self._watch.killed(victims[0].pid)
        self._busy_until_back = self._note("head", f"SIGKILL of the {part}", "head", None)
        if self._place.node is not None:  # it would look for its head for a minute
            self._place.node.kill()
            self._old_head = self._place.node.address
        return True

    def _note(self, role: str, how: str, target: str, partition: int | None) -> Kill:
        kill = self._ledger.killed(role, how, target, time.time())
        self._killed_at = kill.at
        self._say(f"kill {kill.number}: {target} ({role}) by {how}, load {os.getloadavg()[0]:.0f}")
        probing = sum(other.probe is not None and other.indexed_at is None for other in self._ledger.open())
        if probing < PROBES_MAX:
            kill.probe = -1  # not announced yet

            def told(serial: int) -> None:
                kill.probe = serial

            self._announcing.probe(partition, told)
        return kill

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._later.append((time.time() + seconds, act))

    # --- every turn ---------------------------------------------------------------------------

    def _turn(self) -> None:
        time.sleep(TICK_S)
        if self._announcing.failure is not None:
            raise RuntimeError("the load has ended") from self._announcing.failure
        now = time.time()
        for entry in [entry for entry in self._later if entry[0] <= now]:
            self._later.remove(entry)
            # A server takes seconds to start, in which the kills go on.
            threading.Thread(target=entry[1], daemon=True).start()
        self._look_for_taken()
        self._look_after_shoal()
        for kill in self._ledger.open():
            own = kill.role in OWN
            if kill.back_at is None and not own and self._watch.is_back(kill):
                kill.back_at = now
                self._say(f"kill {kill.number}: {kill.target} is back after {now - kill.at:.1f} s")
            limit = HEAD_GIVE_UP_S if kill.role in APART else GIVE_UP_S
            if now - kill.at > limit:
                self._unrecovered.append(kill)
                kill.overtaken = True
                self._say(f"kill {kill.number}: NOT RECOVERED after {limit:.0f} s: {kill}; status {self._brief()}")
        if self._busy_until_back is not None and self._busy_until_back.is_over:
            self._busy_until_back = None
        for pid, (kill, until) in list(self._stopped.items()):
            if not self._watch.is_there(pid):
                del self._stopped[pid]
            elif now > until:  # it wakes up in a world that has gone on without it
                self._signal(pid, signal.SIGCONT)
                self._watch.revived(pid)
                del self._stopped[pid]
                self._notes.append(f"{kill.target} was stopped for {now - kill.at:.0f} s and not replaced")
                self._say(self._notes[-1])
        if int(now * 2) != int((now - TICK_S) * 2):
            self._show(self._state())

    def _signal(self, pid: int, number: signal.Signals) -> None:
        for victims in self._watch.processes.values():
            for victim in victims:
                if victim.pid == pid and victim.send(number):
                    self._say(f"{victim.target} goes on (SIGCONT)")

    def _look_after_shoal(self) -> None:
        if not self._place.stack.is_alive:
            self._place.exits += 1
            self._say(f"shoal up has ended, and is started again: {self._place.stack.log()[-600:]!r}")
            self._place.stack.kill()
            self._place.stack.start()
        node = self._place.node
        if node is None or node.is_alive or time.time() < self._node_due:
            return
        address = self._place.head_address()
        if address not in (None, self._old_head) and self._watch.answered_since(time.time() - 3):
            self._say("a worker node is started")
            self._place.start_node()

    def _outcome(self, serial: int, text: str) -> None:
        self._outcomes[str(json.loads(text).get("outcome"))] += 1
        now = time.time()
        for kill in self._ledger.indexed(serial, now):
            if kill.took_s > SLOW_S:
                self._say(f"kill {kill.number}: its probe ended after {kill.took_s:.1f} s: {kill.how} of {kill.target}")

    # --- the end ------------------------------------------------------------------------------

    def _settle(self) -> None:
        """No more kills: everything is made good, or told as unrecovered."""
        for point in self._armed:
            (self._place.fault_dir / point).unlink(missing_ok=True)
        while self._ledger.open() or self._later or self._stopped:
            self._turn()
        self._place.loose(False)

    def _drain(self) -> None:
        """Until the group has committed the whole log."""
        progress = Progress(self._place)
        try:
            before, since = -1, time.time()
            while left := progress.left():
                if sum(left.values()) != before:
                    before, since = sum(left.values()), time.time()
                if time.time() - since > DRAIN_S:
                    self._notes.append(f"{before} messages are not done after {DRAIN_S:.0f} s without progress")
                    self._say(f"{self._notes[-1]}: {left} {self._brief()}")
                    return
                self._show(f"{before} messages to go")
                self._turn()
            self._say(f"everything announced is committed; outcomes {dict(self._outcomes)}")
        finally:
            progress.close()

    # --- what is shown ------------------------------------------------------------------------

    def _state(self) -> str:
        open_kills = ", ".join(f"{kill.target}" for kill in self._ledger.open())
        _, p95, _ = self._ledger.percentiles(lambda kill: kill.role not in APART)
        return (
            f"{len(self._ledger.kills)}/{self._wanted} kills, p95 {p95:.1f} s, {self._announcing.sent} announced, "
            f"{len(self._announcing.waiting)} waiting, {sum(self._outcomes.values())} outcomes, open: {open_kills}"
        )

    def _brief(self) -> str:
        """Why it might be stuck."""
        status = dict(self._watch.status)
        status["readers"] = [
            {
                **reader,
                "partitions": [
                    (at.get("topic"), at.get("partition"), at.get("lag_records"), at.get("in_flight"))
                    for at in reader.get("partitions", [])
                ],
            }
            for reader in status.get("readers") or []
        ]
        return json.dumps(status, default=str)[:4000]

    def _wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.time() + seconds
        while not condition():
            if time.time() > deadline:
                raise RuntimeError(
                    f"no {what} after {seconds:.0f} s: {self._brief()}; {self._place.stack.log()[-800:]}"
                )
            self._turn()
