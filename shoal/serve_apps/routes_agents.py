"""Routes: what agents that write and mend scrapers ask, and report."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request
from starlette.responses import Response

from shoal.serve_apps import examples
from shoal.serve_apps.models import FixMark, FixPatternsQuery, FixReport
from shoal.serve_apps.problems import JsonResponse
from shoal.serve_apps.routing import (
    NO_PARAMETERS,
    IdempotencyKey,
    ignored,
    job_response,
    json_object,
    names,
    needs_json,
)
from shoal.serve_apps.search_service import SearchService


def add(app: FastAPI, service: SearchService) -> None:
    """Adds them to `app`."""

    @app.post(
        "/api/v1/agents/context/similar-apis", tags=["agents"], response_class=JsonResponse,
        responses=examples.SIMILAR, openapi_extra=examples.SPEC_BODY,
    )  # fmt: skip
    async def similar_apis(request: Request, limit: Annotated[int, Query(ge=1, le=50)] = 10) -> Response:
        """Scraped APIs that look like the described one. The body is anything that describes an API."""
        body = await service.similar_apis(await json_object(request), limit)
        return JsonResponse(ignored(body, names(request.query_params, "limit")))

    @app.post(
        "/api/v1/agents/context/fix-patterns", tags=["agents"], response_class=JsonResponse,
        responses=examples.FIX_PATTERNS, openapi_extra=examples.FIX_PATTERNS_REQUEST,
    )  # fmt: skip
    async def fix_patterns(request: Request) -> Response:
        """Fixes that were tried for a scraper and its error. Parameters in the body or in the query."""
        given: dict[str, Any] = {**request.query_params, **await json_object(request, optional=True)}
        body = await service.fix_patterns(FixPatternsQuery.read(given))
        return JsonResponse(ignored(body, FixPatternsQuery.unknown(given)))

    @app.post(
        "/api/v1/agents/fixes", tags=["agents"], response_class=JsonResponse, dependencies=NO_PARAMETERS,
        responses=examples.FIX_REPORTED, openapi_extra=examples.FIX_BODY, status_code=201,
    )  # fmt: skip
    async def report_fix(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
        """Report a fix: 201 once it is in the tables, 202 where it is durable in the log and will be soon."""
        needs_json(request)
        report = FixReport.read(await json_object(request))
        job = await service.report_fix(report, idempotency_key=idempotency_key or None, actor="rest")
        return job_response(request, job, 201)

    @app.patch(
        "/api/v1/agents/fixes/{id}", tags=["agents"], response_class=JsonResponse, dependencies=NO_PARAMETERS,
        responses=examples.FIX_MARKED, openapi_extra=examples.FIX_MARK_BODY,
    )  # fmt: skip
    async def mark_fix(
        request: Request,
        id: Annotated[
            str, Path(max_length=200, description="`id` of a fix, as fix-patterns shows it.", examples=["0d9c"])
        ],
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Mark a fix as wrong (or right after all), or correct its outcome. It is kept, and ranked last while it is
        wrong. 200 once it is in the tables, 202 where it is durable in the log and will be soon."""
        needs_json(request)
        mark = FixMark.read(await json_object(request))
        job = await service.mark_fix(id, mark, idempotency_key=idempotency_key or None, actor="rest")
        return job_response(request, job, 200)
