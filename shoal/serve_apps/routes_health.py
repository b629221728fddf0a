"""Routes: who is here, whether it is well, what it measures, and what its problems mean."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated

from fastapi import FastAPI, Path, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from shoal.serve_apps import examples, examples_flow
from shoal.serve_apps.metrics_page import CONTENT_TYPE, Metrics
from shoal.serve_apps.problem_kinds import KINDS, Kind
from shoal.serve_apps.problems import JsonResponse, problem, request_id
from shoal.serve_apps.routing import NO_PARAMETERS
from shoal.serve_apps.search_service import SearchService


def add(app: FastAPI, service: SearchService, metrics: Metrics) -> None:
    """Adds them to `app`."""

    @app.get("/", tags=["health"], response_class=JsonResponse, responses=examples.ROOT)
    async def root() -> Response:
        """Says who is here; probed by what is deployed."""
        return JsonResponse({"status": "ok", "service": "lancedb-query-api"})

    @app.get("/healthz", tags=["health"], response_class=JsonResponse, responses=examples_flow.ALIVE)
    async def healthz() -> Response:
        """The process answers."""
        return JsonResponse({"status": "ok"})

    @app.get("/readyz", tags=["health"], response_class=JsonResponse, responses=examples.READY)
    async def readyz(request: Request) -> Response:
        """Tables are open; `degraded` while queries fall back to keywords; 503 while there are no tables yet."""
        state = await service.readiness()
        if state["status"] == "starting":
            return problem(503, state["tables"], request_id(request), kind="starting", headers={"Retry-After": "1"})
        return JsonResponse(state)

    @app.get("/metrics", tags=["health"], response_class=Response, responses=examples_flow.METRICS)
    async def measured() -> Response:
        """Prometheus' text format: requests of the replica that answers (label `replica`), and the flow as the
        supervisor last published it. docs/metrics.md lists them."""
        now = datetime.now(UTC)
        status, (feeds, indexes) = await asyncio.gather(service.published(), service.measured(now))
        page = await asyncio.to_thread(metrics.page, status, now, feeds=feeds, indexes=indexes)
        return Response(page, headers={"Content-Type": CONTENT_TYPE})

    @app.get(
        "/problems", tags=["health"], response_class=JsonResponse, dependencies=NO_PARAMETERS,
        responses=examples_flow.PROBLEM_KINDS,
    )  # fmt: skip
    async def problem_kinds() -> Response:
        """Every kind of problem that calls answer with."""
        return JsonResponse({"problems": [_shown(kind) for kind in KINDS.values()]})

    @app.get(
        "/problems/{name}", tags=["health"], response_class=JsonResponse, dependencies=NO_PARAMETERS,
        responses=examples_flow.PROBLEM_KIND,
    )  # fmt: skip
    async def problem_kind(
        name: Annotated[str, Path(max_length=100, description="The end of a problem's type.", examples=["not-found"])],
    ) -> Response:
        """What one kind of problem means, and what to do about it."""
        if name not in KINDS:
            raise HTTPException(404, "There is no such kind of problem; /problems lists them.")
        return JsonResponse(_shown(KINDS[name]))


def _shown(kind: Kind) -> dict[str, object]:
    return {
        "type": f"urn:shoal:problem:{kind.name}", "title": kind.title, "status": kind.status, "advice": kind.advice,
    }  # fmt: skip
