"""REST (contracts 3): routes over the search service; parsing, status codes and headers, nothing else.

`create_rest` needs no Ray: a Serve replica gives it the real service, a test a service over fakes. Every error
is a problem (problems.py). The four calls that clients of an earlier index use ignore unknown parameters and
list them in `warnings`; every other call refuses them, so that a typo is not silently without effect.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any

import orjson
from fastapi import Depends, FastAPI, Header, Path, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from shoal import __version__
from shoal.serve_apps import docs_page, examples, problems
from shoal.serve_apps.cost import CostQuery, Costs
from shoal.serve_apps.models import FixMark, FixPatternsQuery, FixReport, InvalidParameter, ScrapeSearch
from shoal.serve_apps.problems import JsonResponse, problem, request_id
from shoal.serve_apps.search_service import SearchService

DESCRIPTION = """\
Search over the files that scrapers collected. Times are UTC, RFC 3339. Errors are RFC 9457 problems with a stable
`type` and a `detail` that says what to do. Lists page by an opaque `cursor`."""


def create_rest(service: SearchService, *, stamps: bool = True, costs: Costs | None = None) -> FastAPI:
    """The application over `service` and `costs`, which are closed with it. `stamps`: see RequestFrame."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()
        if costs is not None:
            costs.close()

    app = FastAPI(
        title="Shoal", version=__version__, description=DESCRIPTION, lifespan=lifespan, docs_url=None, redoc_url=None,
        responses={"default": examples.PROBLEM},
    )  # fmt: skip
    problems.install(app, stamps=stamps)
    docs_page.install(app)
    refuse_unknown = [Depends(_refuse_unknown)]

    @app.get("/", tags=["health"], response_class=JsonResponse, responses=examples.ROOT)
    async def root() -> Response:
        """Says who is here; probed by what is deployed."""
        return JsonResponse({"status": "ok", "service": "lancedb-query-api"})

    @app.get("/healthz", tags=["health"], response_class=JsonResponse)
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

    @app.get("/api/v1/scrapes/search", tags=["scrapes"], response_class=JsonResponse, responses=examples.SEARCH)
    async def search(request: Request, parameters: Annotated[ScrapeSearch, Query()]) -> Response:
        """Documents by filters, newest first; with `query`, by meaning (or words, or both), best first."""
        body = await service.scrapes_search(parameters)
        return JsonResponse(_ignored(body, ScrapeSearch.unknown(request.query_params)))

    @app.post(
        "/api/v1/collections/{name}/search", tags=["collections"], response_class=JsonResponse,
        dependencies=refuse_unknown, responses=examples.COLLECTION_SEARCH,
        openapi_extra=examples.COLLECTION_SEARCH_BODY,
    )  # fmt: skip
    async def collection_search(
        request: Request, name: Annotated[str, Path(max_length=200, description="The collection: scraper.")]
    ) -> Response:
        """The general search: filters as a tree, by meaning and words. Without `query`: newest first. What is unknown
        in the body is refused."""
        return JsonResponse(await service.collection_search(name, await _json_object(request, optional=True)))

    @app.get(
        "/api/v1/collections/{name}/index", tags=["collections"], response_class=JsonResponse,
        dependencies=refuse_unknown, responses=examples.COLLECTION_INDEX,
    )  # fmt: skip
    async def collection_index(
        name: Annotated[str, Path(max_length=200, description="The collection: scraper.")],
    ) -> Response:
        """The indexes as the writer last described them: rows, coverage, training, last build and verification, what is
        due and why not yet. `ok` is false where verification found something or builds fail; searches are right
        without any index, only slower."""
        return JsonResponse(await service.collection_index(name))

    @app.get("/api/v1/scrapes/{hash}", tags=["scrapes"], response_class=JsonResponse, responses=examples.BY_HASH)
    async def by_hash(
        request: Request, hash: Annotated[str, Path(description="sha256 of the stored bytes, 64 hex digits.")]
    ) -> Response:
        """Have we got the file with this sha256? The newest row with it, and how many have it."""
        return JsonResponse(_ignored(await service.by_hash(hash), _names(request.query_params)))

    @app.post(
        "/api/v1/agents/context/similar-apis", tags=["agents"], response_class=JsonResponse,
        responses=examples.SIMILAR, openapi_extra=examples.SPEC_BODY,
    )  # fmt: skip
    async def similar_apis(request: Request, limit: Annotated[int, Query(ge=1, le=50)] = 10) -> Response:
        """Scraped APIs that look like the described one. The body is anything that describes an API."""
        body = await service.similar_apis(await _json_object(request), limit)
        return JsonResponse(_ignored(body, _names(request.query_params, "limit")))

    @app.post(
        "/api/v1/agents/context/fix-patterns", tags=["agents"], response_class=JsonResponse,
        responses=examples.FIX_PATTERNS, openapi_extra=examples.FIX_PATTERNS_REQUEST,
    )  # fmt: skip
    async def fix_patterns(request: Request) -> Response:
        """Fixes that were tried for a scraper and its error. Parameters in the body or in the query."""
        given: dict[str, Any] = {**request.query_params, **await _json_object(request, optional=True)}
        body = await service.fix_patterns(FixPatternsQuery.read(given))
        return JsonResponse(_ignored(body, FixPatternsQuery.unknown(given)))

    @app.post(
        "/api/v1/agents/fixes", tags=["agents"], response_class=JsonResponse, dependencies=refuse_unknown,
        responses=examples.FIX_REPORTED, openapi_extra=examples.FIX_BODY, status_code=201,
    )  # fmt: skip
    async def report_fix(
        request: Request,
        idempotency_key: Annotated[
            str | None, Header(max_length=200, description="The same key is the same report, sent again.")
        ] = None,
    ) -> Response:
        """Report a fix: 201 once it is in the tables, 202 where it is durable in the log and will be soon."""
        _only_json(request)
        report = FixReport.read(await _json_object(request))
        job = await service.report_fix(report, idempotency_key=idempotency_key or None, actor="rest")
        return _job_response(request, job, 201)

    @app.patch(
        "/api/v1/agents/fixes/{fix_id}", tags=["agents"], response_class=JsonResponse, dependencies=refuse_unknown,
        responses=examples.FIX_MARKED, openapi_extra=examples.FIX_MARK_BODY,
    )  # fmt: skip
    async def mark_fix(
        request: Request,
        fix_id: Annotated[str, Path(max_length=200, description="`id` of a fix, as fix-patterns shows it.")],
        idempotency_key: Annotated[
            str | None, Header(max_length=200, description="The same key is the same mark, sent again.")
        ] = None,
    ) -> Response:
        """Mark a fix as wrong (or right after all), or correct its outcome. It is kept, and ranked last while it is
        wrong. 200 once it is in the tables, 202 where it is durable in the log and will be soon."""
        _only_json(request)
        mark = FixMark.read(await _json_object(request))
        job = await service.mark_fix(fix_id, mark, idempotency_key=idempotency_key or None, actor="rest")
        return _job_response(request, job, 200)

    @app.get(
        "/api/v1/ingest", tags=["flow"], response_class=JsonResponse, dependencies=refuse_unknown,
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
        if unknown := CostQuery.unknown(request.query_params):
            raise InvalidParameter(unknown[0], "unknown parameter; see /docs for those of this call")
        if costs is None:
            raise HTTPException(503, "This process keeps no ledger.")
        return JsonResponse(await costs.ask(parameters))

    @app.get("/api/v1/jobs/{job_id}", tags=["flow"], response_class=JsonResponse, dependencies=refuse_unknown)
    async def job(job_id: Annotated[str, Path(pattern=r"^[A-Za-z0-9_.:-]{1,200}$")]) -> Response:
        """What became of a command."""
        found = await service.job(job_id)
        if found is None:
            raise HTTPException(404, "No such job yet: it is not applied, or its id is wrong. Ask again in a moment.")
        return JsonResponse(found)

    examples.name_components(app)
    return app


def _only_json(request: Request) -> None:
    """Strict where something is changed: a page in somebody's browser may send a form to a local service unasked, but
    JSON only after a preflight, which fails."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "Send the body as Content-Type: application/json.")


def _job_response(request: Request, job: dict[str, Any], done: int) -> Response:
    """A command's outcome: `done`, or 202 while it is on its way, or why the writer refused it."""
    location = {"Location": f"/api/v1/jobs/{job['job_id']}"}
    match job["status"]:
        case "accepted":
            return JsonResponse(job, 202, location)
        case "failed":
            detail = f"It was not taken: {job.get('error')}"
            return problem(422, detail, request_id(request), kind="refused", headers=location, job=job)
        case _:
            return JsonResponse(job, done, location)


def _ignored(body: dict[str, Any], unknown: tuple[str, ...]) -> dict[str, Any]:
    if unknown:
        body["warnings"] = [*body.get("warnings", ()), *(f"unknown parameter ignored: {name}" for name in unknown)]
    return body


def _names(given: Mapping[str, object], *known: str) -> tuple[str, ...]:
    return tuple(sorted(name[:60] for name in given if name not in known))[:10]


def _refuse_unknown(request: Request) -> None:
    if unknown := _names(request.query_params):
        raise InvalidParameter(unknown[0], "unknown parameter; this call takes none in its query")


async def _json_object(request: Request, *, optional: bool = False) -> dict[str, Any]:
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
