"""What an OpenAPI 3 or Swagger 2 document declares of its API: servers, security, parameters.

The strongest evidence there is, so it is read from the document itself (JSON, or the few YAML lines that matter),
never guessed. Bounded in what it looks at; never raises.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

_SAYS_SO = re.compile(r"[\"']?(?:openapi|swagger)[\"']?\s*:\s*[\"']?[23]\.")
_YAML_SCHEMES = re.compile(r"^[ ]*(?:securitySchemes|securityDefinitions):[ ]*\n((?:[ ]+.*\n|\s*\n){1,200})", re.M)
_YAML_SERVERS = re.compile(r"^\s*-\s*url:\s*[\"']?(https?://[^\s\"']{4,300})", re.M)
_YAML_NAMES = re.compile(r"^\s*-\s+(?:in:\s*query\s+)?name:\s*[\"']?([\w.$\[\]-]{1,60})", re.M)


def read_openapi(text: str) -> Mapping[str, Any] | None:
    """The document as a mapping, or None where it is no OpenAPI. Of YAML only what `find_traits` asks for."""
    if not _SAYS_SO.search(text[:2000]):
        return None
    if text.lstrip()[:1] != "{":
        return _from_yaml(text)
    try:
        spec = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return spec if isinstance(spec, dict) and ("paths" in spec or "components" in spec) else None


def authentication(spec: Mapping[str, Any]) -> tuple[str, str] | None:
    """The auth method and its evidence. A document with operations and no scheme at all has open ones."""
    components = spec.get("components")
    schemes = components.get("securitySchemes") if isinstance(components, dict) else spec.get("securityDefinitions")
    if not isinstance(schemes, dict) or not schemes:
        return ("none", "OpenAPI without security schemes") if isinstance(spec.get("paths"), dict) else None
    wanted = [name for entry in _list(spec.get("security")) if isinstance(entry, dict) for name in entry]
    for name in [*wanted, *schemes]:
        scheme = schemes.get(name)
        if not isinstance(scheme, dict):
            continue
        kind, detail = str(scheme.get("type", "")).lower(), str(scheme.get("scheme", "")).lower()
        method = {"oauth2": "oauth2", "openidconnect": "oauth2", "mutualtls": "mtls", "basic": "basic"}.get(kind)
        if kind == "apikey":
            method = "cookie" if scheme.get("in") == "cookie" else "api_key"
        elif kind == "http":
            method = "basic" if detail == "basic" else "bearer"
        if method:
            return method, f"OpenAPI security scheme {str(name)[:60]}"
    return None


def servers(spec: Mapping[str, Any]) -> list[str]:
    """Base addresses, the first ones."""
    if isinstance(host := spec.get("host"), str):
        return [f"https://{host}{spec.get('basePath') or ''}"]
    return [s["url"] for s in _list(spec.get("servers"))[:5] if isinstance(s, dict) and isinstance(s.get("url"), str)]


def parameters(spec: Mapping[str, Any]) -> list[str]:
    """Names of the operations' parameters."""
    names: list[str] = []
    paths = spec.get("paths")
    for path in list(paths.values())[:500] if isinstance(paths, dict) else []:
        for operation in list(path.values())[:20] if isinstance(path, dict) else []:
            if isinstance(operation, dict):
                names += [
                    str(p["name"])
                    for p in _list(operation.get("parameters"))[:50]
                    if isinstance(p, dict) and "name" in p
                ]
    return names[:2000]


def _from_yaml(text: str) -> Mapping[str, Any]:
    """Servers, scheme types and parameter names by their lines; YAML as such isn't read (its bombs are known)."""
    schemes: dict[str, dict[str, str]] = {}
    if match := _YAML_SCHEMES.search(text):
        name = ""
        for line in match[1].splitlines():
            key, _, value = line.strip().partition(":")
            if not value.strip() and key:
                name = key
            elif name and key in ("type", "scheme", "in"):
                schemes.setdefault(name, {})[key] = value.strip().strip("\"'")
    found = [
        {"url": url} for url in re.findall(r"^\s*-\s*url:\s*[\"']?(https?://\S{4,300}?)[\"']?\s*$", text, re.M)[:5]
    ]
    named = [{"name": name} for name in _YAML_NAMES.findall(text)[:2000]]
    return {
        "servers": found,
        "components": {"securitySchemes": schemes},
        "paths": {"": {"get": {"parameters": named}}},
    }


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
