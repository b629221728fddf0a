"""What Ray's HAProxy is told beside its own configuration: how long a client may take, what errors look like, and what
may be asked twice.

Ray renders HAProxy's configuration from a template that has no place for these, but for values of the environment that
it copies as they are. The last of them in the `defaults` section is the balancing algorithm, and one that stands within
every backend is the interval of health checks: lines follow those two values. Tried with ray 2.60 and HAProxy 2.8;
tests/integration/test_query_side_hostile.py holds it to what it should do, so that a Ray whose template is another one
can't pass unnoticed.

**What may be asked twice.** A replica that ends closes its connections, also one on which HAProxy is just sending it a
request; one that is killed has requests in hand. HAProxy then closes the client's connection without a word, since HTTP
(RFC 9110, 9.2.2) lets a client send again what changes nothing; few clients do. So HAProxy does it for them, with
another replica: whatever needs no more than `read` in the table of calls (access.py), and of the changes those KEYED
that carry an `Idempotency-Key`. Only where nothing has been answered yet, and RETRIES times, so a question that kills
who reads it takes four replicas at most. A request larger than HAProxy's buffer is never sent again.

**Who refuses a connection is asked no more** until his health was checked again, within half a second. Ray's own limit
is three refusals in a row, and the dead have the fewest connections: beside two of them a request could go from one to
the other until its retries were used up.

Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from shoal.serve_apps.access import REST, TOOLS
from shoal.serve_apps.deadlines import TIMEOUT_S_MAX
from shoal.serve_apps.problem_kinds import problem_body
from shoal.serve_apps.scopes import Scope

BALANCE = "leastconn"  # Ray's own default
CHECK_INTERVAL = "5s"  # Ray's own default
RETRIES = 3
KEYED = frozenset({
    ("POST", "/api/v1/agents/fixes"), ("PATCH", "/api/v1/agents/fixes/{id}"),
    ("POST", "/api/v1/collections/{name}/documents"),
})  # fmt: skip
"""Changes that heed an `Idempotency-Key`: the same one again is the same request. An empty one is none."""
_SEPARATOR = "\n    "
SERVER_S = int(TIMEOUT_S_MAX) + 30
"""A replica that says nothing for longer has lost the request: ours end before (request_frame.py)."""

ERRORS = {
    408: "The beginning of the body did not come in time.",
    500: "",
    502: "The replica that had this request died. What it changed may have been done: ask before you send it again.",
    503: "No replica can take this right now.",
    504: "The replica that had this request did not answer.",
}
"""What HAProxy answers itself, and what is said then. Before it has read a whole head it says 400 and 408 in words of
its own, which can't be set."""


def haproxy_environment(client_timeout_s: float) -> dict[str, str]:
    """Variables of every process of the cluster. `client_timeout_s`: for the head of a request and the beginning of its
    body together, and the longest that a client may neither send nor read anything of one. Between two requests Serve's
    90 s hold: a load balancer's 60 must be less, else it asks on connections that are just being closed."""
    milliseconds = f"{max(1, round(client_timeout_s * 1000))}ms"
    lines = [
        BALANCE,
        f"timeout client {milliseconds}",
        f"timeout http-request {milliseconds}",
        f"timeout server {SERVER_S}s",
        "option http-buffer-request",  # a body a byte a second costs a connection here, not a place in a replica
        *(_error(status, detail) for status, detail in ERRORS.items()),
    ]
    return {
        "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": _SEPARATOR.join(lines),
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": _SEPARATOR.join((CHECK_INTERVAL, *_asked_twice(), "default-server")),
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_RETRIES": str(RETRIES),
        "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
    }


def _asked_twice() -> list[str]:
    """Lines of a backend: what of its requests may be sent again to another replica."""
    posts = [path for (method, path), need in REST.items() if method == "POST" and _only_reads(need.scope)]
    tools = " ".join(sorted(name for name, need in TOOLS.items() if _only_reads(need.scope)))
    return [
        "acl gets method GET HEAD",
        "acl posts method POST",
        f"acl asks path_reg {_patterns(posts)}",
        *(f"acl keyed_{method.lower()} path_reg {_patterns(_keyed(method))}" for method in ("POST", "PATCH")),
        "acl patches method PATCH",
        "acl has_key req.hdr(idempotency-key) -m reg .",
        "acl is_mcp path /mcp /mcp/",
        "acl says_what req.body,json_query('$.method') -m found",
        "acl calls_tool req.body,json_query('$.method') -m str tools/call",
        f"acl reads_by_tool req.body,json_query('$.params.name') -m str {tools}",
        "http-request disable-l7-retry unless gets or posts asks or posts keyed_post has_key"
        " or patches keyed_patch has_key"
        " or posts is_mcp says_what !calls_tool or posts is_mcp reads_by_tool",
    ]


def _keyed(method: str) -> list[str]:
    return [path for wanted, path in KEYED if wanted == method]


def _patterns(paths: Iterable[str]) -> str:
    """Regular expressions of the templates `paths`, as the words of an acl."""
    return " ".join("^" + re.sub(r"\{\w+\}", "[^/]+", path) + "$" for path in sorted(paths))


def _only_reads(scope: Scope | None) -> bool:
    return scope is None or scope <= Scope.READ


def _error(status: int, detail: str) -> str:
    """An `http-error` line. The request's id is the caller's text: HAProxy escapes it as JSON."""
    mark = "REQUEST-ID"
    shown = detail or f"Try again; if it stays, give {mark} to who runs this."
    kind = {502: "replica-lost", 504: "timeout"}.get(status)
    body = json.dumps(problem_body(status, shown, mark, kind=kind), separators=(",", ":"))
    # Of HAProxy's words: a backslash before what would end or change a word; %% is a percent sign.
    quoted = "".join(f"\\{c}" if c in "\\\"' #" else c for c in body.replace("%", "%%"))
    text = quoted.replace(mark, "%[req.hdr(x-request-id),json]")
    again = " hdr Retry-After 1" if status in (502, 503, 504) else ""
    return f"http-error status {status} content-type application/problem+json lf-string {text}{again}"
