"""The text of `similar-apis` again, from what the tables hold of a document, for another model.

Pure. It is `api_text` of the stored title, names, traits and fields: the fields as `content_schema` keeps them, and
without the head of the file's own prose, which no column keeps. So it may lack some words of what was embedded first;
when the document comes again it is embedded as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from shoal.documents.api_text import api_text, fitted
from shoal.documents.content import Content, FieldProfile
from shoal.documents.context import Context
from shoal.records import ApiTraits


def stored_api_text(
    document: Mapping[str, Any], first_chunk: Mapping[str, Any], count: Callable[[str], int], tokens_max: int
) -> str:
    """`document`: its metadata row; `first_chunk`: the row of its chunk 0, or {}. At most `tokens_max` by `count`."""
    content = Content(
        file_format=document["file_format"] or "",
        sections=(),
        fields=tuple(_fields(first_chunk.get("content_schema"))),
        title=document["title"],
    )
    traits = ApiTraits(
        api_endpoint=first_chunk.get("api_endpoint"),
        auth_method=first_chunk.get("auth_method"),
        rate_limit=first_chunk.get("rate_limit"),
        data_freshness=first_chunk.get("data_freshness"),
        pagination_type=first_chunk.get("pagination_type"),
    )
    context = Context(
        name=document["urn"] or "",
        content_type=document["content_type"],
        source_url=document["source_url"],
        data_source=document["data_source"] or "",
        data_type=document["data_type"] or "other",
        dataset=document["dataset"] or "",
        collected_at=document["collected_at"],
    )
    return fitted(api_text(content, traits, context), count, tokens_max)


def _fields(schema: str | None) -> list[FieldProfile]:
    try:
        entries = orjson.loads(schema)["fields"] if schema else []
        return [
            FieldProfile(str(entry["path"]), str(entry["type"]), int(entry["count"]), unit=entry.get("unit"))
            for entry in entries
        ]
    except (ValueError, KeyError, TypeError):  # what another version wrote
        return []
