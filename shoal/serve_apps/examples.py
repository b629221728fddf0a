"""What OpenAPI shows of bodies and answers: examples, one per call, of the shapes in contracts 3."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from shoal.serve_apps import collection_models
from shoal.serve_apps.models import FixMark, FixPatternsQuery, FixReport

Responses = dict[int | str, dict[str, Any]]


def json_answer(example: Any, description: str = "As in the example.") -> dict[str, Any]:
    """An answer of JSON."""
    return {"description": description, "content": {"application/json": {"example": example}}}


def json_body(schema: dict[str, Any], example: Any, *, required: bool = True) -> dict[str, Any]:
    """A body of JSON."""
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": required, "content": content}}


PROBLEM: dict[str, Any] = {
    "description": "What went wrong, as an RFC 9457 problem.",
    "content": {
        "application/problem+json": {
            "example": {
                "type": "urn:shoal:problem:invalid-parameter",
                "title": "A parameter is wrong",
                "status": 422,
                "detail": "end_date: not a date (2025-01-20) or a time (2025-01-20T14:30:00Z)",
                "advice": "`parameter` names it, the detail says what is right.",
                "see": "/problems/invalid-parameter",
                "request_id": "6f0c1d9a4c2e4f5f8a5d9f9e2b1c7d3a",
                "parameter": "end_date",
            }
        }
    },
}
ROOT: Responses = {200: json_answer({"status": "ok", "service": "lancedb-query-api"})}
READY: Responses = {
    200: json_answer({"status": "ready", "tables": "open", "embedder": "ok"}, "`ready`, or `degraded`."),
    503: PROBLEM,
}
ID = "prod:nyiso_load_forecast:load_20250120_14.json"
SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
DOCUMENT_ROW = {
    "id": ID,
    "urn": "load_20250120_14.json",
    "version": "20250120T143000Z",
    "sha256_hash": SHA256,
    "data_source": "NYISO",
    "data_type": "load_forecast",
    "dataset": "nyiso_load_forecast",
    "s3_path": "s3://scrapes/nyiso/load_forecast/year=2025/month=01/day=20/load_20250120_14.json",
    "file_format": "JSON",
    "collected_at": "2025-01-20T14:30:00Z",
    "validation_status": "indexed",
}
FRESHNESS = {
    "indexed_through": "2025-01-20T14:30:04.120000Z",
    "wait_token": "412",
    "lag_records": 3,
    "lag_s": 0.4,
    "unindexed_rows": {"vector": 120, "keyword": 120},
}
_CHUNK = {
    "metadata_id": "prod:nyiso_load_forecast:load_20250120_14.json",
    "content_summary": "NYISO hourly load forecast by zone, MW ...",
    "content_schema": '{"fields": [{"path": "$.zones[].load_mw", "type": "number", "unit": "MW"}]}',
    "api_endpoint": "https://example.org/api/load",
    "auth_method": "none",
    "rate_limit": None,
    "data_freshness": "hourly",
    "pagination_type": "none",
    "score": 0.83,
    "_distance": 0.34,
}
SEARCH: Responses = {
    200: json_answer(
        {
            "results": [{**DOCUMENT_ROW, **_CHUNK}],
            "count": 1,
            "query_type": "vector",
            "next_cursor": None,
            "took_ms": 12.4,
            "indexed_through": "2025-01-20T14:30:04.120000Z",
            "freshness": FRESHNESS,
            "warnings": [],
        },
        "A page of documents; the chunk's fields only with `query`.",
    )
}
COLLECTION_SEARCH_BODY = json_body(
    collection_models.body_schema(),
    {
        "query": "hourly load forecast by zone",
        "filters": {"and": [{"column": "data_source", "eq": "NYISO"}, {"column": "collected_at", "gte": "2025-01-20"}]},
        "limit": 5,
        "facets": ["file_format"],
        "highlight": True,
    },
    required=False,
)
COLLECTION_SEARCH: Responses = {
    200: json_answer(
        {
            "results": [
                {
                    "document": DOCUMENT_ROW,
                    "score": 0.83,
                    "distance": 0.34,
                    "chunks": [
                        {
                            "id": "prod:nyiso_load_forecast:load_20250120_14.json#0",
                            "chunk_index": 0,
                            "api_endpoint": "https://example.org/api/load",
                            "text": "NYISO hourly load forecast by zone, MW ...",
                            "snippet": {
                                "text": "NYISO hourly load forecast by zone, MW ...",
                                "start": 0,
                                "spans": [[6, 12], [13, 17], [18, 26], [30, 34]],
                            },
                        }
                    ],
                }
            ],
            "count": 1,
            "mode": "hybrid",
            "next_cursor": None,
            "took_ms": 14.1,
            "freshness": FRESHNESS,
            "warnings": [],
            "facets": {
                "of": 412,
                "exact": False,
                "columns": {
                    "file_format": {
                        "values": [{"value": "JSON", "count": 400}, {"value": "CSV", "count": 12}],
                        "others": 0,
                        "missing": 0,
                    }
                },
            },
        },
        "A page of documents; score and chunks only with `query`.",
    )
}
COLLECTION_INDEX: Responses = {
    200: json_answer(
        {
            "collection": "scraper",
            "at": "2025-01-20T14:30:04Z",
            "ok": True,
            "indexes": [
                {
                    "table": "vectors",
                    "column": "content_embedding",
                    "kind": "ivf_pq",
                    "rows": 20_001,
                    "indexed": 19_880,
                    "unindexed": 121,
                    "deltas": 1,
                    "size_bytes": 4_400_000,
                    "partitions": 141,
                    "training": "9f86d081884c7d65",
                    "trained_rows": 18_000,
                    "trained_at": "2025-01-20T12:00:00Z",
                    "due": "nothing",
                    "why": "covered and trained",
                    "last_build": {"what": "train", "at": "2025-01-20T12:00:00Z", "took_s": 21.4, "outcome": "ok"},
                    "failures": 0,
                    "verified": {"after": "fold", "at": "2025-01-20T14:20:00Z", "outcome": "ok"},
                }
            ],
            "build": None,
            "requests": {},
            "freshness": FRESHNESS | {"unindexed_rows": {"vector": 121, "keyword": 121, "schema": 12, "hash": 0}},
            "warnings": [],
        },
        "`indexes` is empty, with a warning, while no writer has described them.",
    )
}
BY_HASH: Responses = {
    200: json_answer(
        {"exists": True, "data": DOCUMENT_ROW, "count": 1, "freshness": FRESHNESS | {"unindexed_rows": {"hash": 0}}},
        'Or `{"exists": false, "freshness": ...}`.',
    )
}
SPEC_BODY = json_body(
    {"type": "object", "additionalProperties": True, "minProperties": 1},
    {
        "endpoint": "https://example.org/api/v2/load?zone=WEST",
        "method": "GET",
        "auth_required": False,
        "response_fields": {"timestamp": "date-time", "zone": "string", "load": "MW"},
    },
)
SIMILAR: Responses = {
    200: json_answer(
        {
            "similar_apis": [
                {
                    "data_source": "NYISO",
                    "api_endpoint": "https://example.org/api/load",
                    "auth_method": "none",
                    "rate_limit": None,
                    "similarity_score": 0.87,
                    "content_summary": "NYISO hourly load forecast by zone, MW ...",
                    "id": DOCUMENT_ROW["id"],
                }
            ],
            "freshness": FRESHNESS | {"unindexed_rows": {"schema": 12}},
            "warnings": [],
        }
    )
}
_FIX = {
    "scraper_name": "nyiso_load_forecast",
    "error_type": "KeyError",
    "error_message": "KeyError: 'forecast'",
    "summary": "The field was renamed to load_forecast.",
    "diff": "-row['forecast']\n+row['load_forecast']",
    "outcome": "worked",
}
_FIX_SHOWN = {
    **_FIX, "id": "0d9c", "count": 3, "reported_at": "2025-01-21T08:00:00Z", "marked_wrong_by": None,
    "evidence": {
        "score": 0.919, "error": 0.93, "error_type": 1.0, "kinship": 1.0, "kin_by": ["scraper"], "worked": 0.8,
        "reports_worked": 3, "reports_failed": 0,
    },
}  # fmt: skip
FIX_BODY = json_body(FixReport.model_json_schema(), _FIX)
FIX_PATTERNS_REQUEST: dict[str, Any] = {
    **json_body(FixPatternsQuery.model_json_schema(), {"scraper_name": "nyiso_load_forecast"}, required=False),
    "parameters": [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": "Or in the body, which wins."}
        for name, schema in FixPatternsQuery.model_json_schema()["properties"].items()
    ],
}
FIX_PATTERNS: Responses = {
    200: json_answer(
        {
            "fix_patterns": [
                {
                    "scraper": "nyiso_load_forecast",
                    "fix_history": [_FIX_SHOWN],
                    "context": {"dataset": "nyiso_load_forecast", "data_source": "NYISO"},
                }
            ],
            "freshness": FRESHNESS | {"unindexed_rows": {"error": None}},
            "warnings": [],
        }
    )
}
FIX_REPORTED: Responses = {
    201: json_answer({"job_id": "0190c6e2", "status": "done", "wait_token": "412"}, "In the tables."),
    202: json_answer({"job_id": "0190c6e2", "status": "accepted"}, "Durable in the log; `Location` says where to ask."),
}
FIX_MARK_BODY = json_body(FixMark.model_json_schema(), {"wrong": True, "note": "It reads the field of another table."})
FIX_MARKED: Responses = {
    200: json_answer({"job_id": "0190c6e3", "status": "done", "wait_token": "413"}, "In the tables."),
    202: json_answer({"job_id": "0190c6e3", "status": "accepted"}, "Durable in the log; `Location` says where to ask."),
}
INGEST: Responses = {
    200: json_answer(
        {
            "health": "degraded",
            "reasons": [
                {
                    "severity": "degraded",
                    "what": "s3://scrapes",
                    "why": "nothing is asked of it now: access denied (for 41 s)",
                    "do": "Mend it (credentials, quota, network); documents wait and then go on by themselves.",
                }
            ],
            "age_s": 1.2,
            "ingest": {
                "at": "2025-01-20T14:30:04Z",
                "health": "degraded",
                "totals": {
                    "lag_records": 1204,
                    "lag_s": 41.0,
                    "in_flight_items": 256,
                    "oldest_item_s": 40.2,
                    "oldest_item_waits_for": "fetching: s3://scrapes is unwell",
                    "oldest_item_position": "scraper-notifications/0@88120",
                    "rates": {"window_s": 62.0, "ended_per_min": 12.0, "per_min": {"indexed": 12.0}},
                    "outcomes": {"indexed": 88120, "dead_lettered": 2},
                    "dead_letters": {"object_missing": 2},
                    "retries": 31,
                },
                "partitions": [
                    {
                        "topic": "scraper-notifications",
                        "partition": 0,
                        "owner": "reader-0",
                        "lag_records": 1204,
                        "lag_s": 41.0,
                        "in_flight": 256,
                        "committed_offset": 88120,
                        "paused_because": "256 documents in flight (in_flight_items_max)",
                    }
                ],
                "actors": {"reader-0": {"state": "running", "pid": 4711, "restarts": 1}},
                "writer_epoch": 3,
                "last_commit_age_s": 41.5,
            },
            "tables": {"documents": 80211, "chunks": 301442, "commit_sequence": 412},
            "feeds": {
                "at": "2025-01-20T14:29:30Z",
                "total": 212,
                "overdue": 1,
                "unknown": 8,
                "listed": [
                    {
                        "environment": "prod",
                        "dataset": "nyiso_load_forecast",
                        "last_seen_at": "2025-01-20T09:30:02Z",
                        "silent_s": 18002.0,
                        "expected_every_s": 3600.0,
                        "overdue_after_s": 10800.0,
                        "overdue": True,
                    }
                ],
            },
            "query_embedder": {"last_error": None},
            "warnings": [],
        },
        "Shortened; docs/status.md explains each field.",
    )
}


_SPENT = {
    "usd": 0.0164, "requests": 12, "failed_requests": 1, "texts": 1024, "tokens": 900_000, "failed_tokens": 80_000,
    "unpriced_tokens": 0,
}  # fmt: skip
COST: Responses = {
    200: json_answer(
        {
            "by": ["source", "dataset"],
            "since": "2025-01-20",
            "until": "2025-01-20",
            "currency": "USD",
            "rows": [{"source": "NYISO", "dataset": "nyiso_load_forecast", **_SPENT}],
            "total": _SPENT,
            "recorded_through": "2025-01-20T14:30:04Z",
            "at": "2025-01-20T14:30:09Z",
            "warnings": [],
            "budget": {
                "level": "ok",
                "spent_day_usd": 0.0164,
                "limit_day_usd": 5.0,
                "spent_month_usd": 1.25,
                "limit_month_usd": None,
            },
        },
        "Tokens are exact; `usd` leaves out `unpriced_tokens`, and is null where nothing of a row has a price.",
    ),
    422: PROBLEM,
}


def name_components(app: FastAPI) -> None:
    """Adds the parts of bodies that refer to themselves (filters) to the OpenAPI document of `app`, and says that
    answers are objects: FastAPI calls those that it does not write itself strings."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        document.setdefault("components", {}).setdefault("schemas", {}).update(collection_models.components())
        for operation in (one for path in document["paths"].values() for one in path.values()):
            for answer in operation["responses"].values():
                if "application/json" in (content := answer.get("content", {})):
                    content["application/json"]["schema"] = {"type": "object"}
        return document

    app.openapi = openapi  # type: ignore[method-assign]
