"""`shoal explain FILE`: what would be extracted, chunked and embedded, without doing it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from shoal.documents.pipeline import Context, Limits, TokenBudget, extract_document
from shoal.embeddings.models import default_model_name, token_budget
from shoal.errors import BadDocument, ConfigurationError
from shoal.settings import Settings


def explain(path: Path, settings: Settings, source: str, data_type: str, dataset: str) -> dict[str, Any]:
    """The extraction of `path` as a plain structure; a document that would be a dead letter says why.

    Raises ConfigurationError where the file can't be read.
    """
    try:
        if path.stat().st_size > settings.object_bytes_max:
            raise ConfigurationError(f"{path} is larger than SHOAL_OBJECT_BYTES_MAX ({settings.object_bytes_max})")
        data = path.read_bytes()
        modified = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    model = default_model_name(settings)
    count, max_tokens, overlap = token_budget(settings, model)
    context = Context(path.name, None, None, source.upper(), data_type, dataset or path.parent.name, modified)
    limits = Limits(settings.decompressed_bytes_max, settings.chunks_per_document_max)
    found: dict[str, Any] = {
        "file": str(path),
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "model": model,
        "chunk_tokens_max": max_tokens,
    }
    try:
        extraction = extract_document(data, context, limits, TokenBudget(count, max_tokens, overlap))
    except BadDocument as error:
        return found | {"dead_letter": {"reason": error.reason, "message": error.message}}
    return found | {
        "file_format": extraction.file_format,
        "content_type": extraction.content_type,
        "charset": extraction.charset,
        "title": extraction.title,
        "warnings": list(extraction.warnings),
        "traits": asdict(extraction.traits),
        "schema": orjson.loads(extraction.schema) if extraction.schema else None,
        "api_text": extraction.api_text,
        "tokens": sum(chunk.token_count for chunk in extraction.chunks),
        "chunks": [asdict(chunk) for chunk in extraction.chunks],
    }
