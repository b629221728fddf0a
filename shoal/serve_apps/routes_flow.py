"""Routes: the truth about the flow: how it goes, what it costs, what became of jobs, and what died."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Path, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from shoal.serve_apps import examples, examples_flow
from shoal.serve_apps.cost import CostQuery, Costs
from shoal.serve_apps.dead_letter_service import DeadLetterQuery, DeadLetterReplay, DeadLetters
from shoal.serve_apps.document_service import DocumentService
from shoal.serve_apps.problems import JsonResponse
from shoal.serve_apps.routing import NO_PARAMETERS, json_object, needs_json, refuse_unknown_of
from shoal.serve_apps.search_service import SearchService


def add(
    app: FastAPI, service: SearchService, documents: DocumentService | None, costs: Costs | None,
    dead_letters: DeadLetters | None,
) -> None:  # fmt: skip
    """Adds them to `app`."""

    @app.get(
        "/api/v1/ingest", tags=["flow"], response_class=JsonResponse, dependencies=NO_PARAMETERS,
        responses=examples.INGEST,
    )  # fmt: skip
    async def ingest() -> Response:
        """The truth about the flow: `health` (ok, degraded, down, or unknown where nothing recent is published) and
        `reasons` that say what to do; beside it what the supervisor last published (`ingest`) and its age, the
        state of the tables, and the feeds, those gone quiet first."""
        return JsonResponse(await service.ingest_status())

    @app.get("/api/v1/cost", tags=["flow"], response_class=JsonResponse, responses=examples.COST)
    async def cost(request: Request, parameters: Annotated[CostQuery, Query()]) -> Response:
        """Tokens and money spent on embedding, from the ledger: by day, collection, source, dataset, model or lane.
        `recorded_through` is when it was last written: what was spent since then is on its way, some ten seconds."""
        refuse_unknown_of(CostQuery, request)
        if costs is None:
            raise HTTPException(503, "This process keeps no ledger.")
        return JsonResponse(await costs.ask(parameters))

    @app.get(
        "/api/v1/jobs/{job_id}", tags=["flow"], response_class=JsonResponse, dependencies=NO_PARAMETERS,
        responses=examples_flow.JOB,
    )  # fmt: skip
    async def job(
        job_id: Annotated[
            str, Path(pattern=r"^[A-Za-z0-9_.:-]{1,6000}$", examples=["0190c6e2-7a52-7c3e-8d54-3f1f0a7be5c1"])
        ],
    ) -> Response:
        """What became of a command, a push or a deletion: `accepted` (durable in the log, not applied yet), `done`, or
        `failed` with `error`."""
        found = await documents.job(job_id) if documents is not None else None
        found = found or await service.job(job_id)
        if found is None:
            raise HTTPException(404, "No such job yet: it is not applied, or its id is wrong. Ask again in a moment.")
        return JsonResponse(found)

    @app.get(
        "/api/v1/dead-letters", tags=["flow"], response_class=JsonResponse, responses=examples_flow.DEAD_LETTERS
    )  # fmt: skip
    async def letters(request: Request, parameters: Annotated[DeadLetterQuery, Query()]) -> Response:
        """Messages that could not be used and why, the newest first; those that are handled only with `handled`. With
        `id` one of them, its headers and its value too. Secrets are redacted."""
        refuse_unknown_of(DeadLetterQuery, request)
        return JsonResponse(await _there(dead_letters).page(parameters))

    @app.post(
        "/api/v1/dead-letters/replay", tags=["flow"], response_class=JsonResponse, dependencies=NO_PARAMETERS,
        responses=examples_flow.REPLAYED, openapi_extra=examples_flow.REPLAY_BODY, status_code=202,
    )  # fmt: skip
    async def replay(request: Request) -> Response:
        """Send messages to their topics again, as they were; mend the cause first. Durable when it answers; what became
        of each stands in the `state` of its dead letter. Sent again it leaves out those that are on their way."""
        needs_json(request)
        asked = DeadLetterReplay.read(await json_object(request))
        return JsonResponse(await _there(dead_letters).replay(asked), 200 if asked.dry_run else 202)


def _there(dead_letters: DeadLetters | None) -> DeadLetters:
    if dead_letters is None:
        raise HTTPException(503, "This process reads no dead letters.")
    return dead_letters
