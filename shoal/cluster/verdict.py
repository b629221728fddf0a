"""The verdict: from what a status shows to whether that is well, why not, and what to do about it.

Pure. Each reason has `severity` (down: nothing is indexed now; degraded: something is not as it should be, though
the rest goes on), `what`, `why`, and `do`: the next step of a person who was woken by it. What is merely slow, or
holds back because its bounds are reached, is no reason: it is shown, and it is how Shoal should behave. Nor is a
feed gone quiet: nobody mends that here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Json = dict[str, Any]
Status = Mapping[str, Any]

DOWN_AFTER_S = 15.0  # a dead actor is back within that; below, each restart would read as an outage
UNOWNED_S = 15.0  # likewise a partition between two owners (session timeout 10 s)
STUCK_S = 120.0  # the slowest single step that is still work: extraction may take 60 s, then it is embedded
STALLED_S = 10.0
CHANGE_S = 120.0  # ingest was whole again with another model after 20 to 45 s on a busy machine; after this it is not
DEAD_PER_MIN_MIN = 10.0  # fewer dead letters in a minute say nothing about the whole
RUNNING, DRAINED = "running", "drained"  # as watching.State
WELL = (RUNNING, DRAINED, "leaving", "pending")  # the last two: readers and fetch workers that follow the load

_LOGS = "see its log in the logs directory of Ray's session (in Kubernetes: the pod's)"


def health_of(reasons: list[Json]) -> str:
    """ok | degraded | down."""
    severities = {reason["severity"] for reason in reasons}
    return "down" if "down" in severities else "degraded" if severities else "ok"


def reasons_for(status: Status, running_s: float) -> list[Json]:
    """Why `status` is not well, the worst first; [] where it is. `running_s`: of the supervisor; silence from
    before its time is not held against those that are still starting."""
    problems = dict(status["problems"])
    found = [
        *_change_reasons(status, problems),
        *_actor_reasons(status, problems, running_s),
        *_problem_reasons(problems, status["refusals"]),
        *_dependency_reasons(status),
        *_partition_reasons(status, running_s),
        *_flow_reasons(status),
        *_recall_reasons(status),
        *_spend_reasons(status),
    ]
    return sorted(found, key=lambda reason: reason["severity"] != "down")


def _reason(severity: str, what: str, why: str, do: str) -> Json:
    return {"severity": severity, "what": what, "why": why, "do": do}


def _change_reasons(status: Status, problems: dict[str, str]) -> Iterator[Json]:
    """Takes from `problems` what is to be expected while every actor starts anew."""
    change: Mapping[str, Any] | None = status["changing_model"]
    if change is None:
        return
    if _is_changing(status):
        for key in [key for key in problems if key.split(" ")[0] in status["actors"] and key not in status["refusals"]]:
            del problems[key]
    yield _reason(
        "degraded", "changing model",
        f"{change['from']} to {change['to']}: ingest starts anew with it, for {change['for_s']:.0f} s by now",
        f"Searches go on; what is announced waits in the log. If it takes more than {CHANGE_S:.0f} s: {_LOGS}.",
    )  # fmt: skip


def _is_changing(status: Status) -> bool:
    """Whether actors are away because of a change of the model, and may be."""
    return status["changing_model"] is not None and status["changing_model"]["for_s"] < CHANGE_S


def _actor_reasons(status: Status, problems: dict[str, str], running_s: float) -> Iterator[Json]:
    """Takes from `problems` what it tells here."""
    if ended := problems.pop("writer ended", None):
        yield _reason(
            "down", "writer", f"it has ended: {ended}",
            "If it was fenced, another Shoal writes to these tables: stop one of the two. Then restart this one.",
        )  # fmt: skip
    if _is_changing(status):
        return
    actors: Mapping[str, Mapping[str, Any]] = status["actors"]
    reporting = {
        "the writer": status["writer"] is not None,
        "the embedder": status["embedder"] is not None,
        "every fetcher": bool(status["fetchers"]),
        "every reader": bool(status["readers"]),
    }
    groups = {"the writer": "writer", "the embedder": "embedder", "every fetcher": "fetcher", "every reader": "reader"}
    told: set[str] = set()
    for what, reports in reporting.items():
        if reports:
            continue
        blamed = [key.split(" ")[0] for key in problems]
        members = [name for name in dict.fromkeys([*actors, *blamed]) if name.startswith(groups[what])]
        told.update(members)
        silences = [_silent_s(actors.get(name, {}), running_s) for name in members]
        silent_s = min(silences, default=running_s)
        whys = [why for name in members if (why := _why(name, actors.get(name, {}), problems))]
        was_there = any(actors.get(name, {}).get("silent_s") is not None for name in members)
        drained = bool(members) and all(actors.get(name, {}).get("state") == DRAINED for name in members)
        if drained:
            yield _reason("down", what, "drained: it was ended on purpose", "Start it again: `shoal up`.")
            continue
        starting = "does not answer" if was_there else "is not there yet"
        yield _reason(
            "down" if silent_s >= DOWN_AFTER_S else "degraded",
            what,
            "; ".join(dict.fromkeys([f"{starting} (for {silent_s:.0f} s)", *whys])),
            f"It is started again by itself. If this lasts: {_LOGS}.",
        )
    for name, actor in actors.items():
        stalled_s, state = actor.get("stalled_s") or 0.0, str(actor.get("state"))
        if name in told:
            continue
        if state not in WELL:
            why = _why(name, actor, problems) or "it does not answer"
            backoff_s = actor.get("backoff_s")
            wait = f"; it is started again in {backoff_s:.0f} s" if backoff_s else ""
            yield _reason(
                "degraded", name, f"{state}: {why}{wait}",
                f"The others go on. If it keeps dying (restarts: {actor.get('restarts', 0)}): {_LOGS}.",
            )  # fmt: skip
        elif stalled_s >= STALLED_S:
            yield _reason(
                "degraded", name, f"its loop has not turned for {stalled_s:.0f} s",
                "It is replaced by itself and its work is done again. If that repeats: is the machine short of memory?",
            )  # fmt: skip


def _why(name: str, actor: Mapping[str, Any], problems: dict[str, str]) -> str:
    """What is known of why `name` is not well; those problems are told with it."""
    keys = [key for key in problems if key.split(" ")[0] == name]
    whys = [problems.pop(key) for key in keys]
    return "; ".join(dict.fromkeys([*([str(actor["reason"])] if actor.get("reason") else []), *whys]))


def _silent_s(actor: Mapping[str, Any], running_s: float) -> float:
    silent_s = actor.get("silent_s")
    return running_s if silent_s is None else min(float(silent_s), running_s)


def _problem_reasons(problems: Mapping[str, str], refusals: Mapping[str, str]) -> Iterator[Json]:
    for where, why in problems.items():
        if where in refusals:
            do = "A person must mend this: `shoal config show` and `shoal doctor` help. It is tried again by itself."
        else:
            do = f"It is tried again by itself. If this lasts: {_LOGS}."
        yield _reason("degraded", where, why, do)


def _dependency_reasons(status: Status) -> Iterator[Json]:
    for paused in status["paused"]:
        if paused["kind"] == "dependency":
            yield _reason(
                "degraded", paused["what"], f"nothing is asked of it now: {paused['because']}",
                "Mend it (credentials, quota, network); documents wait and then go on by themselves.",
            )  # fmt: skip


def _partition_reasons(status: Status, running_s: float) -> Iterator[Json]:
    if status["readers"] and not status["partitions"] and running_s >= STUCK_S:
        yield _reason(
            "degraded", "partitions", f"no reader was given any in {running_s:.0f} s",
            "Check that the topics exist and that the group is not used by somebody else (`shoal doctor`).",
        )  # fmt: skip
    for entry in status["partitions"]:
        name = f"{entry['topic']}/{entry['partition']}"
        if entry["owner"] is None:
            unowned_s = min(entry["unowned_s"], running_s)
            if unowned_s >= UNOWNED_S and not _is_changing(status):
                yield _reason(
                    "degraded", name, f"unread for {entry['unowned_s']:.0f} s (last owner: {entry['last_owner']})",
                    "Readers take over by themselves within the session timeout. If this lasts: are other members in "
                    "the consumer group (SHOAL_KAFKA_GROUP_ID), or is the topic gone?",
                )  # fmt: skip
        elif min(entry["stuck_s"], running_s) >= STUCK_S:  # also where it is paused: bounds that never empty
            yield _stuck(name, entry, status)


def _stuck(name: str, entry: Mapping[str, Any], status: Status) -> Json:
    reader: Mapping[str, Any] = next((r for r in status["readers"] if r["name"] == entry["owner"]), {})
    waits = reader.get("oldest_item_stage")
    error = reader.get("last_error") or (status["writer"] or {}).get("last_error")
    why = f"no progress for {entry['stuck_s']:.0f} s with {entry['lag_records']} messages to do"
    why += f"; the oldest waits for {waits}" if waits else ""
    why += f" ({error})" if error else ""
    do = "Mend what it waits for. If nothing is wrong there, end the reader's process (it is replaced, nothing is lost)"
    return _reason("degraded", name, why, f"{do}: pid {reader.get('pid')}.")


def _flow_reasons(status: Status) -> Iterator[Json]:
    per_min: Mapping[str, float] = status["totals"]["rates"]["per_min"]
    dead, ended = per_min.get("dead_lettered", 0.0), status["totals"]["rates"]["ended_per_min"] or 0.0
    if dead >= DEAD_PER_MIN_MIN and dead > ended / 2:
        yield _reason(
            "degraded", "documents", f"{dead:g} of {ended:g} messages per minute become dead letters",
            "`shoal dlq list` says why; once that is mended, `shoal dlq replay` sends them again.",
        )  # fmt: skip


def _recall_reasons(status: Status) -> Iterator[Json]:
    recall: Mapping[str, Any] | None = status["recall"]
    if recall is not None and recall["alarm"]:
        yield _reason(
            "degraded", "recall", f"searches by vector miss too much, or read too much: {recall['alarm']}",
            "The index no longer fits the vectors. It is trained anew by itself where a tenth of the rows or a day "
            "came since; `shoal index rebuild` does it now. `shoal recall` measures it.",
        )  # fmt: skip


def _spend_reasons(status: Status) -> Iterator[Json]:
    spend: Mapping[str, Any] | None = (status["embedder"] or {}).get("spend")
    if spend is None:
        return
    if spend["level"] == "warned":
        yield _reason(
            "degraded", "budget", spend["message"],
            "At 100 % documents wait and searches go by keywords until the day (or month) turns. `shoal cost` says "
            "what it went for; SHOAL_BUDGET_DAY_USD and SHOAL_BUDGET_MONTH_USD set it (docs/cost.md).",
        )  # fmt: skip
    elif spend["level"] == "exhausted":
        yield _reason(
            "degraded", "budget", spend["message"],
            "Nothing is lost: documents wait, searches go by keywords. `shoal cost` says what it went for.",
        )  # fmt: skip
    if spend["unpriced_models"] and (spend["limit_day_usd"] or spend["limit_month_usd"]):
        yield _reason(
            "degraded", "budget", f"it can't hold what has no price: {', '.join(spend['unpriced_models'])}",
            "Put its price into a file and name that in SHOAL_PRICES (docs/cost.md).",
        )  # fmt: skip
    if spend["last_error"]:
        yield _reason(
            "degraded", "ledger", f"what is spent is kept here, but not in the ledger: {spend['last_error']}",
            "Nothing of it is lost; it is tried again by itself. Mend what the error names.",
        )  # fmt: skip
