"""A Serve config checked strictly: Ray's own schema takes a misspelt key and leaves it out without a word.

`problems` looks at every key against Ray's models, parses what those leave a plain mapping (autoscaling), and finds
each import path, its arguments and the deployments that overrides name in our code. It starts nothing.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from shoal.errors import ConfigurationError

NAMES_SHOWN_MAX = 12


def read_config(path: Path) -> dict[str, Any]:
    """The mapping in a YAML (or JSON) file. Raises ConfigurationError."""
    import yaml  # type: ignore[import-untyped]  # Ray brings it

    try:
        found = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"{path} can't be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no YAML: {str(error)[:300]}") from None
    if not isinstance(found, dict) or not isinstance(found.get("applications"), list) or not found["applications"]:
        raise ConfigurationError(f"{path} is no Serve config: it needs a list `applications`")
    return found


def problems(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with it, each with its place; empty where it may be applied. Imports Ray Serve."""
    from ray.serve import schema
    from ray.serve.config import AutoscalingConfig, BackpressureConfig

    nested: dict[type[BaseModel], dict[str, type[BaseModel]]] = {
        schema.ServeDeploySchema: {
            "http_options": schema.HTTPOptionsSchema,
            "grpc_options": schema.gRPCOptionsSchema,
            "logging_config": schema.LoggingConfig,
            "tracing_config": schema.TracingConfig,
            "applications": schema.ServeApplicationSchema,
        },
        schema.ServeApplicationSchema: {
            "deployments": schema.DeploymentSchema,
            "logging_config": schema.LoggingConfig,
        },
        schema.DeploymentSchema: {
            "autoscaling_config": AutoscalingConfig,
            "backpressure_config": BackpressureConfig,
            "ray_actor_options": schema.RayActorOptionsSchema,
            "logging_config": schema.LoggingConfig,
        },
    }

    def keys(model: type[BaseModel], value: Any, place: str) -> Iterator[str]:
        if not isinstance(value, Mapping):
            return  # the schema says of what kind it must be
        for key, part in value.items():
            here = f"{place}.{key}" if place else str(key)
            if key not in model.model_fields:
                known = ", ".join(sorted(model.model_fields)[:NAMES_SHOWN_MAX])
                yield f"{here}: there is no such key; known: {known}, ..."
                continue
            below = nested.get(model, {}).get(str(key))
            if below is None:
                continue
            for number, item in enumerate(part if isinstance(part, list) else [part]):
                yield from keys(below, item, f"{here}[{number}]" if isinstance(part, list) else here)
            if below is AutoscalingConfig and isinstance(part, Mapping):
                yield from _parsed(AutoscalingConfig, part, here)

    found = list(keys(schema.ServeDeploySchema, config, ""))
    found += _parsed(schema.ServeDeploySchema, config, "")
    for number, application in enumerate(config.get("applications") or ()):
        if isinstance(application, Mapping):
            found += _application(application, f"applications[{number}]")
    return found


def _parsed(model: type[BaseModel], value: Mapping[str, Any], place: str) -> list[str]:
    try:
        model.model_validate(value)
    except ValidationError as error:
        return [
            ".".join(filter(None, (place, *(str(part) for part in one["loc"])))) + f": {one['msg']}"
            for one in error.errors(include_url=False, include_input=False)
        ]
    except (ValueError, TypeError) as error:  # Ray's own validators raise what they like
        return [f"{place or 'config'}: {error}"]
    return []


def _application(application: Mapping[str, Any], place: str) -> Iterator[str]:
    route = application.get("route_prefix", "/")
    if isinstance(route, str) and route != "/" and route.endswith("/"):
        yield f"{place}.route_prefix: {route!r} must not end with a slash"
    path = application.get("import_path")
    if not isinstance(path, str):
        return
    try:
        builder = _builder(path)
    except (ImportError, AttributeError, ValueError) as error:
        yield f"{place}.import_path: {path!r} can't be imported: {error}"
        return
    parameters = list(inspect.signature(builder).parameters.values())
    model = parameters[0].annotation if parameters else None
    if inspect.isclass(model) and issubclass(model, BaseModel):
        yield from _parsed(model, application.get("args") or {}, f"{place}.args")
    yield from _ours(application, path, place)


def _ours(application: Mapping[str, Any], path: str, place: str) -> Iterator[str]:
    from shoal.cluster.applications import DEPLOYMENTS

    module, _, name = path.rpartition(":") if ":" in path else path.rpartition(".")
    if module != "shoal.cluster.applications":
        return
    if application.get("name") != name:
        yield f"{place}.name: {path} must run under the name {name!r}: others find it by that"
    for deployment in application.get("deployments") or ():
        if isinstance(deployment, Mapping) and deployment.get("name") not in DEPLOYMENTS[name]:
            yield f"{place}.deployments: {deployment.get('name')!r} is none of {', '.join(DEPLOYMENTS[name])}"


def _builder(path: str) -> Any:
    module, _, name = path.rpartition(":") if ":" in path else path.rpartition(".")
    if not module or not name:
        raise ValueError("it must be module:name")
    return getattr(importlib.import_module(module), name)
