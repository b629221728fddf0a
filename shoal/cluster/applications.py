"""The applications by import path, for a Serve config: `shoal.cluster.applications:rest`, `:mcp` and `:ingest`.

Where `shoal up` is not what deploys (KubeRay, `serve deploy`, `shoal deploy`), Serve calls these builders in a task on
some node of the cluster. Settings are then those of that node's environment, so every node must have the same; from
there on they travel with the application, as ever. A builder raises ConfigurationError or TransientError with what to
do next: it stands in the application's status as its message, and whoever keeps the config applied tries again.
"""

# No `from __future__ import annotations`: Serve looks at the parameter's class to read a config's `args` strictly.

import os
import uuid
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from shoal.errors import ConfigurationError
from shoal.settings import Settings, load

DEPLOYMENTS = {"rest": ("Rest", "QueryEmbedder"), "mcp": ("Mcp",), "ingest": ("Supervisor",)}
"""What each application consists of, so that a config's overrides can be checked without starting anything."""


class QueryArguments(BaseModel):
    """`args` of rest and mcp: there are none, and a typo is refused."""

    model_config = ConfigDict(extra="forbid")


class IngestArguments(BaseModel):
    """`args` of ingest."""

    model_config = ConfigDict(extra="forbid")

    restart: str = Field("", max_length=200, description="Another value makes Serve start the application anew.")


def cluster_settings() -> Settings:
    """The settings of this node. Whoever deployed has bound Serve's port, not we: so nobody is let in without a key
    because he seems to sit on this machine. Raises ConfigurationError."""
    settings = load()
    return settings.model_copy(update={"auth": "required"}) if settings.auth == "auto" else settings


def rest(_: QueryArguments) -> Any:
    """REST and the query embedder: name it `rest`, route prefix `/`."""
    from shoal.serve_apps.apps import rest_app

    return rest_app(cluster_settings())


def mcp(_: QueryArguments) -> Any:
    """The MCP server: name it `mcp`, route prefix `/mcp`; it asks the application `rest` to embed."""
    from shoal.serve_apps.apps import mcp_app

    return mcp_app(cluster_settings())


def ingest(_: IngestArguments) -> Any:
    """The ingest side: name it `ingest`, route prefix null. Checks what `shoal up` checks before it starts.

    Each build is a new life of the service: a drain that was asked of the one before is not asked of this one."""
    settings = cluster_settings()
    if settings.is_embedded:
        raise ConfigurationError("KAFKA_BROKERS is not set: only `shoal up` brings a broker of its own")
    from shoal.cluster.runtime import check_key, choose_model
    from shoal.cluster.supervisor import ingest_app
    from shoal.embeddings.prices import Prices
    from shoal.sources.kafka import connection, ensure_topics

    place = connection(settings)
    ensure_topics(settings, place)
    model, width = choose_model(settings)
    check_key(settings, model)
    Prices.load(settings.prices)
    return ingest_app(settings, place, model, width, ingress_here(), uuid.uuid4().hex)


def ingress_here() -> str:
    """What Serve of this cluster listens with: `haproxy` or `proxy`. It was decided when its nodes were started."""
    return "haproxy" if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" else "proxy"
