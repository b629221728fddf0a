"""Dead letters for whoever is on call: choose, list, show, purge (`shoal dlq`; replaying: dead_letter_replay).

Everything read here was written by others. What is shown is redacted and holds no character that a terminal
would obey. A listing keeps no values, only the rows that it will show; nothing here deletes anything.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from shoal.cluster.output import Exit, Format, emit_json, emit_pairs, emit_rows, err, out, say
from shoal.errors import ConfigurationError, DeadReason
from shoal.redaction import printable, redact_text
from shoal.settings import Settings
from shoal.sources.dead_letter_choice import (
    FIRST,
    NO_REASON,
    Choice,
    Selection,
    choose,
    header_text,
    moment,
    row,
    shown_milliseconds,
    shown_reason,
    shown_time,
    value_of,
)
from shoal.sources.dead_letter_log import open_dead_letters
from shoal.sources.dead_letter_state import parse_id, purged
from shoal.sources.dead_letters import DEAD_LETTER_SUFFIX
from shoal.sources.kafka import connection, ensure_topics, open_producer

FLUSH_S = 30.0
RECORDS_A_FLUSH = 1_000
BYTES_SHOWN_MAX = 4_000  # of a value, unless asked for more


# --- choosing ---------------------------------------------------------------------------------


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
            at = letter.failed_at or FIRST
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


# --- show -------------------------------------------------------------------------------------


def show_one(settings: Settings, id_: str, *, full: bool, form: Format) -> int:
    """The `dlq show` command: an exit code."""
    _checked_id(id_)
    with open_dead_letters(settings) as log:
        letter = log.letter(id_, in_full=True)
    if letter is None:
        say(f"{id_}: there is no such dead letter (any more)")
        return Exit.FAILED
    told = row(letter) | {"original_at": shown_milliseconds(letter.original_timestamp_ms)}
    if (state := letter.state) is not None:
        told |= {"state_at": shown_time(state.at), "outcome": state.outcome}
        if state.message:
            told["returned_with"] = printable(redact_text(f"{state.reason}: {state.message}"))
    headers = [(printable(name), header_text(name, value)) for name, value in letter.raw.headers]
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
