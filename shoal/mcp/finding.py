"""The tools that find: search_scrapes, search, find_similar_apis, get_document.

Each answer stays within the caller's tokens: a page holds as many whole results as fit, and its cursor goes on behind
the last of them. Results are compact; the metadata that is for machines (offsets, etags) is left to REST.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from fastmcp import FastMCP
from fastmcp.tools import ToolResult
from pydantic import BeforeValidator, Field

from shoal.mcp.asking import (
    READ,
    TOKENS,
    CallAgain,
    Cursor,
    Message,
    ServiceProtocol,
    Tokens,
    Word,
    answer,
    as_object,
    asked,
)
from shoal.mcp.budget import Count, fitted, longest_prefix, size
from shoal.mcp.cleaning import clean, pick
from shoal.mcp.document_text import (
    CursorRefused,
    Place,
    cursor_at,
    first_chunk,
    joined,
    pieces,
    place_after,
    read_cursor,
)
from shoal.mcp.results import (
    TEXT_CHARS_MAX,
    DocumentFacts,
    DocumentPart,
    Found,
    FoundPage,
    IndexState,
    Passage,
    ScrapeHit,
    ScrapeHits,
    SimilarApi,
    SimilarApis,
)
from shoal.mcp.suspicion import marks

COLLECTION = "scraper"
CHUNKS_READ = 24
"""Chunks of one part of a document: some 12,000 tokens, more than any part shows."""
CHARS_PER_TOKEN_MAX = 6
"""Of a part's text no more is looked at: prose has some 4.5 characters a token, data fewer."""
SCHEMA_TOKENS_SHARE = 3  # a schema takes at most the third part of an answer that also shows text
WARNING_CHARS_MAX = 300
WARNINGS_MAX = 5
FACET_VALUES_MAX = 10
CURSOR_CHARS_MAX = 4000
ID_CHARS_MAX = 1000

_LONGER = {"content_summary": TEXT_CHARS_MAX, "id": ID_CHARS_MAX, "next_cursor": CURSOR_CHARS_MAX}
_HIT = tuple(name for name in ScrapeHit.model_fields if name != "suspicious")
_FOUND = tuple(name for name in Found.model_fields if name not in ("suspicious", "passages", "score"))
_API = tuple(name for name in SimilarApi.model_fields if name != "suspicious")
_FACTS = tuple(DocumentFacts.model_fields)

Filters = Annotated[
    dict[str, Any] | None,
    BeforeValidator(as_object),
    Field(
        description='A tree of exact conditions: {"and": [{"column": "data_source", "eq": "NYISO"}, '
        '{"column": "collected_at", "gte": "2025-01-20"}]}; also or, not, in, prefix, lt, lte, gt, is_null.'
    ),
]
Part = Literal["text", "schema", "similar"]


def add_finding(server: FastMCP, service: ServiceProtocol, count: Count) -> None:
    """Registers the four tools."""

    @server.tool(title="Search scraped files", annotations=READ, output_schema=ScrapeHits.model_json_schema())
    async def search_scrapes(
        data_source: Annotated[Word, Field(description="Publisher, any case: nyiso, caiso, entsoe.")] = None,
        start_date: Annotated[Word, Field(description="Collected at or after: 2025-01-20 or a UTC time.")] = None,
        end_date: Annotated[Word, Field(description="Collected until; a date includes that whole day.")] = None,
        query: Annotated[Message, Field(description="What to look for, in words. Leave out to filter only.")] = None,
        hash: Annotated[Word, Field(description="sha256 of a file (64 hex digits): have we got it?")] = None,
        limit: Annotated[int, Field(ge=1, le=50, description="Documents at most.")] = 10,
        data_type: Annotated[Word, Field(description="e.g. load_forecast.")] = None,
        dataset: Annotated[Word, Field(description="e.g. nyiso_load_forecast.")] = None,
        scraper_name: Word = None,
        environment: Annotated[Word, Field(description="dev, staging or prod.")] = None,
        file_format: Annotated[Word, Field(description="JSON, CSV, XML, HTML, XLSX, ZIP, ...")] = None,
        mode: Annotated[
            Literal["vector", "keyword", "hybrid"] | None,
            Field(description="With query: by meaning (default), by words, or both."),
        ] = None,
        include_superseded: Annotated[bool, Field(description="Older versions of documents too.")] = False,
        cursor: Cursor = None,
        as_of: Annotated[Word, Field(description="The index as it was: a UTC time or a commit number.")] = None,
        max_tokens: Tokens = TOKENS,
    ) -> ToolResult:
        """Find scraped files by source, date, hash, type, or by meaning with `query`.

        Answers "have we got this file", "what did NYISO publish on the 20th", "where is hourly wind output".
        Each result has where the file is (s3_path), where it came from (source_url) and, with a query, the
        matching text. For other filters, exact words or counts use `search`; to read on use get_document.
        """
        given = {
            "data_source": data_source, "start_date": start_date, "end_date": end_date, "query": query, "hash": hash,
            "data_type": data_type, "dataset": dataset, "scraper_name": scraper_name, "environment": environment,
            "file_format": file_format, "mode": mode, "include_superseded": include_superseded, "cursor": cursor,
            "as_of": as_of,
        }  # fmt: skip

        def frame_of(body: Mapping[str, Any], warnings: Sequence[str]) -> dict[str, Any]:
            shown = pick(body, ("query_type", "next_cursor", "indexed_through"), _LONGER)
            page = ScrapeHits(results=[], count=0, warnings=_said(body, warnings), as_of=_state(body), **shown)
            return page.shown()

        async def ask(most: int) -> dict[str, Any]:
            return await asked(service.scrapes_search({**given, "limit": most}))

        frame, kept = await _page(ask, limit, _hits, frame_of, max_tokens, count)
        return answer(ScrapeHits(**{**frame, "results": kept, "count": len(kept)}))

    @server.tool(title="Search a collection", annotations=READ, output_schema=FoundPage.model_json_schema())
    async def search(
        query: Annotated[Message, Field(description='In words; what stands in "quotes" must occur exactly.')] = None,
        filters: Filters = None,
        mode: Annotated[
            Literal["hybrid", "vector", "keyword"] | None,
            Field(description="By meaning and words (hybrid, the default), meaning (vector) or words (keyword)."),
        ] = None,
        collection: Annotated[str, Field(min_length=1, max_length=200)] = COLLECTION,
        limit: Annotated[int, Field(ge=1, le=50, description="Documents at most.")] = 10,
        facets: Annotated[
            list[str] | None, Field(max_length=4, description="Count the values of these columns: data_source, ...")
        ] = None,
        chunks_per_document: Annotated[int, Field(ge=1, le=5, description="Best passages shown of each.")] = 1,
        cursor: Cursor = None,
        as_of: Annotated[Word, Field(description="The index as it was: a UTC time or a commit number.")] = None,
        max_tokens: Tokens = TOKENS,
    ) -> ToolResult:
        """The general search: words and meaning together, any filter, counts by value, several passages a document.

        Use it for an exact name, code or phrase, for filters that search_scrapes lacks, or to see what there is
        (`facets` with limit=1). Columns to filter by: the resource shoal://collections/{name}/schema.
        """
        given = {
            "query": query, "filters": filters, "mode": mode, "facets": facets, "cursor": cursor, "as_of": as_of,
            "chunks_per_document": chunks_per_document,
        }  # fmt: skip
        body_of = {name: value for name, value in given.items() if value is not None}

        def frame_of(body: Mapping[str, Any], warnings: Sequence[str]) -> dict[str, Any]:
            shown = pick(body, ("mode", "next_cursor"), _LONGER) | _fresh(body)
            counts = _facets(body.get("facets"))
            said = _said(body, warnings)
            page = FoundPage(
                collection=clean(collection, 200), results=[], count=0, warnings=said, as_of=_state(body), **shown
            ).shown()
            if counts and size({**page, "facets": counts}, count) < max_tokens // 2:
                page["facets"] = counts
            return page

        async def ask(most: int) -> dict[str, Any]:
            return await asked(service.collection_search(collection, {**body_of, "limit": most}))

        frame, kept = await _page(ask, limit, _found, frame_of, max_tokens, count)
        return answer(FoundPage(**{**frame, "results": kept, "count": len(kept)}))

    @server.tool(title="Find similar APIs", annotations=READ, output_schema=SimilarApis.model_json_schema())
    async def find_similar_apis(
        endpoint: Annotated[Message, Field(description="The new API's URL or path.")] = None,
        method: Annotated[Word, Field(description="GET, POST, ...")] = None,
        auth_required: Annotated[bool | str | None, Field(description="Whether, or how, it authenticates.")] = None,
        api_spec: Annotated[
            dict[str, Any] | None,
            BeforeValidator(as_object),
            Field(description="Anything else known: parameters, response fields, units, paging, a piece of OpenAPI."),
        ] = None,
        limit: Annotated[int, Field(ge=1, le=50)] = 5,
        max_tokens: Tokens = TOKENS,
    ) -> ToolResult:
        """Find APIs that Shoal already scrapes and that look like a new one: the scrapers to copy from.

        Give what you know (at least an endpoint or an api_spec); field names and units help most.
        """
        given = {"endpoint": endpoint, "method": method, "auth_required": auth_required}
        spec = {**(api_spec or {}), **{name: value for name, value in given.items() if value is not None}}
        body = await asked(service.similar_apis(spec, limit))
        apis = [_api(api) for api in body["similar_apis"]]
        return answer(_similar_within(body, apis, max_tokens, count))

    @server.tool(title="Read a document", annotations=READ, output_schema=DocumentPart.model_json_schema())
    async def get_document(
        id: Annotated[str, Field(min_length=1, max_length=ID_CHARS_MAX, description="`id` of a search result.")],
        include: Annotated[
            list[Part] | None,
            Field(description="What to show: text, schema (fields of the data), similar (other data alike)."),
        ] = None,
        collection: Annotated[str, Field(min_length=1, max_length=200)] = COLLECTION,
        cursor: Cursor = None,
        max_tokens: Tokens = TOKENS,
    ) -> ToolResult:
        """Read one document: its metadata, the fields of its data, and its text in parts (`cursor` for the next).

        By default schema and text; include=["schema"] is the short answer to "what fields does this file have",
        include=["similar"] to "what else is like it".
        """
        return answer(await read_document(service, count, collection, id, include, cursor, max_tokens))


async def read_document(
    service: ServiceProtocol,
    count: Count,
    collection: str,
    document_id: str,
    include: Sequence[Part] | None,
    cursor: str | None,
    tokens_max: int,
) -> DocumentPart:
    """One part of a document, within `tokens_max`."""
    wanted = set(include or (("text",) if cursor else ("text", "schema")))
    body = await asked(service.document_chunks(collection, document_id, first_chunk(cursor), CHUNKS_READ))
    facts = DocumentFacts(**pick(body["document"], _FACTS, {"id": ID_CHARS_MAX}))
    sha256 = body["document"].get("sha256_hash")
    try:
        place = read_cursor(cursor, sha256)
    except CursorRefused as error:
        raise CallAgain(str(error)) from None
    part = DocumentPart(document=facts, warnings=_said(body, ()), **_fresh(body))
    found: list[str] = []
    schema = body.get("content_schema") if "schema" in wanted else None
    if schema:
        share = tokens_max // SCHEMA_TOKENS_SHARE if "text" in wanted else tokens_max
        found += marks(schema)
        _put(part, "content_schema", clean(schema, len(schema)), share, count)
    if "similar" in wanted:
        try:
            alike = await asked(service.similar_documents(collection, document_id, 5))
        except CallAgain as error:  # nothing to compare it by: the rest of the answer stands
            part.warnings.append(clean(str(error), WARNING_CHARS_MAX))
        else:
            apis = [_api(api) for api in alike]
            room = tokens_max // 2 if "text" in wanted else tokens_max
            kept, _ = fitted({**part.shown(), "next_cursor": "9" * 20}, "similar", apis, max(room, 500), count)
            part.similar = [SimilarApi(**api) for api in kept]
    if "text" in wanted:
        chunks = body["chunks"]
        following = pieces(chunks, place.chunk)
        text = joined(following, place)
        more = bool(chunks) and chunks[-1]["chunk_index"] + 1 < (body["document"].get("chunk_count") or 0)
        found += marks(text)
        # Cleaning takes characters out, so the place in the stored text is found before it.
        part.next_cursor, part.suspicious = "9" * 32, [*dict.fromkeys(found)] or None
        shown = part.shown()
        likely = text[: CHARS_PER_TOKEN_MAX * tokens_max]
        length = longest_prefix(
            likely, lambda head: _counts(shown, "text", clean(head, len(head)), count) <= tokens_max
        )
        part.text = clean(text[:length], max(length, 1))
        goes_on = length < len(text) or more
        part.next_cursor = cursor_at(place_after(following, place, length), sha256) if goes_on else None
        if goes_on and not length and text:
            part.warnings.append(
                "nothing of the text fits beside the rest: ask with include=['text'] or more max_tokens"
            )
            part.next_cursor = cursor_at(Place(place.chunk, place.offset), sha256)
        if not chunks:
            part.warnings.append("no text of this document is indexed (validation_status says why)")
    part.suspicious = [*dict.fromkeys(found)] or None
    return part


def _put(part: DocumentPart, name: str, text: str, tokens_max: int, count: Count) -> None:
    """`text` as the field `name`, cut to where the whole counts at most `tokens_max`."""
    shown = part.shown()
    length = longest_prefix(text, lambda head: _counts(shown, name, head + "…", count) <= tokens_max)
    setattr(part, name, text if length == len(text) else text[:length] + "…")


def _counts(shown: Mapping[str, Any], name: str, text: str, count: Count) -> int:
    return size({**shown, name: text}, count)


def _similar_within(
    body: Mapping[str, Any], apis: Sequence[dict[str, Any]], tokens_max: int, count: Count
) -> SimilarApis:
    def with_note(note: Sequence[str]) -> SimilarApis:
        return SimilarApis(similar_apis=[], warnings=_said(body, note), **_fresh(body))

    cut = f"only the first {len(apis)} of {len(apis)} fit into one answer; ask for fewer, or with more max_tokens"
    kept, short = fitted(with_note([cut]).shown(), "similar_apis", apis, tokens_max, count)
    notes = [cut.replace(f"first {len(apis)}", f"first {len(kept)}")] if len(kept) < len(apis) or short else []
    found = with_note(notes)
    found.similar_apis = [SimilarApi(**api) for api in kept]
    return found


async def _page(
    ask: Callable[[int], Awaitable[dict[str, Any]]],
    limit: int,
    items_of: Callable[[Mapping[str, Any]], list[dict[str, Any]]],
    frame_of: Callable[[Mapping[str, Any], Sequence[str]], dict[str, Any]],
    tokens_max: int,
    count: Count,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The frame of an answer and the results that fit into it. A cursor stands only at the end of a page, so where
    fewer fit, the page is asked again with so many."""
    while True:
        body = await ask(limit)
        items = items_of(body)
        frame = frame_of(body, ())
        kept, short = fitted(frame, "results", items, tokens_max, count)
        if len(kept) == len(items) and not short:
            return frame, kept
        if limit == 1:
            note = "this result was shortened to fit" if kept else "one result does not fit: ask with more max_tokens"
            frame = frame_of(body, [note])
            return frame, fitted(frame, "results", items, tokens_max, count)[0]
        limit = min(max(1, len(kept)), limit - 1)


def _hits(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [pick(row, _HIT, _LONGER) | _suspicious(row, "title", "content_summary") for row in body["results"]]


def _found(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for result in body["results"]:
        document, chunks = result["document"], result.get("chunks") or ()
        one = pick(document, _FOUND, _LONGER)
        if result.get("score") is not None:
            one["score"] = round(result["score"], 4)
        if chunks:
            one["passages"] = [
                pick(chunk, tuple(Passage.model_fields), {"text": TEXT_CHARS_MAX, "heading": 120}) for chunk in chunks
            ]
        texts = {"title": document.get("title"), **{str(n): chunk.get("text") for n, chunk in enumerate(chunks)}}
        found.append(one | _suspicious(texts, *texts))
    return found


def _api(api: Mapping[str, Any]) -> dict[str, Any]:
    return pick(api, _API, _LONGER) | _suspicious(api, "title", "content_summary", "api_endpoint")


def _suspicious(row: Mapping[str, Any], *names: str) -> dict[str, list[str]]:
    found = dict.fromkeys(mark for name in names if (text := row.get(name)) for mark in marks(str(text)))
    return {"suspicious": [*found]} if found else {}


def _facets(facets: Mapping[str, Any] | None) -> dict[str, dict[str, int]]:
    columns = (facets or {}).get("columns", {})
    return {
        name: {clean(str(entry["value"]), 60): entry["count"] for entry in column.get("values", ())[:FACET_VALUES_MAX]}
        for name, column in columns.items()
    }


def _said(body: Mapping[str, Any], more: Sequence[str]) -> list[str]:
    return [clean(str(warning), WARNING_CHARS_MAX) for warning in (*more, *body.get("warnings", ()))][:WARNINGS_MAX]


def _fresh(body: Mapping[str, Any]) -> dict[str, Any]:
    return pick(body.get("freshness") or {}, ("indexed_through",))


def _state(body: Mapping[str, Any]) -> IndexState | None:
    state = body.get("as_of")
    return IndexState(**pick(state, ("commit_sequence", "committed_at"))) if state else None
