"""What OpenAPI shows of the catalogue, of collections and of their documents."""

from __future__ import annotations

from typing import Any

from shoal.serve_apps.examples import DOCUMENT_ROW, FRESHNESS, ID, PROBLEM, SHA256, Responses, json_answer

NOT_IMPLEMENTED: Responses = {501: PROBLEM}
DATASETS: Responses = {
    200: json_answer(
        {
            "datasets": [
                {
                    "environment": "prod",
                    "dataset": "nyiso_load_forecast",
                    "data_source": "NYISO",
                    "documents": 8760,
                    "versions": 8790,
                    "formats": {"JSON": 8790},
                    "first_seen_at": "2024-01-20T14:30:02Z",
                    "last_seen_at": "2025-01-20T09:30:02Z",
                    "last_collected_at": "2025-01-20T09:30:00Z",
                    "silent_s": 18002.0,
                    "expected_every_s": 3600.0,
                    "overdue_after_s": 10800.0,
                    "overdue": True,
                }
            ],
            "total": 212,
            "overdue": 1,
            "at": "2025-01-20T14:29:30Z",
            "next_cursor": "WyJkYXRhc2V0cyIsInByb2QiLCJueWlzb19sb2FkX2ZvcmVjYXN0Il0",
        },
        "A page by environment and dataset; null is what is not known (yet).",
    ),
    304: {"description": "As the ETag in If-None-Match says."},
}
_COLLECTION = {
    "name": "scraper",
    "embedding_model": "openai:text-embedding-3-small",
    "width": 1536,
    "vector_dtype": "float32",
    "documents": 80211,
    "chunks": 301442,
    "freshness": FRESHNESS,
}
COLLECTIONS: Responses = {200: json_answer({"collections": [_COLLECTION], "next_cursor": None})}
COLLECTION: Responses = {200: json_answer(_COLLECTION), 404: PROBLEM}
_VERSION = {
    "version": "20250120T143000Z",
    "sha256_hash": SHA256,
    "collected_at": "2025-01-20T14:30:00Z",
    "superseded_at": None,
    "validation_status": "indexed",
    "file_size_bytes": 48211,
    "s3_path": DOCUMENT_ROW["s3_path"],
    "indexed_at": "2025-01-20T14:30:04Z",
}
DOCUMENT: Responses = {
    200: json_answer(
        {
            "document": DOCUMENT_ROW,
            "chunks": [
                {
                    "id": f"{ID}#0",
                    "chunk_index": 0,
                    "api_endpoint": "https://example.org/api/load",
                    "text": "NYISO hourly load forecast by zone, MW ...",
                }
            ],
            "next_chunk": None,
            "versions": [_VERSION],
            "freshness": FRESHNESS,
        },
        "Of an older version no chunks.",
    ),
    404: PROBLEM,
}
RAW: Responses = {
    200: {
        "description": "The bytes of a local file, as an attachment.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    307: {"description": "`Location` is a presigned URL that works for a minute."},
    403: PROBLEM,
    404: PROBLEM,
    410: PROBLEM,
}
PUSH_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {
                "schema": {"type": "string", "format": "binary"},
                "example": "Time Stamp,Zone,Load (MW)\n01/20/2025 00:00,West,1350\n",
            }
        },
    }
}
_PUSH_ID = f"push-20250120T143000Z-{SHA256}-5f1d7a84db00d2fc"
PUSHED: Responses = {
    202: json_answer(
        {
            "job_id": _PUSH_ID,
            "status": "accepted",
            "kind": "push",
            "error": None,
            "document_id": ID,
            "version": "20250120T143000Z",
            "sha256_hash": SHA256,
            "size_bytes": 54,
        },
        "Stored and announced; `Location` says where to ask.",
    )
}
_DELETION = {
    "job_id": "delete-1737383400000-cHJvZDpueWlzb19sb2FkOmxvYWQuanNvbg",
    "status": "accepted",
    "kind": "delete",
    "error": None,
}
DELETED: Responses = {
    200: json_answer(_DELETION | {"status": "done"}, "It was deleted already."),
    202: json_answer(_DELETION, "Durable in the log; `Location` says where to ask."),
    404: PROBLEM,
}
