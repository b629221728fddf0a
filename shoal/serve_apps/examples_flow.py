"""What OpenAPI shows of health, jobs and dead letters."""

from __future__ import annotations

from shoal.serve_apps.dead_letter_service import DeadLetterReplay
from shoal.serve_apps.examples import ID, PROBLEM, Responses, json_answer, json_body

ALIVE: Responses = {200: json_answer({"status": "ok"})}
_TEXT = {"schema": {"type": "string"}}
METRICS: Responses = {
    200: {
        "description": "Prometheus' text format.",
        "content": {"text/plain": _TEXT | {"example": "shoal_lag_records 3.0\n"}},
    }
}
_KIND = {
    "type": "urn:shoal:problem:not-found", "title": "There is nothing here", "status": 404,
    "advice": "Look at the path and the id; /docs lists the calls.",
}  # fmt: skip
PROBLEM_KINDS: Responses = {200: json_answer({"problems": [_KIND]})}
PROBLEM_KIND: Responses = {200: json_answer(_KIND), 404: PROBLEM}
JOB: Responses = {
    200: json_answer(
        {
            "job_id": "0190c6e2-7a52-7c3e-8d54-3f1f0a7be5c1",
            "status": "done",
            "kind": "fix",
            "error": None,
            "result": {"id": "0190c6e2-7a52-7c3e-8d54-3f1f0a7be5c1", "merged_into": None},
            "applied_at": "2025-01-20T14:30:04Z",
            "wait_token": "412",
        },
        "accepted, done or failed.",
    ),
    404: PROBLEM,
}
DEAD_LETTERS: Responses = {
    200: json_answer(
        {
            "dead_letters": [
                {
                    "id": "scraper-notifications_dlq/0/17",
                    "topic": "scraper-notifications",
                    "partition": 0,
                    "offset": 88120,
                    "failed_at": "2025-01-20T14:30:04.000Z",
                    "reason": "object_missing",
                    "stage": "fetch",
                    "message": "S3 s3://scrapes: NoSuchKey",
                    "retry_count": 0,
                    "replays": 0,
                    "state": "open",
                    "replay_of": None,
                    "key": ID,
                    "value_bytes": 512,
                    "stub": False,
                }
            ],
            "matching": 1,
            "handled_left_out": {"succeeded": 3},
            "next_cursor": None,
        },
        "The newest first. With `id`: `headers` and `value` beside it.",
    )
}
REPLAY_BODY = json_body(
    DeadLetterReplay.model_json_schema(), {"reason": "object_missing", "since": "2025-01-20", "limit": 100}
)
REPLAYED: Responses = {
    200: json_answer(
        {
            "replayed": 0,
            "would_be_replayed": 12,
            "replayed_too_often": 0,
            "not_replayable": [],
            "handled_left_out": {"succeeded": 3},
            "missing": [],
            "is_complete": True,
        },
        "A dry run: nothing was sent.",
    ),
    202: json_answer(
        {
            "replayed": 12,
            "would_be_replayed": 0,
            "replayed_too_often": 0,
            "not_replayable": [],
            "handled_left_out": {"replayed": 1},
            "missing": [],
            "is_complete": True,
        },
        "Sent. `is_complete` false: there are more, ask again.",
    ),
}
