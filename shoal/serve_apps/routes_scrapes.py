"""Routes: searching scrapes, the catalogue of datasets, and looking one up by its hash."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import FastAPI, Path, Query, Request
from starlette.responses import Response

from shoal.serve_apps import catalogue, examples, examples_documents
from shoal.serve_apps.catalogue import DatasetsQuery
from shoal.serve_apps.conditional import conditional
from shoal.serve_apps.models import ScrapeSearch
from shoal.serve_apps.problems import JsonResponse
from shoal.serve_apps.routing import ignored, names, refuse_unknown_of
from shoal.serve_apps.search_service import SearchService


def add(app: FastAPI, service: SearchService) -> None:
    """Adds them to `app`."""

    @app.get("/api/v1/scrapes/search", tags=["scrapes"], response_class=JsonResponse, responses=examples.SEARCH)
    async def search(request: Request, parameters: Annotated[ScrapeSearch, Query()]) -> Response:
        """Documents by filters, newest first; with `query`, by meaning (or words, or both), best first."""
        body = await service.scrapes_search(parameters)
        return JsonResponse(ignored(body, ScrapeSearch.unknown(request.query_params)))

    @app.get(
        "/api/v1/scrapes/datasets", tags=["scrapes"], response_class=JsonResponse, responses=examples_documents.DATASETS
    )
    async def datasets(request: Request, parameters: Annotated[DatasetsQuery, Query()]) -> Response:
        """The catalogue: of each dataset how much there is, in which formats, when it was first and last seen, how
        often it should come (by its own history) and whether it is overdue. At most about a minute old (`at`)."""
        refuse_unknown_of(DatasetsQuery, request)
        body = catalogue.datasets(await service.catalogue(), parameters, datetime.now(UTC))
        return conditional(request, body, catalogue.stable(body))

    @app.get("/api/v1/scrapes/{hash}", tags=["scrapes"], response_class=JsonResponse, responses=examples.BY_HASH)
    async def by_hash(
        request: Request,
        hash: Annotated[
            str,
            Path(
                description="sha256 of the stored bytes, 64 hex digits.",
                examples=[examples.SHA256],
                json_schema_extra={"pattern": "^[0-9a-fA-F]{64}$"},
            ),
        ],
    ) -> Response:
        """Have we got the file with this sha256? The newest row with it, and how many have it."""
        return conditional(request, ignored(await service.by_hash(hash), names(request.query_params)))
