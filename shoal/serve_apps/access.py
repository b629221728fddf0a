"""What each call needs: the one table of REST calls and MCP tools, and the judgement of a caller by it.

Pure. A call that is not in the table does not exist: whoever adds a route or a tool adds its line here, else nobody
reaches it (and a test fails). Where several lines match a path the strictest counts, so that no order of routes can
open a door. `where` says on which collection the scope is needed: one of the path or the arguments, a fixed one, all
of them (what tells of the whole service), or any (what lists, and shows each caller only what it may see).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.routing import compile_path

from shoal.records import SCRAPER_COLLECTION
from shoal.serve_apps.scopes import EVERY, Caller, Scope

ANY = "?"
NAMED = "{name}"
_SHOWN_CHARS_MAX = 60


@dataclass(frozen=True, slots=True)
class Need:
    """`scope` None: open to everybody."""

    scope: Scope | None
    where: str = EVERY

    def strictness(self) -> tuple[int, int]:
        return int(self.scope or 0), {EVERY: 2, ANY: 0}.get(self.where, 1)


OPEN: Final = Need(None)
_SCRAPES: Final = Need(Scope.READ, SCRAPER_COLLECTION)
_READ: Final = Need(Scope.READ, NAMED)
_WRITE: Final = Need(Scope.WRITE, NAMED)
_ADMIN: Final = Need(Scope.ADMIN, NAMED)
_FLOW: Final = Need(Scope.READ)

REST: Final[Mapping[tuple[str, str], Need]] = {
    # Who is here, and whether it is well: probes carry no key. The pages hold no data; what they show they ask for.
    ("GET", "/"): OPEN,
    ("GET", "/healthz"): OPEN,
    ("GET", "/readyz"): OPEN,
    ("GET", "/docs"): OPEN,
    ("GET", "/docs/{name}"): OPEN,
    ("GET", "/openapi.json"): OPEN,
    ("GET", "/problems"): OPEN,
    ("GET", "/problems/{name}"): OPEN,
    ("GET", "/ui"): OPEN,
    ("GET", "/ui/"): OPEN,
    ("GET", "/ui/{name}"): OPEN,
    ("GET", "/.well-known/oauth-protected-resource"): OPEN,
    ("GET", "/.well-known/oauth-protected-resource/mcp"): OPEN,
    ("GET", "/metrics"): _FLOW,
    # The scrapers' collection.
    ("GET", "/api/v1/scrapes/search"): _SCRAPES,
    ("GET", "/api/v1/scrapes/datasets"): _SCRAPES,
    ("GET", "/api/v1/scrapes/{hash}"): _SCRAPES,
    ("POST", "/api/v1/agents/context/similar-apis"): _SCRAPES,
    ("POST", "/api/v1/agents/context/fix-patterns"): _SCRAPES,
    ("POST", "/api/v1/agents/fixes"): Need(Scope.WRITE, SCRAPER_COLLECTION),
    ("PATCH", "/api/v1/agents/fixes/{id}"): Need(Scope.WRITE, SCRAPER_COLLECTION),
    # Any collection.
    ("GET", "/api/v1/collections"): Need(Scope.READ, ANY),
    ("GET", "/api/v1/collections/{name}"): _READ,
    ("PUT", "/api/v1/collections/{name}"): _ADMIN,
    ("DELETE", "/api/v1/collections/{name}"): _ADMIN,
    ("GET", "/api/v1/collections/{name}/index"): _READ,
    ("POST", "/api/v1/collections/{name}/search"): _READ,
    ("POST", "/api/v1/collections/{name}/documents"): _WRITE,
    ("GET", "/api/v1/collections/{name}/documents/{id:path}"): _READ,
    ("DELETE", "/api/v1/collections/{name}/documents/{id:path}"): _WRITE,
    ("GET", "/api/v1/collections/{name}/documents/{id:path}/raw"): _READ,
    # The service as a whole. A job's id is known to who asked for it.
    ("GET", "/api/v1/jobs/{job_id}"): Need(Scope.READ, ANY),
    ("GET", "/api/v1/ingest"): _FLOW,
    ("GET", "/api/v1/cost"): _FLOW,
    ("GET", "/api/v1/dead-letters"): _FLOW,
    ("GET", "/api/v1/dead-letters/{id:path}"): _FLOW,
    ("POST", "/api/v1/dead-letters/replay"): Need(Scope.ADMIN),
    ("GET", "/api/v1/audit"): Need(Scope.ADMIN),
}  # fmt: skip

TOOLS: Final[Mapping[str, Need]] = {
    "search_scrapes": _SCRAPES,
    "find_similar_apis": _SCRAPES,
    "get_fix_patterns": _SCRAPES,
    "report_fix": Need(Scope.WRITE, SCRAPER_COLLECTION),
    "search": _READ,
    "get_document": _READ,
    "list_collections": Need(Scope.READ, ANY),
    "ingest_status": _FLOW,
}
"""`{name}` is the argument `collection`."""

METHODS: Final = frozenset({
    "initialize", "ping", "server/discover", "tools/list", "resources/list", "resources/templates/list", "prompts/list",
    "prompts/get", "completion/complete", "logging/setLevel", "subscriptions/listen",
})  # fmt: skip
"""What MCP asks beside tools and resources: none of it reads a collection; `read` on any is enough."""

_RESOURCE = re.compile(r"shoal://(?:collections|documents)(?:/([^/?#]+).*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Call:
    """One request as the table sees it. `collection`: EVERY, ANY, or one; `about`: path parameters and the like."""

    name: str
    need: Need
    collection: str = EVERY
    about: Mapping[str, str] = field(default_factory=dict)


_PATTERNS: Final = [(method, path, need, compile_path(path)[0]) for (method, path), need in REST.items()]


def rest_call(method: str, path: str) -> Call | None:
    """The call that this is; None: there is none."""
    wanted = "GET" if method == "HEAD" else method
    best: Call | None = None
    for listed, template, need, pattern in _PATTERNS:
        if listed != wanted or (found := pattern.match(path)) is None:
            continue
        if best is None or need.strictness() > best.need.strictness():
            given = found.groupdict()
            collection = given.get("name", "") if need.where == NAMED else need.where
            best = Call(f"{listed} {template}", need, collection, given)
    return best


def methods_of(path: str) -> tuple[str, ...]:
    """The methods that a path takes."""
    return tuple(sorted({method for method, _, _, pattern in _PATTERNS if pattern.match(path)}))


def mcp_call(message: Mapping[str, Any]) -> Call | None:
    """The call that a JSON-RPC message makes; None: there is no such tool or method."""
    method, parameters = message.get("method"), message.get("params")
    given: Mapping[str, Any] = parameters if isinstance(parameters, Mapping) else {}
    match method:
        case None:  # the answer to a question of ours, of which we ask none: let the server say so
            return Call("answer", Need(Scope.READ, ANY), ANY)
        case "tools/call":
            return _tool_call(given)
        case "resources/read" | "resources/subscribe" | "resources/unsubscribe":
            found = _RESOURCE.fullmatch(str(given.get("uri")))
            if found is not None and found[1]:
                return Call(method, _READ, found[1])
            where = EVERY if found is None else ANY
            return Call(method, Need(Scope.READ, where), where)
        case str() if method in METHODS or method.startswith("notifications/"):
            return Call(method, Need(Scope.READ, ANY), ANY)
        case _:
            return None


def _tool_call(given: Mapping[str, Any]) -> Call | None:
    name, arguments = given.get("name"), given.get("arguments")
    need = TOOLS.get(name) if isinstance(name, str) else None
    if need is None:
        return None
    if need.where != NAMED:
        return Call(f"tool {name}", need, need.where)
    wanted = arguments.get("collection") if isinstance(arguments, Mapping) else None
    if wanted is None or wanted == "":
        wanted = SCRAPER_COLLECTION
    # What is no name is the tool's to refuse; until then it counts as all of them.
    return Call(f"tool {name}", need, wanted) if isinstance(wanted, str) else Call(f"tool {name}", Need(need.scope))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a caller may not: the scope that is missing, or a collection that it can't see."""

    detail: str
    missing: str | None = None  # None: to this caller there is no such collection


def refusal(caller: Caller, call: Call) -> Refusal | None:
    """None: `caller` may. A collection that it may not read is to it as one that is not there."""
    scope = call.need.scope
    if scope is None:
        return None
    if call.need.where == ANY:
        if caller.may_anywhere(scope):
            return None
        return Refusal(f"This needs the scope {scope} on some collection.", str(scope))
    if caller.may(scope, call.collection):
        return None
    if call.need.where == EVERY:
        return Refusal(f"This needs the scope {scope} on all collections, since it tells of all of them.", str(scope))
    if call.need.where == NAMED and not caller.may(Scope.READ, call.collection):
        shown = call.collection[:_SHOWN_CHARS_MAX]
        return Refusal(f"There is no collection {shown!r} that you may read. GET /api/v1/collections lists yours.")
    return Refusal(
        f"This needs the scope {scope} on the collection {call.collection[:_SHOWN_CHARS_MAX]!r}.",
        f"{scope}:{call.collection[:_SHOWN_CHARS_MAX]}",
    )
