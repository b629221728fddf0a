"""`shoal search` beyond its simple form: filters as people type them, and answers with facets and explanations.

`--filter` is one condition (several must all hold), or a whole tree as JSON:

    year=2025   dataset=nyiso_load,caiso_load   urn=load_*   title!=null   collected_at>=2025-01-20   size!=0

Pure but for printing. Fails with UsageError that says what would be right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from shoal.cluster.output import Format, cell, emit_json, emit_rows, out, say
from shoal.errors import ConfigurationError
from shoal.redaction import printable

Json = dict[str, Any]

COLUMNS = ("score", "data_source", "data_type", "dataset", "collected_at", "urn", "what")
_CONDITION = re.compile(r"\s*(\w+)\s*(>=|<=|!=|=|>|<)\s*(.*?)\s*", re.DOTALL)
_RANGES = {">=": "gte", "<=": "lte", ">": "gt", "<": "lt"}


class UsageError(ConfigurationError):
    """An option can't be understood: exit code 2."""


def condition(text: str, types: Mapping[str, str]) -> Json:
    """`text` as a node of the filter tree. `types`: of each column, what its values are. Raises UsageError."""
    if text.lstrip().startswith("{"):
        try:
            tree = json.loads(text)
        except (ValueError, RecursionError):
            raise UsageError(f"--filter {text[:80]!r} begins like JSON, but is none") from None
        return dict(tree)
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise UsageError(f"--filter {text[:80]!r}: write column=value, column>=value, column=a,b or column=begin*")
    column, sign, value = match.groups()
    if column not in types:
        raise UsageError(f"--filter: there is no column {column[:60]!r}; known: {', '.join(sorted(types))}")
    if sign in _RANGES:
        return {"column": column, _RANGES[sign]: _value(column, value, types[column])}
    node = _equal(column, value, types[column])
    return {"not": node} if sign == "!=" else node


def _equal(column: str, value: str, kind: str) -> Json:
    if value == "null":
        return {"column": column, "is_null": True}
    if kind == "text" and value.endswith("*"):
        return {"column": column, "prefix": value[:-1]}
    values = [_value(column, part.strip(), kind) for part in value.split(",")]
    return {"column": column, "eq": values[0]} if len(values) == 1 else {"column": column, "in": values}


def _value(column: str, text: str, kind: str) -> Any:
    if kind in ("integer", "integer32"):
        try:
            return int(text)
        except ValueError:
            raise UsageError(f"--filter: {column} is a number, not {text[:60]!r}") from None
    if kind == "boolean":
        if text not in ("true", "false"):
            raise UsageError(f"--filter: {column} is true or false, not {text[:60]!r}")
        return text == "true"
    return text


def tree(asked: Mapping[str, str], filters: Sequence[str], types: Mapping[str, str]) -> Json | None:
    """One filter of the plain options (`asked`, as `Shoal.search` names them) and the conditions. Raises UsageError."""
    plain: list[Json] = []
    for name, test, column in (
        ("data_source", "eq", "data_source"), ("data_type", "eq", "data_type"), ("dataset", "eq", "dataset"),
        ("start_date", "gte", "collected_at"), ("end_date", "lte", "collected_at"), ("hash", "eq", "sha256_hash"),
    ):  # fmt: skip
        if value := asked.get(name):
            cased = {"data_source": value.upper(), "hash": value.lower()}
            plain.append({"column": column, test: cased.get(name, value)})
    parts = [*plain, *(condition(text, types) for text in filters)]
    return {"and": parts} if parts else None


def general(asked: Mapping[str, Any], filters: Sequence[str], facets: str, **flags: bool) -> Json:
    """What `Shoal.search_collection` takes. `asked`: the plain options, as `Shoal.search` takes them. Raises
    UsageError."""
    # Here, since a plain search needs neither and begins sooner without.
    from shoal.serve_apps.collection_models import LIMIT_MAX
    from shoal.store.conditions import FILTERS

    if asked["limit"] > LIMIT_MAX:
        raise UsageError(f"--limit is at most {LIMIT_MAX} with --filter, --facets, --explain or --rerank")
    body = {
        **{name: asked[name] for name in ("query", "mode", "limit", "as_of")},
        "filters": tree(asked, filters, FILTERS),
        "facets": [name.strip() for name in facets.split(",") if name.strip()],
        "highlight": True,
        # Who asks for a hash asks whether we have, or had, these bytes; of a ranking there are no older versions.
        "include_superseded": bool(asked["hash"]) and not asked["query"],
        **flags,
    }
    return {name: value for name, value in body.items() if value}


def show(answer: Mapping[str, Any], form: Format) -> None:
    """A page of results, of the general search or of that for scrapes."""
    if form is Format.json:
        emit_json(answer)
        return
    results = answer["results"]
    rows = [{**one.get("document", one), "score": one.get("score"), "what": _what(one)} for one in results]
    emit_rows(rows, COLUMNS if any(row["score"] is not None for row in rows) else COLUMNS[1:])
    for rank, one in enumerate(results, start=1):
        if one.get("explain"):
            out.print(printable(f"{rank}. {explained(one['explain'])}"), markup=False)
    facets = answer.get("facets") or {"columns": {}}
    for name, facet in facets["columns"].items():
        of = f"of {facets['of']}" if facets["exact"] else f"of the best {facets['of']}"
        counts = {cell(entry["value"]): entry["count"] for entry in facet["values"]}
        counts |= {"others": facet["others"], "none": facet["missing"]}
        shown = ", ".join(f"{value} {count}" for value, count in counts.items() if count)
        out.print(printable(f"{name} ({of}): {shown}"), markup=False)
    if timings := answer.get("timings_ms"):
        say("ms: " + ", ".join(f"{name} {value:g}" for name, value in timings.items()))
    more = ", more with --output json and its next_cursor" if answer.get("next_cursor") else ""
    mode = answer.get("mode") or answer["query_type"]
    say(f"{answer['count']} results ({mode}, {answer['took_ms']} ms{more})")
    if state := answer.get("as_of"):
        say(f"as of commit {state['commit_sequence']}, {state['committed_at'] or 'before any commit'}")
    for warning in answer.get("warnings") or ():
        say(f"note: {warning}")


def explained(one: Mapping[str, Any]) -> str:
    """Why a result stands where it does, in one line."""
    legs = [
        f"{name} #{leg['rank']} raw {leg['raw']:.3f} = {leg['normalised']:.3f} x {leg['weight']:g}"
        for name, leg in one.get("legs", {}).items()
    ]
    parts = [f"{one['fusion']}: " * bool(one.get("fusion")) + "; ".join(legs)] if legs else []
    parts += [f"is its {one['identifier']}"] if one.get("identifier") else []
    parts += [
        f"boost {name} {value['value']:.3f} x {value['weight']:g}" for name, value in one.get("boosts", {}).items()
    ]
    parts += [f"spread from #{one['mmr']['place_before']}"] if one.get("mmr") else []
    parts += [f"reranked from #{one['rerank']['rank_before']}"] if one.get("rerank") else []
    return ", ".join(parts) or "newest first"


def _what(result: Mapping[str, Any]) -> str | None:
    chunk = (result.get("chunks") or [{}])[0]
    snippet = chunk.get("snippet") or {}
    title = result.get("content_summary") or result.get("document", result).get("title")
    text: str | None = snippet.get("text") or chunk.get("text") or title
    return text
