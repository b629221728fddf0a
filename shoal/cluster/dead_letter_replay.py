"""Replaying dead letters: each message goes to its topic again, as it was, and says which dead letter it is of.

Its headers name the dead letter (`shoal.dlq.id`) and count the replays (`shoal.dlq.replayed`); the reader records
under that name how it ended (shoal.sources.dead_letter_state), and `--wait` waits for those records: they are one
for each message, durable before its offset is done, and outlive a restart of anything. The outcome that a
publisher waits for is none of the three: a message of several records answers several times.

`replayed` is recorded after the messages of a batch were acknowledged. A crash in between leaves letters that were
sent and still count as open, and the next replay sends them once more. That is harmless: id and version decide
(contracts 1.1), so the same message twice indexes once. The other order would lose one: recorded, never sent.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from shoal.cluster.dead_letters import (
    FLUSH_S,
    Choice,
    Selection,
    choose,
    need_some,
    shown_reason,
    tell_left_out,
)
from shoal.cluster.output import Exit, Format, emit_json, emit_pairs, emit_rows, err, printable, say
from shoal.errors import ConfigurationError, PermanentError, TransientError
from shoal.redaction import redact_text
from shoal.settings import Settings
from shoal.sources.dead_letter_log import DeadLetterLog, StateTail, open_dead_letters
from shoal.sources.dead_letter_record import DeadLetter, replay_message
from shoal.sources.dead_letter_state import State, StateRecord, replayed
from shoal.sources.dead_letters import Header
from shoal.sources.journal import size_bytes
from shoal.sources.kafka import LogProducer, connection, ensure_topics, open_producer

# Between two flushes: what a crash may leave sent and not recorded, and what is held in memory for a second try.
BATCH_ITEMS, BATCH_BYTES = 100, 8 * 1024 * 1024
SHOWN_MAX = 20
DETAILS_MAX = 1_000  # of letters that came back or could not be sent: the rest is only counted
REPLAYS_MAX = 5


@dataclass(slots=True)
class Tally:
    """What became of the letters that were chosen."""

    sent: int = 0
    often: int = 0  # left out: replayed `replays_max` times already
    unsendable: int = 0
    succeeded: int = 0
    returned: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)  # of those that succeeded
    waiting: dict[str, int] = field(default_factory=dict)  # id -> the number of its replay
    why_unsendable: list[tuple[str, str]] = field(default_factory=list)
    why_returned: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Parcel:
    letter: DeadLetter
    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[Header]


class Replayer:
    """Sends letters in batches, and counts what becomes of them. `tail` is None where nobody waits; `producer` is
    opened when there is something to send: a look must not make a data directory."""

    def __init__(
        self,
        log: DeadLetterLog,
        producer: Callable[[], LogProducer],
        tail: StateTail | None,
        *,
        replays_max: int,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._log, self._tail, self._replays_max, self._now = log, tail, replays_max, now
        self._open = producer
        self._opened: LogProducer | None = None
        self._batch: list[_Parcel] = []
        self._batch_bytes = 0
        self.tally = Tally()

    @property
    def _producer(self) -> LogProducer:
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    @property
    def held(self) -> int:
        """How many are added and not sent yet."""
        return len(self._batch)

    def parcel(self, letter: DeadLetter) -> _Parcel | None:
        """What a replay of `letter` sends; None where it can't or should not be, which is counted."""
        if letter.attempts >= self._replays_max:
            self.tally.often += 1
            return None
        original = self._log.original(letter) if letter.is_incomplete else None
        if letter.is_incomplete and original is None:
            self._unsendable(letter, f"only a stub of it was kept, and its original is not in the log any more: "
                             f"{letter.topic}/{letter.source_partition}/{letter.source_offset}")  # fmt: skip
            return None
        return _Parcel(letter, *replay_message(letter, original))

    def add(self, letter: DeadLetter) -> bool:
        """Replay `letter`, with its batch. Returns whether a batch was sent. Raises as `flush`."""
        parcel = self.parcel(letter)
        if parcel is not None:
            self._batch.append(parcel)
            self._batch_bytes += size_bytes(parcel.key, parcel.value, parcel.headers)
        if len(self._batch) < BATCH_ITEMS and self._batch_bytes < BATCH_BYTES:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Send what was added, durably, and then record it.

        Raises TransientError, ConfigurationError where the log takes no more: some may have been sent, which the
        next replay sends again.
        """
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        if not batch:
            return
        try:
            self._send(batch)
        except ConfigurationError:
            raise
        except PermanentError:  # one of them is too large for the topic as it is now: find it, send the others
            batch = [parcel for parcel in batch if self._sent_alone(parcel)]
        for parcel in batch:
            self.tally.sent += 1
            self._producer.send(*replayed(parcel.letter.id, parcel.letter.attempts + 1, self._now()))
        self._producer.flush(FLUSH_S)
        self.listen(0.0)

    def _send(self, batch: list[_Parcel]) -> None:
        refused: PermanentError | None = None
        for parcel in batch:
            if self._tail is not None:
                self.tally.waiting[parcel.letter.id] = parcel.letter.attempts + 1
            try:
                self._producer.send(parcel.topic, parcel.key, parcel.value, parcel.headers)
            except PermanentError as error:
                refused = error
        self._producer.flush(FLUSH_S)
        if refused is not None:
            raise refused

    def _sent_alone(self, parcel: _Parcel) -> bool:
        try:
            self._send([parcel])
        except ConfigurationError:
            raise
        except PermanentError as error:
            self.tally.waiting.pop(parcel.letter.id, None)
            self._unsendable(parcel.letter, str(error))
            return False
        return True

    def _unsendable(self, letter: DeadLetter, why: str) -> None:
        self.tally.unsendable += 1
        if len(self.tally.why_unsendable) < DETAILS_MAX:
            self.tally.why_unsendable.append((letter.id, why))

    def listen(self, timeout_s: float) -> int:
        """Take in the outcomes that have come; returns how many were waited for."""
        if self._tail is None:
            return 0
        heard = 0
        for record in self._tail.poll(timeout_s):
            # By its number: another outcome may be that of a replay before this one.
            if record.state in (State.SUCCEEDED, State.RETURNED) and (
                self.tally.waiting.get(record.dead_letter_id) == record.replays
            ):
                del self.tally.waiting[record.dead_letter_id]
                self._ended(record)
                heard += 1
        return heard

    def _ended(self, record: StateRecord) -> None:
        tally = self.tally
        if record.state is State.SUCCEEDED:
            tally.succeeded += 1
            tally.outcomes[record.outcome or "nothing to do"] += 1
            return
        tally.returned += 1
        if len(tally.why_returned) < DETAILS_MAX:
            message = printable(redact_text(record.message or ""))
            tally.why_returned.append((record.dead_letter_id, printable(record.reason or ""), message))

    def wait(self, timeout_s: float, progress: Callable[[Tally], None] = lambda _: None) -> bool:
        """True once every replay has ended, False after `timeout_s` without any progress."""
        last = time.monotonic()
        while self.tally.waiting:
            if self.listen(0.5):
                last = time.monotonic()
            elif time.monotonic() - last > timeout_s:
                return False
            progress(self.tally)
        return True


def replay(
    settings: Settings,
    wanted: Selection,
    *,
    limit: int | None,
    replays_max: int,
    dry_run: bool,
    wait: bool,
    timeout_s: float,
    form: Format,
) -> int:
    """The `dlq replay` command: an exit code. FAILED where one could not be sent, came back, or was named in vain."""
    need_some(wanted, "replay")
    wait = wait and not dry_run
    if wait and settings.is_embedded:
        _need_service(settings)
    if not settings.is_embedded and not dry_run:
        ensure_topics(settings, connection(settings))
    choice = Choice()
    with open_dead_letters(settings) as log:
        tail = log.tail() if wait else None  # before the first is sent: no outcome can be missed
        try:
            replayer = Replayer(log, lambda: open_producer(settings), tail, replays_max=replays_max)
            finished = _run(replayer, log, wanted, choice, limit=limit, dry_run=dry_run, timeout_s=timeout_s)
        finally:
            if tail is not None:
                tail.close()
    tally = replayer.tally
    tell_left_out(choice)
    if tally.often:
        say(f"{tally.often} replayed {replays_max} times already and left out: mend the cause, or raise --replays-max")
    if form is Format.json:
        emit_json(report(tally, choice, dry_run=dry_run))
    else:
        _show(tally, dry_run=dry_run, waited=wait)
    if not finished:
        say(f"{len(tally.waiting)} have no outcome after {timeout_s:g} s without progress: see `shoal status`")
        return Exit.TIMEOUT
    named_in_vain = wanted.ids and (choice.missing or choice.handled or tally.often)
    return Exit.FAILED if tally.unsendable or tally.returned or named_in_vain else Exit.OK


def _run(
    replayer: Replayer,
    log: DeadLetterLog,
    wanted: Selection,
    choice: Choice,
    *,
    limit: int | None,
    dry_run: bool,
    timeout_s: float,
) -> bool:
    tally = replayer.tally
    with err.status("reading dead letters") as status:

        def show(_: Any) -> None:
            done = f", {tally.succeeded} succeeded, {tally.returned} returned" if tally.waiting else ""
            status.update(f"{choice.read} dead letters read, {tally.sent} replayed{done}")

        for letter in choose(log, wanted, choice, show):
            if dry_run:
                if replayer.parcel(letter) is not None:
                    tally.sent += 1
                    tally.reasons[shown_reason(letter)] += 1
            elif replayer.add(letter):
                show(None)
            if tally.sent + replayer.held == limit:
                break
        if dry_run:
            return True
        replayer.flush()
        return replayer.wait(timeout_s, show)


def _need_service(settings: Settings) -> None:
    try:
        connection(settings)
    except TransientError as error:
        raise TransientError(f"{error}; --wait needs a running service: start `shoal up` first") from None


def report(tally: Tally, choice: Choice, *, dry_run: bool) -> dict[str, Any]:
    """The tally as JSON."""
    return {
        "replayed": 0 if dry_run else tally.sent,
        "would_be_replayed": tally.sent if dry_run else 0,
        "succeeded": tally.succeeded,
        "returned": tally.returned,
        "without_outcome": len(tally.waiting),
        "outcomes": dict(tally.outcomes),
        "replayed_too_often": tally.often,
        "not_replayable": tally.unsendable,
        "handled_left_out": dict(choice.handled),
        "missing": choice.missing,
        "why_returned": [dict(zip(("id", "reason", "message"), one, strict=True)) for one in tally.why_returned],
        "why_not_replayable": [dict(zip(("id", "why"), one, strict=True)) for one in tally.why_unsendable],
    }


def _show(tally: Tally, *, dry_run: bool, waited: bool) -> None:
    told: dict[str, Any] = {"would be replayed" if dry_run else "replayed": tally.sent}
    if dry_run:
        told |= {f"  {reason}": count for reason, count in tally.reasons.most_common()}
    if waited:
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in tally.outcomes.most_common())
        told |= {"succeeded": f"{tally.succeeded} ({outcomes})" if outcomes else 0, "returned": tally.returned}
    if tally.unsendable:
        told["not replayable"] = tally.unsendable
    emit_pairs(told)
    if tally.why_unsendable:
        rows = [{"not replayable": id_, "why": why} for id_, why in tally.why_unsendable[:SHOWN_MAX]]
        emit_rows(rows, ("not replayable", "why"))
    if tally.why_returned:
        returned = [
            {"returned": id_, "reason": reason, "message": message}
            for id_, reason, message in tally.why_returned[:SHOWN_MAX]
        ]
        emit_rows(returned, ("returned", "reason", "message"))
    more = max(0, tally.unsendable - SHOWN_MAX) + max(0, tally.returned - SHOWN_MAX)
    if more:
        say(f"and {more} more (-o json lists up to {DETAILS_MAX})")
