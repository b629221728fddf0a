"""What the routes share: refusing unknown parameters, reading JSON bodies, answering with jobs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import orjson
from fastapi import Depends, Header, Path, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from shoal.serve_apps.models import InvalidParameter
from shoal.serve_apps.models import Request as Model
from shoal.serve_apps.problems import JsonResponse, problem, request_id

Collection = Annotated[str, Path(max_length=200, description="The collection: scraper.", examples=["scraper"])]
IdempotencyKey = Annotated[
    str | None, Header(max_length=200, description="The same key is the same request, sent again.")
]


def ignored(body: dict[str, Any], unknown: tuple[str, ...]) -> dict[str, Any]:
    """`body`, with a warning for each parameter that was ignored."""
    if unknown:
        body["warnings"] = [*body.get("warnings", ()), *(f"unknown parameter ignored: {name}" for name in unknown)]
    return body


def names(given: Mapping[str, object], *known: str) -> tuple[str, ...]:
    """Those that are not known: sorted, at most ten and each cut."""
    return tuple(sorted(name[:60] for name in given if name not in known))[:10]


def refuse_unknown_of(model: type[Model], request: Request) -> None:
    """Raises InvalidParameter for a parameter of the query that `model` does not have."""
    if unknown := model.unknown(request.query_params):
        raise InvalidParameter(unknown[0], "unknown parameter; see /docs for those of this call")


def _refuse_unknown(request: Request) -> None:
    if unknown := names(request.query_params):
        raise InvalidParameter(unknown[0], "unknown parameter; this call takes none in its query")


NO_PARAMETERS = [Depends(_refuse_unknown)]
"""Dependencies of a route that takes nothing in its query."""


async def json_object(request: Request, *, optional: bool = False) -> dict[str, Any]:
    """The body, whatever its content type says: `curl -d` sends JSON as a form."""
    raw = await request.body()
    if not raw.strip() and optional:
        return {}
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        text = re.sub(r"\s+", " ", str(error))[:200]
        raise HTTPException(400, f"The body is not JSON: {text}") from None
    if not isinstance(value, dict):
        raise HTTPException(400, "The body must be a JSON object.")
    return value


def needs_json(request: Request) -> None:
    """Of what changes something: a page in somebody's browser may send a form to a local service unasked, but JSON only
    after a preflight, which fails. Raises HTTPException (415)."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "Send this as Content-Type: application/json.")


def job_response(request: Request, job: dict[str, Any], done_status: int) -> Response:
    """202 while the job is on its way, `done_status` when it is done, 422 where it was refused; with its Location."""
    location = {"Location": f"/api/v1/jobs/{job['job_id']}"}
    match job["status"]:
        case "accepted":
            return JsonResponse(job, 202, location)
        case "failed":
            detail = f"It was not taken: {job.get('error')}"
            return problem(422, detail, request_id(request), kind="refused", headers=location, job=job)
        case _:
            return JsonResponse(job, done_status, location)
