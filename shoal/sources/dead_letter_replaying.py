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

from shoal.errors import ConfigurationError, PermanentError
from shoal.redaction import printable, redact_text
from shoal.sources.dead_letter_log import DeadLetterLog, StateTail
from shoal.sources.dead_letter_record import DeadLetter, replay_message
from shoal.sources.dead_letter_state import State, StateRecord, replayed
from shoal.sources.dead_letters import Header
from shoal.sources.journal import size_bytes
from shoal.sources.log_producer import LogProducer

FLUSH_S = 30.0
# Between two flushes: what a crash may leave sent and not recorded, and what is held in memory for a second try.
BATCH_ITEMS, BATCH_BYTES = 100, 8 * 1024 * 1024
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
class Parcel:
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
        self._batch: list[Parcel] = []
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

    def parcel(self, letter: DeadLetter) -> Parcel | None:
        """What a replay of `letter` sends; None where it can't or should not be, which is counted."""
        if letter.attempts >= self._replays_max:
            self.tally.often += 1
            return None
        original = self._log.original(letter) if letter.is_incomplete else None
        if letter.is_incomplete and original is None:
            self._unsendable(letter, f"only a stub of it was kept, and its original is not in the log any more: "
                             f"{letter.topic}/{letter.source_partition}/{letter.source_offset}")  # fmt: skip
            return None
        return Parcel(letter, *replay_message(letter, original))

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

    def _send(self, batch: list[Parcel]) -> None:
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

    def _sent_alone(self, parcel: Parcel) -> bool:
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
