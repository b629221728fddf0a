"""How the command line shows answers: status, explanations, findings (search results: searching.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from shoal.cluster.doctor import Finding
from shoal.cluster.output import Exit, Format, emit_json, emit_pairs, emit_rows, out, say
from shoal.cluster.status_view import health_of, render
from shoal.redaction import printable


def show_status(answer: Mapping[str, Any], form: Format) -> int:
    """What `/api/v1/ingest` says; FAILED where ingest is not known to be well."""
    if form is Format.json:
        emit_json(answer)
    else:
        out.print(render(answer))
    return Exit.OK if health_of(answer) == "ok" else Exit.FAILED


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
        out.print(printable(chunk["text"]), markup=False)
    return Exit.OK


def show_findings(findings: Sequence[Finding], form: Format) -> int:
    """What the doctor found; FAILED where anything must be mended."""
    rows = [asdict(finding) for finding in findings]
    if form is Format.json:
        emit_json(rows)
    else:
        emit_rows(rows, ("check", "verdict", "detail"))
    return Exit.FAILED if any(finding.verdict == "fail" for finding in findings) else Exit.OK
