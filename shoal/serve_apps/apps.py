"""The Serve applications: `rest_app` (REST and the query embedder) and `mcp_app`, ready to be run.

Replicas hold nothing that matters: each opens the tables read-only and may come and go. Settings travel as a
pickled object in the deployment's arguments, so secrets never stand in an environment variable, a config that
the dashboard shows, or a log. Each replica builds its ASGI app itself (`__serve_build_asgi_app__`), since
neither FastAPI's nor FastMCP's can be pickled whole; what only a replica needs is imported there, so that the
process which deploys starts fast and does not fork after loading the store. Deploy `rest_app` under the name
`REST`: MCP finds the query embedder there; without it, searches by meaning degrade to keywords.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from ray import serve
from starlette.types import ASGIApp

from shoal import log_format, tracing
from shoal.serve_apps.query_embedding import QueryEmbedder, embed_through
from shoal.settings import Settings

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from shoal.serve_apps.agent_service import AgentService
    from shoal.serve_apps.document_service import DocumentService
    from shoal.serve_apps.request_frame import Limits
    from shoal.serve_apps.search_service import SearchService

REST = "rest"
"""The name under which `rest_app` must run."""

EMBEDDER = "QueryEmbedder"

WARM_S = 60.0
"""How long the query embedder may take to load the other model of a collection that has moved. The index that was left
answers meanwhile."""

LOOK_BACK_S_MIN = 11.0
"""Ray wants it longer than 10 s, its own interval of reports; ours is shorter (ray_environment)."""

HEALTH_CHECK_PERIOD_S = 1.0
"""Serve notices a dead replica only when it asks it; its default of 10 s would be two thirds of a recovery."""


def _service(settings: Settings, embedder: Any) -> AgentService:
    from shoal.serve_apps.agent_service import AgentService
    from shoal.serve_apps.collection_search import Defaults
    from shoal.serve_apps.commands import Commands
    from shoal.serve_apps.index_provider import IndexProvider
    from shoal.serve_apps.query_vectors import QueryVectors
    from shoal.serve_apps.reranking import Reranker
    from shoal.sources.kafka import open_producer
    from shoal.store.index_state import STATE as INDEX_STATE
    from shoal.store.search import SearchIndex
    from shoal.store.state_files import read_state
    from shoal.store.writing import storage_options

    vectors = QueryVectors(embed_through(embedder))

    async def warm(index: SearchIndex) -> None:
        await vectors.answers(index.model, WARM_S)  # the model is loaded before it is needed; or said why not

    return AgentService(
        IndexProvider(partial(SearchIndex.open_current, settings, storage_options(settings)), warm=warm),
        vectors,
        Commands(partial(open_producer, settings), settings.command_topic),
        partial(read_state, settings, "status.json"),
        Defaults.of(settings),
        Reranker.of(settings),
        partial(read_state, settings, INDEX_STATE),
    )


def _documents(settings: Settings, service: SearchService) -> DocumentService:
    from shoal.serve_apps.commands import Commands
    from shoal.serve_apps.document_service import DocumentService
    from shoal.serve_apps.pushing import Pusher
    from shoal.serve_apps.raw_files import RawFiles
    from shoal.sources.kafka import open_producer

    commands = Commands(partial(open_producer, settings), settings.command_topic)
    return DocumentService(service.index, service.lag, commands, RawFiles(settings), Pusher(settings))


def _seen(settings: Settings) -> None:
    """This replica's log and traces."""
    log_format.configure(settings)
    # A line for each request that was answered well would be most of the log.
    logging.getLogger("shoal.rest.access").setLevel(logging.WARNING)
    tracing.configure(settings, "shoal-query")


def _limits(settings: Settings) -> Limits:
    from shoal.serve_apps.request_frame import Limits

    return Limits(push_bytes=settings.object_bytes_max, timeout_s=settings.request_timeout_s)


class Rest:
    """A replica of REST."""

    def __init__(self, settings: Settings, embedder: Any) -> None:
        _seen(settings)
        self._settings = settings
        self._embedder = embedder

    def __serve_build_asgi_app__(self) -> ASGIApp:
        from shoal.serve_apps.cost import Costs
        from shoal.serve_apps.dead_letter_service import DeadLetters
        from shoal.serve_apps.guard import Gate
        from shoal.serve_apps.ray_mirror import RayMirror
        from shoal.serve_apps.rest import create_rest
        from shoal.serve_apps.trail_search import TrailSearch

        settings = self._settings
        service = _service(settings, self._embedder)
        return create_rest(
            service,
            stamps=False,
            costs=Costs(settings),
            documents=_documents(settings, service),
            dead_letters=DeadLetters(settings),
            limits=_limits(settings),
            gate=Gate.of(settings),
            audit=TrailSearch(settings),
            mirror=RayMirror(),
        )


class Mcp:
    """A replica of the MCP server: stateless, so any of them answers any request."""

    def __init__(self, settings: Settings) -> None:
        from shoal.serve_apps.metrics_page import Metrics
        from shoal.serve_apps.ray_mirror import keep

        _seen(settings)
        self._settings, self._metrics = settings, Metrics()
        self._showing = asyncio.create_task(keep(self._gathered))

    async def _gathered(self) -> Iterable[Metric]:
        return self._metrics.families()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        from shoal.embeddings.cl100k import count
        from shoal.mcp.server import build_server
        from shoal.serve_apps.guard import Gate
        from shoal.serve_apps.mcp_http import mcp_http

        settings = self._settings
        server = build_server(_service(settings, serve.get_deployment_handle(EMBEDDER, app_name=REST)), count=count)
        return mcp_http(
            server, stamps=False, limits=_limits(settings), gate=Gate.of(settings), observe=self._metrics.observe
        )


class MeasuredQueryEmbedder(QueryEmbedder):
    """A replica of it, which shows what it does at Ray's port."""

    def __init__(self, settings: Settings) -> None:
        from shoal.serve_apps.metrics_page import replica_name
        from shoal.serve_apps.ray_mirror import keep

        _seen(settings)
        super().__init__(settings)
        self._replica = replica_name()
        self._showing = asyncio.create_task(keep(self._gathered))

    async def _gathered(self) -> Iterable[Metric]:
        from shoal.serve_apps.embedder_metrics import families

        return families(self.statistics(), self._replica)


def rest_app(settings: Settings) -> Any:
    """REST and the query embedder: run it as `REST`, route prefix `/`."""
    return _ingress("Rest", Rest, settings).bind(settings, _embedder(settings))


def mcp_app(settings: Settings) -> Any:
    """MCP: route prefix `/mcp`."""
    return _ingress("Mcp", Mcp, settings).bind(settings)


def _embedder(settings: Settings) -> Any:
    return serve.deployment(
        name=EMBEDDER,
        max_ongoing_requests=64,  # several batches; what waits longer than its caller is of no use
        autoscaling_config={
            "min_replicas": settings.serve_replicas_min,  # without one, questions are answered by keyword
            "max_replicas": settings.serve_replicas_max,
            "target_ongoing_requests": 16,
        },
        ray_actor_options={"num_cpus": 0.1},
        max_surge_percent=100,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
    )(MeasuredQueryEmbedder).bind(settings)


def _ingress(name: str, replica: type, settings: Settings) -> Any:
    return serve.deployment(
        name=name,
        # Requests wait for the store and the embedder, so one replica holds many; those beyond are told to come
        # back (429) rather than left to time out.
        max_ongoing_requests=100,
        max_queued_requests=200,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        autoscaling_config={
            "min_replicas": settings.serve_replicas_min,
            "max_replicas": settings.serve_replicas_max,
            "target_ongoing_requests": settings.serve_target_requests,
            "upscale_delay_s": settings.serve_upscale_delay_s,
            "downscale_delay_s": settings.serve_downscale_delay_s,
            # What was asked on average in this time; no longer than what it is to decide.
            "look_back_period_s": max(LOOK_BACK_S_MIN, min(30.0, settings.serve_downscale_delay_s)),
        },
        # Shares only let Ray place it on a laptop; what bounds the work is the store's own gate.
        ray_actor_options={"num_cpus": 0.1},
        max_surge_percent=100,  # an update starts the new replica before it stops the old one
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
    )(serve.ingress()(replica))
