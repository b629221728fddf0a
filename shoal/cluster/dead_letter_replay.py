"""`dlq replay`: which letters, sent by the Replayer (shoal.sources.dead_letter_replaying), and what is told."""

from __future__ import annotations

from typing import Any

from shoal.cluster.dead_letters import need_some, tell_left_out
from shoal.cluster.output import Exit, Format, emit_json, emit_pairs, emit_rows, err, say
from shoal.errors import TransientError
from shoal.settings import Settings
from shoal.sources.dead_letter_choice import Choice, Selection, choose, shown_reason
from shoal.sources.dead_letter_log import DeadLetterLog, open_dead_letters
from shoal.sources.dead_letter_replaying import DETAILS_MAX, Replayer, Tally
from shoal.sources.kafka import connection, ensure_topics, open_producer

SHOWN_MAX = 20


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
