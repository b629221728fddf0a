"""Dead letters for whoever is on call: choose, list, show, purge (`shoal dlq`; replaying: dead_letter_replay).

Everything read here was written by others. What is shown is redacted and holds no character that a terminal
would obey. A listing keeps no values, only the rows that it will show; nothing here deletes anything.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from shoal.cluster.output import Exit, Format, emit_json, emit_pairs, emit_rows, err, out, printable, say
from shoal.errors import ConfigurationError, DeadReason
from shoal.redaction import REDACTED, is_secret, redact_json, redact_text
from shoal.settings import Settings
from shoal.sources.dead_letter_log import DeadLetterLog, open_dead_letters
from shoal.sources.dead_letter_record import DeadLetter, dataset_of
from shoal.sources.dead_letter_state import parse_id, purged
from shoal.sources.dead_letters import DEAD_LETTER_SUFFIX
from shoal.sources.kafka import connection, ensure_topics, open_producer

NO_REASON = "none"  # what others wrote into the topic says no reason of ours
FLUSH_S = 30.0
RECORDS_A_FLUSH = 1_000
READ_A_STEP = 500  # letters between two lines of progress
BYTES_SHOWN_MAX = 4_000  # of a value, unless asked for more
HEADER_CHARS_MAX = 400
_AGE = re.compile(r"(\d{1,6})\s*([smhdw])", re.ASCII)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_RFC_3339 = re.compile(r"\d{4}-\d{2}-\d{2}([Tt ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?([Zz]|[+-]\d{2}:\d{2})?)?", re.ASCII)
_FIRST = datetime.min.replace(tzinfo=UTC)


# --- choosing ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters are meant: all conditions hold; an empty one always does."""

    ids: tuple[str, ...] = ()
    reasons: frozenset[str] = frozenset()
    topics: frozenset[str] = frozenset()  # where the messages came from
    since: datetime | None = None
    until: datetime | None = None
    dataset: str = ""
    handled: bool = False  # also those with a state

    @property
    def is_empty(self) -> bool:
        return not (self.ids or self.reasons or self.topics or self.since or self.until or self.dataset)

    def fits(self, letter: DeadLetter) -> bool:
        """Whether it is meant, handled or not. The cheapest questions come first."""
        if self.reasons and (letter.reason or NO_REASON) not in self.reasons:
            return False
        if self.topics and letter.topic not in self.topics:
            return False
        at = letter.failed_at or _FIRST
        if (self.since and at < self.since) or (self.until and at >= self.until):
            return False
        return not self.dataset or dataset_of(letter) == self.dataset


def moment(text: str, now: datetime) -> datetime | None:
    """The time that an option names: RFC 3339 (without a zone: UTC), or an age (`90s`, `30m`, `2h`, `3d`, `1w`).

    Raises ConfigurationError for anything else; None where it is empty.
    """
    if not text:
        return None
    try:
        if match := _AGE.fullmatch(text.strip()):
            return now - timedelta(seconds=int(match[1]) * _UNITS[match[2]])
        if not _RFC_3339.fullmatch(text.strip()):
            raise ValueError
        found = datetime.fromisoformat(text.strip())
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):  # no time, or one before the first year
        raise ConfigurationError(
            f"{text!r} is no time: write it as 2025-01-20T14:30:00Z, or as an age: 90s, 30m, 2h, 3d"
        ) from None


def selection(
    settings: Settings,
    now: datetime,
    *,
    ids: Sequence[str] = (),
    reasons: Sequence[str] = (),
    topics: Sequence[str] = (),
    since: str = "",
    until: str = "",
    dataset: str = "",
    handled: bool = False,
) -> Selection:
    """The selection that the options of a command mean. Raises ConfigurationError for one that can't be meant."""
    for text in ids:
        _checked_id(text)
    known = (*settings.kafka_topics, settings.command_topic)
    named = frozenset(topic.removesuffix(DEAD_LETTER_SUFFIX) for topic in topics)
    if unknown := sorted(named - set(known)):
        raise ConfigurationError(f"--topic {unknown[0]}: Shoal reads {', '.join(known)} (KAFKA_TOPIC)")
    for reason in reasons:
        if reason not in (*DeadReason, NO_REASON):
            say(f"note: {printable(reason)} is none of Shoal's reasons ({', '.join(DeadReason)})")
    chosen = Selection(
        tuple(dict.fromkeys(ids)), frozenset(reasons), named, moment(since, now), moment(until, now), dataset, handled
    )
    if chosen.ids and not Selection(reasons=chosen.reasons, topics=named, since=chosen.since, until=chosen.until,
                                    dataset=dataset).is_empty:  # fmt: skip
        raise ConfigurationError("name dead letters by their ids or by filters, not by both")
    return chosen


def _checked_id(text: str) -> None:
    if parse_id(text) is None:
        raise ConfigurationError(
            f"{printable(text)!r} is no id of a dead letter: copy one from `shoal dlq list`, "
            f"such as scraper-notifications{DEAD_LETTER_SUFFIX}/0/17"
        )


@dataclass(slots=True)
class Choice:
    """What a selection met: counts for the summary line. `missing` are ids that no dead letter has."""

    read: int = 0
    chosen: int = 0
    handled: Counter[str] = field(default_factory=Counter)  # meant, but left out since they have a state
    missing: list[str] = field(default_factory=list)


def choose(
    log: DeadLetterLog, wanted: Selection, choice: Choice, progress: Callable[[Choice], None] = lambda _: None
) -> Iterator[DeadLetter]:
    """The letters of `log` that are wanted, in log order (or that of the ids); `choice` is counted on the way."""
    for letter in _named(log, wanted.ids, choice) if wanted.ids else log.letters():
        choice.read += 1
        if choice.read % READ_A_STEP == 0:
            progress(choice)
        if not wanted.fits(letter):
            continue
        if letter.state is not None and not wanted.handled:
            choice.handled[letter.state.state.value] += 1
            continue
        choice.chosen += 1
        yield letter


def _named(log: DeadLetterLog, ids: Iterable[str], choice: Choice) -> Iterator[DeadLetter]:
    for id_ in ids:
        letter = log.letter(id_)
        if letter is None:
            choice.missing.append(id_)
        else:
            yield letter


def tell_left_out(choice: Choice) -> None:
    """What was meant and is not among the chosen, on stderr."""
    if choice.handled:
        states = ", ".join(f"{count} {state}" for state, count in sorted(choice.handled.items()))
        say(f"{choice.handled.total()} handled already and left out ({states}): --all takes them in")
    for id_ in choice.missing:
        say(f"{id_}: there is no such dead letter (any more)")


# --- list -------------------------------------------------------------------------------------

COLUMNS = ("id", "failed_at", "reason", "replays", "state", "key", "message")


def show_list(settings: Settings, wanted: Selection, *, limit: int, by_reason: bool, form: Format) -> int:
    """The `dlq list` command: an exit code. Newest first, at most `limit` rows."""
    choice = Choice()
    groups: dict[tuple[str, str, str], list[Any]] = {}
    newest: list[tuple[datetime, int, dict[str, Any]]] = []
    with open_dead_letters(settings) as log, err.status("reading dead letters") as status:
        for letter in choose(log, wanted, choice, lambda met: status.update(f"{met.read} dead letters read")):
            at = letter.failed_at or _FIRST
            if by_reason:
                key = (letter.topic, shown_reason(letter), letter.state.state if letter.state else "open")
                group = groups.setdefault(key, [0, at, at])
                group[0] += 1
                group[1], group[2] = min(group[1], at), max(group[2], at)
                continue
            entry = (at, choice.chosen, row(letter))
            if len(newest) < limit:
                heapq.heappush(newest, entry)
            else:
                heapq.heappushpop(newest, entry)
    tell_left_out(choice)
    if by_reason:
        return _show_reasons(groups, form)
    rows = [entry[2] for entry in sorted(newest, key=lambda entry: entry[:2], reverse=True)]
    if form is Format.json:
        emit_json({"dead_letters": rows, "matching": choice.chosen, "handled_left_out": dict(choice.handled)})
        return Exit.OK
    if not rows:
        say("no dead letters" if not choice.read else f"none of {choice.read} dead letters is meant")
        return Exit.OK
    # The message needs the room: no parts of seconds, and no state where all are open.
    table = [each | {"failed_at": (each["failed_at"] or "")[:19]} for each in rows]
    emit_rows(table, COLUMNS if wanted.handled else tuple(column for column in COLUMNS if column != "state"))
    if choice.chosen > len(rows):
        say(f"the newest {len(rows)} of {choice.chosen} (--limit; --by-reason counts them all)")
    return Exit.OK


def _show_reasons(groups: dict[tuple[str, str, str], list[Any]], form: Format) -> int:
    rows = [
        {
            "topic": topic,
            "reason": reason,
            "state": state,
            "count": count,
            "oldest": shown_time(oldest),
            "newest": shown_time(newest),
        }
        for (topic, reason, state), (count, oldest, newest) in sorted(groups.items(), key=lambda kv: -kv[1][0])
    ]
    if form is Format.json:
        emit_json(rows)
    elif rows:
        emit_rows(rows, ("topic", "reason", "state", "count", "oldest", "newest"))
    else:
        say("no dead letters")
    return Exit.OK


def row(letter: DeadLetter) -> dict[str, Any]:
    """What a listing tells of a dead letter: all but its headers and its value; safe to show."""
    return {
        "id": letter.id,
        "topic": letter.topic,
        "partition": letter.source_partition,
        "offset": letter.source_offset,
        "failed_at": shown_time(letter.failed_at),
        "reason": shown_reason(letter),
        "stage": None if letter.stage is None else printable(letter.stage),
        "message": None if letter.message is None else printable(redact_text(letter.message)),
        "retry_count": letter.retry_count,
        "replays": letter.attempts,
        "state": str(letter.state.state) if letter.state else "open",
        "replay_of": letter.replay_of,
        "key": None if letter.raw.key is None else text_of(letter.raw.key)[:HEADER_CHARS_MAX],
        "value_bytes": None if letter.raw.value is None else len(letter.raw.value),
        "stub": letter.is_incomplete,
    }


def shown_reason(letter: DeadLetter) -> str:
    """Its reason, or that it says none."""
    return printable(letter.reason) if letter.reason else NO_REASON


def shown_time(at: datetime | None) -> str | None:
    """RFC 3339, or None."""
    if at is None or at == _FIRST:
        return None
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- show -------------------------------------------------------------------------------------


def show_one(settings: Settings, id_: str, *, full: bool, form: Format) -> int:
    """The `dlq show` command: an exit code."""
    _checked_id(id_)
    with open_dead_letters(settings) as log:
        letter = log.letter(id_, in_full=True)
    if letter is None:
        say(f"{id_}: there is no such dead letter (any more)")
        return Exit.FAILED
    told = row(letter) | {"original_at": _milliseconds(letter.original_timestamp_ms)}
    if (state := letter.state) is not None:
        told |= {"state_at": shown_time(state.at), "outcome": state.outcome}
        if state.message:
            told["returned_with"] = printable(redact_text(f"{state.reason}: {state.message}"))
    headers = [(printable(name), _header_text(name, value)) for name, value in letter.raw.headers]
    if form is Format.json:
        emit_json(told | {"headers": headers, "value": value_of(letter.raw.value)})
        return Exit.OK
    emit_pairs({name: value for name, value in told.items() if value is not None})
    out.print("\nheaders", style="bold")
    for name, text in headers:
        out.print(f"  {name}: {text}", markup=False, soft_wrap=True)
    out.print("\nvalue", style="bold")
    value = value_of(letter.raw.value)
    text = value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    if letter.raw.value is None:
        text = "(none: a tombstone, which asks for a deletion)"
    # Some characters, harmless as text in JSON, are none to a terminal.
    text = printable(text)
    if len(text) > BYTES_SHOWN_MAX and not full:
        say(f"the first {BYTES_SHOWN_MAX} of {len(text)} characters (--full shows all)")
        text = text[:BYTES_SHOWN_MAX]
    out.print(text, markup=False, soft_wrap=True)
    return Exit.OK


def _milliseconds(timestamp_ms: int | None) -> str | None:
    try:
        return None if timestamp_ms is None else shown_time(datetime.fromtimestamp(timestamp_ms / 1000, UTC))
    except (ValueError, OverflowError, OSError):
        return None


def _header_text(name: str, value: bytes | None) -> str | None:
    if value is None:
        return None
    text = text_of(value)
    return REDACTED if is_secret(name, text) and not name.startswith("shoal.dlq.") else text[:HEADER_CHARS_MAX]


def text_of(data: bytes) -> str:
    """Bytes as redacted, printable text; what is no UTF-8 as hexadecimal digits."""
    try:
        return printable(redact_text(data.decode()))
    except UnicodeDecodeError:
        return f"0x{data[: HEADER_CHARS_MAX // 2].hex()}" + ("..." if len(data) > HEADER_CHARS_MAX // 2 else "")


def value_of(value: bytes | None) -> Any:
    """A message's value to show: JSON redacted, other text too, bytes that are no text as hexadecimal digits."""
    if value is None:
        return None
    try:
        found = orjson.loads(value)
    except ValueError:
        return text_of(value)
    return _safe(redact_json(found))


def _safe(value: Any) -> Any:
    """Its texts redacted once more, as text (a stub's head is broken JSON), and printable."""
    if isinstance(value, str):
        return printable(redact_text(value))
    if isinstance(value, dict):
        return {printable(name): _safe(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_safe(item) for item in value]
    return value


# --- purge ------------------------------------------------------------------------------------


def purge(
    settings: Settings,
    wanted: Selection,
    *,
    limit: int | None,
    confirm: Callable[[str], bool],
    dry_run: bool,
    form: Format,
) -> int:
    """The `dlq purge` command: an exit code. Records `purged`; the log's retention truncates, nobody else.

    `confirm` is asked with what is to be marked; False ends it. Takes some 150 bytes of memory for each.
    """
    need_some(wanted, "purge")
    if not settings.is_embedded:
        ensure_topics(settings, connection(settings))
    choice, reasons = Choice(), Counter[str]()
    marked: list[tuple[str, int]] = []
    with open_dead_letters(settings) as log, err.status("reading dead letters") as status:
        for letter in choose(log, wanted, choice, lambda met: status.update(f"{met.read} dead letters read")):
            marked.append((letter.id, letter.attempts))
            reasons[shown_reason(letter)] += 1
            if len(marked) == limit:
                break
    tell_left_out(choice)
    told = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    count = len(marked)
    if marked and not dry_run and not confirm(f"Mark {count} dead letters as purged ({told})?"):
        say("nothing was marked")
        return Exit.FAILED
    if marked and not dry_run:
        _mark(settings, marked)
    if form is Format.json:
        emit_json({"purged": 0 if dry_run else count, "would_be_purged": count if dry_run else 0, "reasons": reasons,
                   "handled_left_out": dict(choice.handled), "missing": choice.missing})  # fmt: skip
    else:
        emit_pairs({"would be purged" if dry_run else "purged": f"{count} ({told})" if told else count})
    return Exit.FAILED if choice.missing else Exit.OK


def _mark(settings: Settings, marked: Sequence[tuple[str, int]]) -> None:
    producer = open_producer(settings)
    with err.status("marking") as status:
        for first in range(0, len(marked), RECORDS_A_FLUSH):
            for id_, attempts in marked[first : first + RECORDS_A_FLUSH]:
                producer.send(*purged(id_, attempts, datetime.now(UTC)))
            producer.flush(FLUSH_S)
            status.update(f"{min(first + RECORDS_A_FLUSH, len(marked))} of {len(marked)} marked")


def need_some(wanted: Selection, command: str) -> None:
    """Raises ConfigurationError for a selection that would mean every dead letter there is."""
    if wanted.is_empty:
        raise ConfigurationError(
            f"{command} which? Name ids, or filters: --reason, --since, --until, --topic, --dataset "
            f"(`--topic scraper-notifications` means all of that topic)"
        )
