"""The tools for scrapers that fail: get_fix_patterns and report_fix, the two halves of one loop.

What an agent reports is what the next one finds; so a report that proved wrong is marked, not lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastmcp import FastMCP
from fastmcp.tools import ToolResult
from pydantic import Field

from shoal.mcp.asking import READ, TOKENS, WRITE, Message, ServiceProtocol, Tokens, Word, answer, asked
from shoal.mcp.budget import Count, size
from shoal.mcp.cleaning import FIELD_CHARS_MAX, clean, pick
from shoal.mcp.results import Evidence, Fix, FixPattern, FixPatterns, FixReceipt
from shoal.mcp.suspicion import marks

_CUTS = (16_000, 8_000, 4_000, 2_000, 1_000, 500, 250, 120, 60)
"""Characters of a diff, tried in turn; summaries and messages get a half and a quarter of it."""
_FIX = tuple(name for name in Fix.model_fields if name not in ("suspicious", "evidence"))
_TEXTS = ("summary", "diff", "error_message")


def add_mending(server: FastMCP, service: ServiceProtocol, count: Count) -> None:
    """Registers the two tools."""

    @server.tool(title="Get fixes that were tried", annotations=READ, output_schema=FixPatterns.model_json_schema())
    async def get_fix_patterns(
        scraper_name: Annotated[str, Field(min_length=1, max_length=200, description="The scraper that fails.")],
        error_type: Annotated[Word, Field(description="e.g. HTTPError, KeyError, timeout.")] = None,
        error_message: Annotated[Message, Field(description="The message; similar ones are found too.")] = None,
        limit: Annotated[int, Field(ge=1, le=20)] = 5,
        max_tokens: Tokens = TOKENS,
    ) -> ToolResult:
        """What was tried before when this scraper, or one like it, failed this way, and whether it worked.

        Best first, by likeness of the error, kinship of the scrapers and how often it worked; `evidence` shows each
        part. Diffs come from earlier reports: read them as hints, review them before applying, and never apply one
        that is marked wrong. Afterwards tell what happened with report_fix.
        """
        given = {"scraper_name": scraper_name, "error_type": error_type, "error_message": error_message, "limit": limit}
        return answer(patterns_within(await asked(service.fix_patterns(given)), max_tokens, count))

    @server.tool(title="Report a fix", annotations=WRITE, output_schema=FixReceipt.model_json_schema())
    async def report_fix(
        scraper_name: Annotated[str, Field(min_length=1, max_length=200)],
        error_type: Annotated[str, Field(min_length=1, max_length=200, description="e.g. KeyError.")],
        summary: Annotated[
            str, Field(min_length=1, max_length=4000, description="What was wrong and what you changed.")
        ],
        outcome: Annotated[Literal["worked", "failed"], Field(description="A fix that failed is worth knowing too.")],
        error_message: Annotated[
            Message, Field(description="The message, so that it is found by similar ones.")
        ] = None,
        diff: Annotated[str | None, Field(max_length=64_000, description="The change, as a unified diff.")] = None,
        wrong_fix_id: Annotated[
            Word, Field(description="`id` of an earlier fix that proved wrong: it is ranked last, with your summary.")
        ] = None,
    ) -> ToolResult:
        """Record how a scraper's error was fixed, or what did not help, for the next one who meets it.

        The same error and diff reported again count as one fix that was tried again; the same report sent twice on a
        day is one report. Leave out keys and passwords.
        """
        report = {
            "scraper_name": scraper_name, "error_type": error_type, "error_message": error_message,
            "summary": summary, "diff": diff, "outcome": outcome,
        }  # fmt: skip
        given = {name: value for name, value in report.items() if value is not None}
        body = await asked(service.report_fix(given, idempotency_key=None, actor="mcp"))
        receipt = FixReceipt(job_id=body["job_id"], status=body["status"])
        if wrong_fix_id:
            mark = {"wrong": True, "note": summary}
            marked = await asked(service.mark_fix(wrong_fix_id, mark, idempotency_key=None, actor="mcp"))
            receipt.mark_job_id, receipt.mark_status = marked["job_id"], marked["status"]
            if marked.get("error"):
                receipt.warnings.append(clean(f"the mark was not taken: {marked['error']}", FIELD_CHARS_MAX))
        return answer(receipt)


def patterns_within(body: Mapping[str, Any], tokens_max: int, count: Count) -> FixPatterns:
    """The fixes: all of them with their texts cut, rather than some whole; the last go where not even that fits."""
    fresh = pick(body.get("freshness") or {}, ("indexed_through",))
    warnings = [clean(str(warning), FIELD_CHARS_MAX) for warning in body.get("warnings", ())][:5]
    marked = {id(fix): _marks(fix) for pattern in body["fix_patterns"] for fix in pattern["fix_history"]}
    for cut in _CUTS:
        found = FixPatterns(fix_patterns=_patterns(body, cut, marked), warnings=warnings, **fresh)
        if size(found.shown(), count) <= tokens_max:
            return found
    dropped = 0
    while size(found.shown(), count) > tokens_max and found.fix_patterns:
        last = found.fix_patterns[-1]
        if last.fix_history:
            last.fix_history.pop()
            dropped += 1
        if not last.fix_history:
            found.fix_patterns.pop()
        found.warnings = [*warnings, f"{dropped} more did not fit: ask with a smaller limit or more max_tokens"]
    return found


def _patterns(body: Mapping[str, Any], cut: int, marked: Mapping[int, list[str]]) -> list[FixPattern]:
    longer = {"diff": cut, "summary": max(60, cut // 2), "error_message": max(60, cut // 4), "id": 200}
    return [
        FixPattern(
            scraper=clean(pattern["scraper"], FIELD_CHARS_MAX),
            fix_history=[_fix(fix, longer, marked[id(fix)]) for fix in pattern["fix_history"]],
            context=pick(pattern["context"], tuple(pattern["context"])) if pattern.get("context") else None,
        )
        for pattern in body["fix_patterns"]
    ]


def _marks(row: Mapping[str, Any]) -> list[str]:
    return [*dict.fromkeys(mark for name in _TEXTS if row.get(name) for mark in marks(str(row[name])))]


def _fix(row: Mapping[str, Any], longer: Mapping[str, int], marked: list[str]) -> Fix:
    evidence = row.get("evidence")
    return Fix(
        **pick(row, _FIX, longer),
        evidence=Evidence(**{name: evidence[name] for name in Evidence.model_fields if name in evidence})
        if evidence
        else None,
        suspicious=marked or None,
    )
