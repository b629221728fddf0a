"""How a status looks to a person: the verdict first, then what is wrong and what to do, then the figures.

Pure: an answer of `/api/v1/ingest` in, something that Rich prints out. Whatever is missing in the answer (another
version's, or none yet) is shown as missing; nothing here fails on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from shoal.cluster.output import cell, table_of

PARTITIONS_MAX, FEEDS_MAX = 24, 12  # a screenful; `-o json` has them all
LINE_CHARS_MAX = 400
STATUS_AGE_S_MAX = 15.0
_STYLES = {"ok": "bold green", "degraded": "bold yellow"}

Answer = Mapping[str, Any]


def health_of(answer: Answer) -> str:
    """ok | degraded | down | unknown. From the status itself where the server is older and does not judge."""
    if "health" in answer:
        return str(answer["health"])
    age_s = answer.get("age_s")
    return str(_flow(answer).get("health", "unknown")) if age_s is not None and age_s <= STATUS_AGE_S_MAX else "unknown"


def render(answer: Answer) -> Group:
    """The whole status."""
    return Group(*_parts(answer))


def _parts(answer: Answer) -> Iterator[RenderableType]:
    flow, health = _flow(answer), health_of(answer)
    yield Text(headline(answer), style=_STYLES.get(health, "bold red"))
    for reason in answer.get("reasons") or flow.get("reasons") or ():
        yield Text(f"! {cell(reason['what'])}: {cell(reason['why'], LINE_CHARS_MAX)}")
        yield Text(f"    -> {cell(reason['do'], LINE_CHARS_MAX)}", style="dim")
    for warning in answer.get("warnings") or ():
        yield Text(f"note: {cell(warning, LINE_CHARS_MAX)}")
    if flow:
        yield Text()
        yield from _pairs(_figures(answer, flow))
        yield from _partitions(flow)
        yield from _actors(flow)
    yield from _feeds(answer.get("feeds"))


def headline(answer: Answer) -> str:
    """One line: how it is, and the few figures by which one sees how much."""
    flow, health = _flow(answer), health_of(answer)
    totals, quiet = flow.get("totals") or {}, (answer.get("feeds") or {}).get("overdue")
    rate = (totals.get("rates") or {}).get("ended_per_min")
    parts = [
        _number(len(answer.get("reasons") or ()), "reason") + " below" if health != "ok" else "",
        f"lag {totals.get('lag_records')} messages" if totals.get("lag_records") is not None else "",
        f"oldest {span(totals['lag_s'])}" if totals.get("lag_s") else "",
        f"{rate:g} per minute" if rate is not None else "",
        f"{_number(quiet, 'feed')} gone quiet" if quiet else "",
        f"as of {span(answer.get('age_s'))} ago" if answer.get("age_s") is not None else "",
    ]
    return ", ".join([health.upper(), *filter(None, parts)])


def _figures(answer: Answer, flow: Answer) -> dict[str, Any]:
    totals, writer, embedder = flow.get("totals") or {}, flow.get("writer") or {}, flow.get("embedder") or {}
    rates = totals.get("rates") or {}
    oldest = "none"
    if totals.get("oldest_item_s") is not None:
        where = totals.get("oldest_item_position") or totals.get("oldest_item_reader")
        oldest = f"{span(totals['oldest_item_s'])}, {where}: {totals.get('oldest_item_waits_for')}"
        oldest += f" ({totals['oldest_item_error']})" if totals.get("oldest_item_error") else ""
    held_max = totals.get("held_bytes_max")
    held = f", {size(totals.get('held_bytes'))} of {size(held_max)}" if held_max else ""
    dead = _counts(totals.get("dead_letters"))
    lag = f"{cell(totals.get('lag_records'))} messages, {span(totals.get('lag_s'))}"
    if unknown := totals.get("lag_unknown_partitions"):
        lag += f"; not known of {unknown} partitions"
    paused = [f"{one['what']}: {one['because']}" for one in flow.get("paused") or () if one["kind"] != "partition"]
    figures: dict[str, Any] = {
        "lag": lag,
        "in flight": f"{cell(totals.get('in_flight_items'))} documents{held}",
        "oldest": oldest,
        "per minute": _counts(rates.get("per_min")) or "not known yet",
        "outcomes": _counts(totals.get("outcomes")) or "none",
        "dead letters": f"{dead} (`shoal dlq list`)" if dead else "none",
        "retries": totals.get("retries"),
        "counted since": totals.get("since"),
        "writer": f"epoch {cell(flow.get('writer_epoch'))}, last commit {span(flow.get('last_commit_age_s'))} ago "
        f"(number {cell(writer.get('commit_sequence'))}), {cell(writer.get('queued'))} queued, "
        f"{cell(writer.get('maintenance'))}",
        "embedder": _embedder(embedder),
        **_half_price(embedder.get("half_price") or {}),
        "tables": f"{cell(writer.get('documents'))} documents, {cell(writer.get('chunks'))} chunks",
        "place": f"broker {flow.get('broker')} ({flow.get('cluster')}), model {flow.get('model')}, "
        f"ingress {flow.get('ingress')}",
    }  # fmt: skip
    if scaling := _scaling(flow):
        figures["scaling"] = scaling
    if drain := flow.get("drain"):
        figures["drain"] = ", ".join(f"{name} {cell(value)}" for name, value in drain.items())
    if paused:
        figures["paused"] = "; ".join(paused)
    if error := (answer.get("query_embedder") or {}).get("last_error"):
        figures["query embedder"] = f"last error: {error}"
    return figures


def _scaling(flow: Answer) -> str:
    """Of each pool whose number is not fixed: what is wanted, what is there, and why."""
    parts = []
    for pool, of in (flow.get("scaling") or {}).items():
        if of.get("max") != of.get("min"):
            there = [f"{of[what]} {what}" for what in ("working", "pending", "leaving") if of.get(what)]
            wanted = f"{cell(of.get('wanted'))} {pool} wanted ({cell(of.get('min'))} to {cell(of.get('max'))})"
            parts.append(", ".join([wanted, *there]) + f": {cell(of.get('why'))}")
    return "; ".join(parts)


def _embedder(of: Answer) -> str:
    """What was asked, how much of it cost nothing, what waits in which lane, and how the provider is."""
    texts, hits, reused = (of.get(name) or 0 for name in ("texts", "cache_hits", "reused"))
    parts = [f"{cell(of.get('texts'))} texts"]
    if texts:
        parts[0] += f", {(hits + reused) / texts:.0%} not paid for ({hits} from the cache"
        parts[0] += f", {reused} from the tables)" if reused else ")"
    if requests := of.get("requests"):
        failed = of.get("failed_requests") or 0
        parts.append(f"{requests} requests" + (f", {failed} failed" if failed else ""))
    lanes = ", ".join(f"{count} {lane}" for lane, count in (of.get("queued_by_lane") or {}).items() if count)
    parts.append(f"{cell(of.get('queued_texts'))} queued" + (f" ({lanes})" if lanes else ""))
    if of.get("running_max"):
        parts.append(f"{of.get('running')} of {of['running_max']} requests under way")
    if of.get("unwell_s"):
        parts.append(f"unwell for {span(of['unwell_s'])}")
    if of.get("last_error"):
        parts.append(f"last error: {of['last_error']}")
    return "; ".join(parts)


def _half_price(of: Answer) -> dict[str, str]:
    """The row of jobs at half price, where there are any."""
    if not of:
        return {}
    parts = [f"{of['embedded_texts']} of {of['texts']} texts", f"{of['unfinished']} of {of['jobs']} jobs unfinished"]
    if of.get("parts"):
        parts.append("parts: " + ", ".join(f"{count} {phase}" for phase, count in of["parts"].items()))
    if of.get("saved_usd") is not None:
        parts.append(f"${of['saved_usd']:.2f} saved")
    if of.get("missing_texts"):
        parts.append(f"{of['missing_texts']} left to the full price")
    return {"half price": "; ".join([*parts, f"since {of['oldest_since'][:16]}", *map(str, of.get("notes") or ())])}


def _partitions(flow: Answer) -> Iterator[RenderableType]:
    entries: Sequence[Answer] = flow.get("partitions") or ()
    if not entries:
        return
    # What needs eyes first: nobody's, then stuck, then behind.
    shown = sorted(entries, key=lambda e: (e["owner"] is not None, -(e["stuck_s"] or 0), -(e["lag_records"] or 0)))
    rows = [
        {
            "partition": f"{entry['topic']}/{entry['partition']}",
            "owner": entry["owner"] or f"nobody for {span(entry['unowned_s'])}",
            "lag": entry["lag_records"],
            "lag time": span(entry["lag_s"]),
            "in flight": entry["in_flight"],
            "committed": entry["committed_offset"],
            "no progress": span(entry["stuck_s"]) if entry["stuck_s"] else "-",
            "paused because": entry["paused_because"],
        }
        for entry in shown[:PARTITIONS_MAX]
    ]
    yield Text()
    yield table_of(rows, tuple(rows[0]))
    if len(entries) > PARTITIONS_MAX:
        yield Text(f"... and {len(entries) - PARTITIONS_MAX} more partitions, all with less to do (-o json)")


def _actors(flow: Answer) -> Iterator[RenderableType]:
    actors: Mapping[str, Answer] = flow.get("actors") or {}
    rows = [
        {
            "actor": name,
            "state": actor.get("state"),
            "pid": actor.get("pid"),
            "up": span(actor.get("uptime_s")),
            "restarts": actor.get("restarts"),
            "last restart": actor.get("last_restart_at"),
            "silent": span(actor["silent_s"]) if actor.get("silent_s") else "-",
            "last ended because": actor.get("reason"),
        }
        for name, actor in actors.items()
    ]
    if rows:
        yield Text()
        yield table_of(rows, tuple(rows[0]))


def _feeds(feeds: Answer | None) -> Iterator[RenderableType]:
    yield Text()
    if feeds is None:
        yield Text("feeds: not known yet")
        return
    quiet = [feed for feed in feeds["listed"] if feed["overdue"]]
    known = feeds["total"] - feeds["unknown"]
    yield Text(f"feeds: {feeds['overdue']} of {known} gone quiet ({feeds['unknown']} more are too new to tell)")
    rows = [
        {
            "dataset": feed["dataset"]
            if feed["environment"] == "prod"
            else f"{feed['dataset']} ({feed['environment']})",
            "silent for": span(feed["silent_s"]),
            "usually every": span(feed["expected_every_s"]),
            "last seen": feed["last_seen_at"],
        }
        for feed in quiet[:FEEDS_MAX]
    ]
    if rows:
        yield table_of(rows, tuple(rows[0]))
    if feeds["overdue"] > len(rows):
        yield Text(f"... and {feeds['overdue'] - len(rows)} more")


def _pairs(figures: Mapping[str, Any]) -> Iterator[Text]:
    width = max(map(len, figures))
    for name, value in figures.items():
        yield Text(f"{name:<{width}}  {cell(value, LINE_CHARS_MAX)}")


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _counts(counts: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {cell(count)}" for name, count in sorted((counts or {}).items()))


def _flow(answer: Answer) -> Answer:
    flow = answer.get("ingest")
    return flow if isinstance(flow, Mapping) else {}


def span(seconds: Any) -> str:
    """A length of time as one says it; '-' where it is not known."""
    if not isinstance(seconds, (int, float)):
        return "-"
    for unit, length_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.3g} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def size(count_bytes: Any) -> str:
    """Bytes as one says them."""
    if not isinstance(count_bytes, (int, float)):
        return "-"
    return f"{count_bytes / 1024**2:.1f} MiB" if count_bytes >= 1024**2 else f"{count_bytes / 1024:.0f} KiB"
