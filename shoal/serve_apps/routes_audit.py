"""Routes: the audit trail."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from shoal.serve_apps.problems import JsonResponse
from shoal.serve_apps.routing import refuse_unknown_of
from shoal.serve_apps.trail_search import AUDIT, AuditQuery, TrailSearch


def add(app: FastAPI, audit: TrailSearch | None) -> None:
    """Adds it to `app`."""

    @app.get("/api/v1/audit", tags=["flow"], response_class=JsonResponse, responses=AUDIT)
    async def audit_trail(request: Request, parameters: Annotated[AuditQuery, Query()]) -> Response:
        """Who asked and who changed what, newest first: a request leaves a line within some seconds, a change before
        it is begun. `complete` is false where more was written in that time than one question reads."""
        refuse_unknown_of(AuditQuery, request)
        if audit is None:
            raise HTTPException(503, "This process keeps no audit trail.")
        return JsonResponse(await audit.ask(parameters))
