"""Routes: collections, what is in them, and their indexes. They are made by the flow: making and dropping them over
REST is refused, and says so, until the store has more than one."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.responses import Response

from shoal.serve_apps import examples, examples_documents
from shoal.serve_apps.conditional import conditional
from shoal.serve_apps.document_service import DocumentService
from shoal.serve_apps.problems import JsonResponse, problem, request_id
from shoal.serve_apps.routing import NO_PARAMETERS, Collection, json_object
from shoal.serve_apps.search_service import SearchService

NO_COLLECTIONS = (
    "Collections can't be made or dropped over REST yet: there is one, `scraper`, and the flow makes its tables. "
    "Push files into it, or erase what is in it (`shoal erase`)."
)


def add(app: FastAPI, service: SearchService, documents: DocumentService) -> None:
    """Adds them to `app`."""

    @app.get(
        "/api/v1/collections", tags=["collections"], response_class=JsonResponse, dependencies=NO_PARAMETERS,
        responses=examples_documents.COLLECTIONS,
    )  # fmt: skip
    async def collections(request: Request) -> Response:
        """Every collection: its embedding model, and how much is in it."""
        body = await documents.collections()
        plain = [{name: value for name, value in one.items() if name != "freshness"} for one in body["collections"]]
        return conditional(request, body, {"collections": plain})

    @app.get(
        "/api/v1/collections/{name}", tags=["collections"], response_class=JsonResponse, dependencies=NO_PARAMETERS,
        responses=examples_documents.COLLECTION,
    )  # fmt: skip
    async def collection(request: Request, name: Collection) -> Response:
        """One collection."""
        return conditional(request, await documents.collection(name))

    @app.put(
        "/api/v1/collections/{name}", tags=["collections"], response_class=JsonResponse, dependencies=NO_PARAMETERS,
        responses=examples_documents.NOT_IMPLEMENTED, status_code=501,
    )  # fmt: skip
    async def create_collection(request: Request, name: Collection) -> Response:
        """Not there yet: answers 501 and says what there is instead."""
        return problem(501, NO_COLLECTIONS, request_id(request))

    @app.delete(
        "/api/v1/collections/{name}", tags=["collections"], response_class=JsonResponse, dependencies=NO_PARAMETERS,
        responses=examples_documents.NOT_IMPLEMENTED, status_code=501,
    )  # fmt: skip
    async def drop_collection(request: Request, name: Collection) -> Response:
        """Not there yet: answers 501 and says what there is instead."""
        return problem(501, NO_COLLECTIONS, request_id(request))

    @app.post(
        "/api/v1/collections/{name}/search", tags=["collections"], response_class=JsonResponse,
        dependencies=NO_PARAMETERS, responses=examples.COLLECTION_SEARCH,
        openapi_extra=examples.COLLECTION_SEARCH_BODY,
    )  # fmt: skip
    async def collection_search(request: Request, name: Collection) -> Response:
        """The general search: filters as a tree, by meaning and words. Without `query`: newest first. What is unknown
        in the body is refused."""
        return JsonResponse(await service.collection_search(name, await json_object(request, optional=True)))

    @app.get(
        "/api/v1/collections/{name}/index", tags=["collections"], response_class=JsonResponse,
        dependencies=NO_PARAMETERS, responses=examples.COLLECTION_INDEX,
    )  # fmt: skip
    async def collection_index(name: Collection) -> Response:
        """The indexes as the writer last described them: rows, coverage, training, last build and verification, what is
        due and why not yet. `ok` is false where verification found something or builds fail; searches are right
        without any index, only slower."""
        return JsonResponse(await service.collection_index(name))
