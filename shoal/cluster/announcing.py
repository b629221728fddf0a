"""Announcing: sends prepared notifications and, if asked to, waits until each has an outcome.

A waiting publisher names its messages in a header; the readers answer under that name on the outcome topic
once the outcome is durable. So the tally is what happened, not what was sent, and holds on any Kafka and
across restarts of any process: a message that is delivered again answers again, and counts once.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from shoal import tracing
from shoal.cluster.output import Exit, Format, emit_json, emit_pairs, emit_rows, err, say
from shoal.errors import TransientError
from shoal.records import Outcome
from shoal.settings import Settings
from shoal.sources.kafka import LogProducer, TailReader, connection, open_producer
from shoal.sources.messages import OUTCOME_HEADER
from shoal.sources.publishing import Prepared, prepare

BATCH = 100  # messages between two flushes: what a crash of the publisher may leave unconfirmed
FLUSH_S = 30.0
SHOWN_DEAD_LETTERS_MAX = 20


@dataclass(slots=True)
class Tally:
    """What became of what was announced. `dead` holds (urn, reason, message) of each dead letter."""

    announced: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    dead: list[tuple[str, str, str]] = field(default_factory=list)
    waiting: dict[str, str] = field(default_factory=dict)  # outcome id -> urn
    commit_sequence: int = 0

    @property
    def adds_up(self) -> bool:
        return sum(self.outcomes.values()) == self.announced and not self.waiting

    def line(self) -> str:
        parts = " + ".join(f"{self.outcomes[outcome]} {outcome.replace('_', '-')}" for outcome in Outcome)
        return f"{parts} = {sum(self.outcomes.values())} of {self.announced} announced"


class Announcer:
    """Sends messages and listens for their outcomes. Use as a context manager."""

    def __init__(self, settings: Settings, *, listen: bool) -> None:
        self._settings = settings
        self._batch = uuid.uuid4().hex[:12]
        self.tally = Tally()
        tracing.configure(settings, "shoal-publish")
        self._producer: LogProducer = open_producer(settings)
        # Listening starts before the first message is sent: no outcome can be missed.
        self._tail = TailReader(settings, connection(settings), settings.outcome_topic) if listen else None

    def __enter__(self) -> Announcer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tail is not None:
            self._tail.close()

    def send(self, messages: Iterable[Prepared], progress: Callable[[Tally], None] = lambda _: None) -> None:
        """Announce `messages`; durable when it returns. Raises TransientError where the log takes no more."""
        for prepared in messages:
            self._send(prepared)
            if self.tally.announced % BATCH == 0:
                self._producer.flush(FLUSH_S)
                self._listen(0.0)
                progress(self.tally)
        self._producer.flush(FLUSH_S)
        progress(self.tally)

    def _send(self, prepared: Prepared) -> None:
        headers: list[tuple[str, bytes]] = []
        if self._tail is not None:
            outcome_id = f"{self._batch}:{self.tally.announced}"
            headers.append((OUTCOME_HEADER, outcome_id.encode()))
            self.tally.waiting[outcome_id] = prepared.urn
        with tracing.span("announce", shoal__document=(prepared.key or b"").decode(errors="replace")[:200]):
            self._producer.send(self._settings.kafka_topics[0], prepared.key, prepared.value, headers)
        self.tally.announced += 1

    def wait(self, timeout_s: float, progress: Callable[[Tally], None] = lambda _: None) -> bool:
        """True once every message has its outcome, False after `timeout_s` without any progress."""
        last = time.monotonic()
        while self.tally.waiting:
            if self._listen(0.5):
                last = time.monotonic()
            elif time.monotonic() - last > timeout_s:
                return False
            progress(self.tally)
        return True

    def _listen(self, timeout_s: float) -> int:
        assert self._tail is not None or timeout_s == 0.0
        heard = 0
        for raw in self._tail.poll(timeout_s) if self._tail is not None else ():
            # The key is read first: others answer on this topic too, and what they write is not ours to parse.
            urn = self.tally.waiting.pop((raw.key or b"").decode(errors="replace"), None)
            if urn is None:
                continue  # somebody else's, or a repetition
            record = orjson.loads(raw.value or b"{}")
            heard += 1
            outcome = Outcome(record["outcome"])
            self.tally.outcomes[outcome] += 1
            self.tally.commit_sequence = max(self.tally.commit_sequence, record.get("commit_sequence") or 0)
            if outcome is Outcome.DEAD_LETTERED:
                self.tally.dead.append((urn, record.get("reason", ""), record.get("message", "")))
        return heard


def publish_paths(
    settings: Settings,
    paths: list[Path],
    *,
    source: str,
    dataset: str,
    data_type: str,
    environment: str,
    to: str,
    wait: bool,
    timeout_s: float,
    form: Format,
) -> int:
    """The `publish` command: an exit code."""
    messages = prepare(
        paths, settings, source=source, dataset=dataset, data_type=data_type, environment=environment, to=to
    )
    began = time.monotonic()
    try:
        announcer = Announcer(settings, listen=wait)
    except TransientError as error:
        if wait and settings.is_embedded:
            raise TransientError(f"{error}; --wait needs a running service: start `shoal up` first") from None
        raise
    with announcer, err.status("announcing") as status:

        def show(tally: Tally) -> None:
            done = tally.announced - len(tally.waiting)
            status.update(f"{tally.announced} announced" + (f", {done} done" if wait else ""))

        announcer.send(messages, show)
        finished = announcer.wait(timeout_s, show) if wait else True
    tally, took_s = announcer.tally, time.monotonic() - began
    if form is Format.json:
        emit_json(report(tally, took_s))
    else:
        _show(tally, took_s, wait)
    if not wait and settings.is_embedded and not _runs(settings):
        say(f"nothing runs on {settings.home}: what was published is kept there, and announced when `shoal up` starts")
    if not finished:
        say(f"{len(tally.waiting)} have no outcome after {timeout_s:g} s without progress: see `shoal status`")
        return Exit.TIMEOUT
    return Exit.OK if tally.adds_up or not wait else Exit.FAILED


def _runs(settings: Settings) -> bool:
    try:
        connection(settings)
    except TransientError:
        return False
    return True


def report(tally: Tally, took_s: float) -> dict[str, object]:
    """The tally as JSON."""
    return {
        "announced": tally.announced,
        "outcomes": {outcome.value: tally.outcomes[outcome] for outcome in Outcome},
        "without_outcome": len(tally.waiting),
        "adds_up": tally.adds_up,
        "dead_letters": [dict(zip(("urn", "reason", "message"), dead, strict=True)) for dead in tally.dead],
        "wait_token": str(tally.commit_sequence),
        "took_s": round(took_s, 2),
    }


def _show(tally: Tally, took_s: float, waited: bool) -> None:
    if not waited:
        emit_pairs({"announced": tally.announced})
        return
    emit_pairs(
        {"tally": tally.line(), "took": f"{took_s:.1f} s, {60 * tally.announced / max(took_s, 0.001):.0f} a minute"}
    )
    show_dead(tally)


def show_dead(tally: Tally) -> None:
    """The first dead letters, with their reasons."""
    if not tally.dead:
        return
    rows = [
        {"dead letter": urn, "reason": reason, "message": message}
        for urn, reason, message in tally.dead[:SHOWN_DEAD_LETTERS_MAX]
    ]
    emit_rows(rows, ("dead letter", "reason", "message"))
    if len(tally.dead) > SHOWN_DEAD_LETTERS_MAX:
        say(f"and {len(tally.dead) - SHOWN_DEAD_LETTERS_MAX} more (-o json lists all)")
