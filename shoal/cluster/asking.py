"""How the command line shows answers: search results, status, explanations, findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from shoal.cluster.doctor import Finding
from shoal.cluster.output import Exit, Format, emit_json, emit_pairs, emit_rows, out, say

STATUS_AGE_S_MAX = 15.0  # the supervisor writes every 2 s: an older one means that it is gone
RESULT_COLUMNS = ("score", "data_source", "data_type", "dataset", "collected_at", "urn", "what")


def show_results(answer: Mapping[str, Any], form: Format) -> None:
    """A page of search results."""
    if form is Format.json:
        emit_json(answer)
        return
    rows = [result | {"what": result.get("content_summary") or result.get("title")} for result in answer["results"]]
    emit_rows(rows, RESULT_COLUMNS if any(row.get("score") for row in rows) else RESULT_COLUMNS[1:])
    more = ", more with --output json and its next_cursor" if answer.get("next_cursor") else ""
    say(f"{answer['count']} results ({answer['query_type']}, {answer['took_ms']} ms{more})")
    for warning in answer.get("warnings") or ():
        say(f"note: {warning}")


def show_status(answer: Mapping[str, Any], form: Format) -> int:
    """What `/api/v1/ingest` says; FAILED where ingest is not known to be well."""
    flow: Mapping[str, Any] = answer.get("ingest") or {}
    ok = flow.get("health") == "ok" and (answer.get("age_s") or 0) <= STATUS_AGE_S_MAX
    if form is Format.json:
        emit_json(answer)
        return Exit.OK if ok else Exit.FAILED
    for warning in answer.get("warnings") or ():
        say(f"note: {warning}")
    if not flow:
        return Exit.FAILED
    writer, embedder = flow.get("writer") or {}, flow.get("embedder") or {}
    readers: Sequence[Mapping[str, Any]] = flow.get("readers") or ()
    partitions = [{"reader": reader["name"], **partition} for reader in readers for partition in reader["partitions"]]
    lags = [partition["lag_records"] for partition in partitions]
    emit_pairs(
        {
            "health": flow.get("health"),
            "status age": f"{answer.get('age_s')} s",
            "broker": f"{flow.get('broker')} ({flow.get('cluster')})",
            "ingress": flow.get("ingress"),
            "model": flow.get("model"),
            "documents": writer.get("documents"),
            "chunks": writer.get("chunks"),
            "writer": f"epoch {writer.get('epoch')}, commit {writer.get('commit_sequence')} "
            f"at {writer.get('last_commit_at')}",
            "embedder": f"{embedder.get('texts')} texts, {embedder.get('cache_hits')} from the cache, "
            f"{embedder.get('queued_texts')} queued",
            "lag": sum(lag for lag in lags if lag is not None) if any(lag is not None for lag in lags) else None,
            "in flight": sum(reader["in_flight_items"] for reader in readers),
            "outcomes": _summed(readers, "outcomes"),
            "dead letters": _summed(readers, "dead_letters") or "none",
        }
    )
    out.print()
    emit_rows(
        partitions,
        ("topic", "partition", "reader", "lag_records", "lag_s", "in_flight", "committed_offset", "paused_because"),
    )
    for where, problem in (flow.get("problems") or {}).items():
        say(f"problem: {where}: {problem}")
    for reader in readers:
        if reader.get("last_error") and reader["in_flight_items"]:
            say(f"{reader['name']}: {reader['oldest_item_stage']}: {reader['last_error']}")
    return Exit.OK if ok else Exit.FAILED


def _summed(readers: Sequence[Mapping[str, Any]], field: str) -> str:
    total: dict[str, int] = {}
    for reader in readers:
        for name, count in reader[field].items():
            total[name] = total.get(name, 0) + count
    return ", ".join(f"{name} {count}" for name, count in sorted(total.items()))


def show_explanation(found: Mapping[str, Any], form: Format) -> int:
    """What `explain` found; FAILED for what would be a dead letter."""
    dead = found.get("dead_letter")
    if form is Format.json:
        emit_json(found)
        return Exit.FAILED if dead else Exit.OK
    simple = {name: value for name, value in found.items() if not isinstance(value, (dict, list))}
    emit_pairs(simple)
    if dead:
        say(f"would be a dead letter: {dead['reason']}: {dead['message']}")
        return Exit.FAILED
    traits = {name: value for name, value in found["traits"].items() if value and name != "evidence"}
    emit_pairs({f"trait {name}": value for name, value in traits.items()})
    for warning in found["warnings"]:
        say(f"warning: {warning}")
    for chunk in found["chunks"]:
        out.print(f"\n--- chunk {chunk['index']}: {chunk['token_count']} tokens", style="bold", markup=False)
        out.print(chunk["text"], markup=False)
    return Exit.OK


def show_findings(findings: Sequence[Finding], form: Format) -> int:
    """What the doctor found; FAILED where anything must be mended."""
    rows = [asdict(finding) for finding in findings]
    if form is Format.json:
        emit_json(rows)
    else:
        emit_rows(rows, ("check", "verdict", "detail"))
    return Exit.FAILED if any(finding.verdict == "fail" for finding in findings) else Exit.OK
