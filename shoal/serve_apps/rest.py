"""REST (contracts 3): the application over the services; parsing, status codes and headers, nothing else.

`create_rest` needs no Ray: a Serve replica gives it the real services, a test services over fakes. The routes stand by
subject in routes_*.py. Every error is a problem (problems.py); every request passes the frame (request_frame.py). The
four calls that clients of an earlier index use ignore unknown parameters and list them in `warnings`; every other call
refuses them, so that a typo is not silently without effect.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from fastapi import FastAPI
from prometheus_client.core import Metric

from shoal import __version__
from shoal.serve_apps import (
    docs_page,
    examples,
    problems,
    routes_agents,
    routes_audit,
    routes_collections,
    routes_documents,
    routes_flow,
    routes_health,
    routes_scrapes,
    ui_page,
)
from shoal.serve_apps.compression import Compressed
from shoal.serve_apps.cost import Costs
from shoal.serve_apps.dead_letter_service import DeadLetters
from shoal.serve_apps.document_service import DocumentService
from shoal.serve_apps.flow_metrics import of_tables
from shoal.serve_apps.guard import Gate, Guard
from shoal.serve_apps.metrics_page import Metrics
from shoal.serve_apps.ray_mirror import RayMirror, keep
from shoal.serve_apps.request_frame import Limits, RequestFrame
from shoal.serve_apps.search_service import SearchService
from shoal.serve_apps.trail_search import TrailSearch

DESCRIPTION = """\
Search over the files that scrapers collected. Times are UTC, RFC 3339. Errors are RFC 9457 problems with a stable
`type` and a `detail` that says what to do (`/problems` lists them). Lists page by an opaque `cursor`. Every call takes
`X-Request-Id`, `traceparent` and `X-Request-Timeout` (seconds); reads with an `ETag` take `If-None-Match`."""


def create_rest(
    service: SearchService,
    *,
    stamps: bool = True,
    costs: Costs | None = None,
    documents: DocumentService | None = None,
    dead_letters: DeadLetters | None = None,
    limits: Limits | None = None,
    gate: Gate | None = None,
    audit: TrailSearch | None = None,
    mirror: RayMirror | None = None,
) -> FastAPI:
    """The application over the services, which are closed with it; without `documents` it has no calls for them.
    `stamps`: see RequestFrame. `gate`: who may do what; without one everybody may do everything. `mirror`: where
    its metrics are shown too."""

    metrics = Metrics()

    async def gathered() -> Iterable[Metric]:
        feeds, indexes = await service.measured(datetime.now(UTC))
        return [*metrics.families(), *of_tables(feeds, indexes)]

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        showing = asyncio.create_task(keep(gathered, mirror)) if mirror is not None else None
        yield
        if showing is not None:
            showing.cancel()
        for each in (service, costs, documents, dead_letters, audit):
            if each is not None:
                each.close()

    app = FastAPI(
        title="Shoal", version=__version__, description=DESCRIPTION, lifespan=lifespan, docs_url=None, redoc_url=None,
        responses={"default": examples.PROBLEM}, redirect_slashes=False,
    )  # fmt: skip
    problems.install(app)
    docs_page.install(app)
    ui_page.install(app)
    routes_health.add(app, service, metrics)
    routes_scrapes.add(app, service)
    if documents is not None:
        routes_collections.add(app, service, documents)
        routes_documents.add(app, documents)
    routes_agents.add(app, service)
    routes_flow.add(app, service, documents, costs, dead_letters)
    routes_audit.add(app, audit)
    if gate is not None:
        app.add_middleware(Guard, gate=gate)
    app.add_middleware(Compressed)
    app.add_middleware(RequestFrame, stamps=stamps, limits=limits, observe=metrics.observe)
    examples.name_components(app)
    return app
