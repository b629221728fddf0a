"""The guard: the one ASGI middleware through which every request to REST and to MCP passes.

In this order: who asks (a key, a token, or somebody on this machine), what is asked (access.py), whether that caller
may. Refusals are problems (RFC 9457): 401 with `WWW-Authenticate` where nobody is known, 403 that names the missing
scope, 404 for what is not in the table, and for a collection that this caller can't see. Behind it the caller is known
to whoever wants to filter or to sign by it (`scopes.caller`). Each request leaves its line in the audit trail
(trail.py), a change before it is begun.

An MCP message is read here, bounded by the frame around us, and handed on as it was understood here, written anew: what
is judged is what is done, whatever a second parser would make of repeated names.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.errors import ShoalError
from shoal.serve_apps.access import Call, mcp_call, methods_of, refusal, rest_call
from shoal.serve_apps.browsers import ALWAYS, Browsers
from shoal.serve_apps.key_store import KeyUse, KeyWatch, keys_place, use_place
from shoal.serve_apps.problems import problem
from shoal.serve_apps.rate_limit import RateLimiter, retry_after
from shoal.serve_apps.reach import asks_from_here, is_loopback
from shoal.serve_apps.scopes import ANYONE, Caller, asking
from shoal.serve_apps.scopes import Scope as AccessScope
from shoal.serve_apps.tokens import Tokens, looks_like_a_token
from shoal.serve_apps.trail import Entry, Trail, entry
from shoal.settings import Settings

log = logging.getLogger("shoal.access")

CREDENTIAL_CHARS_MAX = 8192
"""Tokens of identity providers have some 1-2 thousand; parsers of servers allow about this for all headers."""

METADATA = "/.well-known/oauth-protected-resource"

RPC_UNKNOWN = -32601
"""JSON-RPC 2.0: the method does not exist."""


class Refused(Exception):
    """The answer is `response`, and the application is not asked."""

    def __init__(self, response: Response) -> None:
        super().__init__(response)
        self.response = response


@dataclass(frozen=True, slots=True)
class Policy:
    """Who needs a key."""

    auth: str = "auto"
    is_local: bool = True  # bound to a loopback address, by our own start

    @classmethod
    def of(cls, settings: Settings) -> Policy:
        # In a cluster that others started, Serve may be bound to anything, whatever our setting says.
        return cls(settings.auth, is_loopback(settings.http_host) and not settings.ray_address)


class Gate:
    """Who asks, and whether they may. One per replica; `close` with it."""

    def __init__(
        self,
        policy: Policy,
        keys: KeyWatch,
        *,
        trail: Trail | None = None,
        browsers: Browsers | None = None,
        limiter: RateLimiter | None = None,
        tokens: Tokens | None = None,
        issuer: str = "",
        resource: str = "",
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._policy, self._keys, self._now = policy, keys, now
        self.trail, self.browsers = trail, browsers or Browsers()
        self._tokens, self._issuer, self._resource = tokens, issuer, resource.rstrip("/")
        self._limiter, self._clock = limiter or RateLimiter(0), clock

    @classmethod
    def of(cls, settings: Settings) -> Gate:
        keys = KeyWatch(keys_place(settings), settings.keys_unreadable_s, use=KeyUse(use_place(settings)))
        return cls(
            Policy.of(settings), keys, trail=Trail(settings),
            browsers=Browsers.of(settings.allowed_origins, settings.allowed_hosts),
            limiter=RateLimiter(settings.rate_limit_per_minute, 1 / settings.serve_replicas_max),
            tokens=Tokens.of(settings), issuer=settings.oidc_issuer, resource=settings.oidc_audience,
        )  # fmt: skip

    async def caller(self, scope: Scope, headers: Headers) -> Caller:
        """Who asks. Raises Refused."""
        credential = _credential(headers)
        if credential is None:
            if self._policy.auth == "anyone_may_do_anything" or self._is_at_home(scope, headers):
                return ANYONE
            raise Refused(
                self._unknown(scope, "Send an API key: `Authorization: Bearer shoal_...` or `X-API-Key: shoal_...`. "
                              "Who runs this makes one by `shoal keys create`.")
            )  # fmt: skip
        now = self._now()
        try:
            if self._tokens is not None and looks_like_a_token(credential):
                found = await self._tokens.verify(credential)
            else:
                found = (await self._keys.ring()).verify(credential, now)
        except ShoalError as error:
            raise Refused(problem(503, str(error), _id(scope), headers={"Retry-After": "2"})) from None
        if found is None:
            raise Refused(
                self._unknown(
                    scope, "This key or token is unknown, mistyped, expired or revoked.", error="invalid_token"
                )
            )
        if found.kind == "key":
            self._keys.used(found.id, now)
        return found

    def _is_at_home(self, scope: Scope, headers: Headers) -> bool:
        if self._policy.auth != "auto" or not self._policy.is_local:
            return False
        client = scope.get("client")
        return asks_from_here(client[0] if client else None, headers.get("host", ""), headers.keys())

    def _unknown(self, scope: Scope, detail: str, error: str | None = None) -> Response:
        return problem(401, detail, _id(scope), headers={"WWW-Authenticate": self.challenge(error)})

    def challenge(self, error: str | None = None, missing: str | None = None) -> str:
        """`WWW-Authenticate` (RFC 6750)."""
        parts = ['realm="shoal"']
        if error:
            parts.append(f'error="{error}"')
        if self._tokens is not None and self._has_url:
            parts.append(f'resource_metadata="{self._resource}{METADATA}"')
        if missing:
            parts.append(f'scope="{missing}"')
        return "Bearer " + ", ".join(parts)

    @property
    def _has_url(self) -> bool:
        return self._resource.startswith(("https://", "http://")) and '"' not in self._resource

    def metadata(self, scope: Scope) -> Response:
        """RFC 9728: where a client gets a token for us."""
        if self._tokens is None or not self._has_url:
            return problem(404, "No identity provider is set; ask with an API key.", _id(scope))
        said = {
            "resource": self._resource + ("/mcp" if scope["path"].endswith("/mcp") else ""),
            "authorization_servers": [self._issuer],
            "scopes_supported": ["read", "write", "admin"],
            "bearer_methods_supported": ["header"],
        }
        return Response(orjson.dumps(said), media_type="application/json")

    def judge(self, scope: Scope, caller: Caller, call: Call, *, hides: bool) -> None:
        """Raises Refused where `caller` may not. `hides`: what it can't see is 404, else 403 as all that it may not."""
        refused = refusal(caller, call)
        if refused is None:
            return
        log.info("refused %s to %s %s: %s", call.name, caller.kind, caller.id, refused.detail)
        if refused.missing is None and hides:
            raise Refused(problem(404, refused.detail, _id(scope)))
        challenge = self.challenge("insufficient_scope", refused.missing)
        raise Refused(
            problem(403, refused.detail, _id(scope), headers={"WWW-Authenticate": challenge},
                    missing_scope=refused.missing)
        )  # fmt: skip

    def check_origin(self, scope: Scope, headers: Headers, *, is_delicate: bool) -> None:
        """Raises Refused where a page, or a name, asks that may not."""
        why = self.browsers.refuses(headers.get("origin"), headers.get("host", ""), is_delicate=is_delicate)
        if why is not None:
            raise Refused(problem(403, why, _id(scope), kind="origin-refused"))

    def check_rate(self, scope: Scope, caller: Caller) -> None:
        """Raises Refused where `caller` asks too often. Who needs no key is not counted: it has the machine."""
        if caller.kind == "anonymous":
            return
        wait_s = self._limiter.wait_s(caller.id, self._clock(), caller.rate_per_minute)
        if wait_s > 0:
            wait = retry_after(wait_s)
            detail = f"This key asks more often than it may: try again in {wait} s."
            raise Refused(problem(429, detail, _id(scope), headers={"Retry-After": wait}))

    async def begin(self, scope: Scope, caller: Caller | None, call: Call, via: str) -> Entry | None:
        """Leave the line of what is about to be done; what a change returns belongs to `end`. Raises Refused."""
        if self.trail is None or caller is None:
            return None
        if call.need.scope == AccessScope.READ or call.name.startswith("GET "):  # an admin's look is a read too
            return None
        line = self._line("change", scope, caller, call, via)
        try:
            await self.trail.change(line)
        except ShoalError as error:
            raise Refused(problem(503, str(error), _id(scope), headers={"Retry-After": "2"})) from None
        return line

    def end(
        self, scope: Scope, caller: Caller | None, call: Call, via: str, change: Entry | None, answer: Answer
    ) -> None:
        """Leave the line of what was done."""
        if self.trail is None or caller is None:
            return
        if change is not None:
            self.trail.outcome(change, answer.status, answer.took_ms(), answer.job)
        else:
            line = self._line("read", scope, caller, call, via)
            self.trail.read(line | {"status": answer.status, "ms": round(answer.took_ms(), 1)})

    def refused(self, scope: Scope, caller: Caller | None, call: Call | None, via: str, status: int) -> None:
        """Leave the line of somebody who was not let in."""
        if self.trail is not None and status not in (200, 204, 400, 404, 405):
            self.trail.refusal(self._line("refused", scope, caller, call, via) | {"status": status})

    def _line(self, kind: str, scope: Scope, caller: Caller | None, call: Call | None, via: str) -> Entry:
        client = scope.get("client")
        return entry(
            kind, self._now(), request_id=_id(scope), via=via, peer=client[0] if client else None,
            caller=caller.id if caller else None, caller_name=caller.name if caller else None,
            caller_kind=caller.kind if caller else None, call=call.name if call else None,
            collection=call.collection if call else None, about=dict(call.about) if call else None,
        )  # fmt: skip

    def close(self) -> None:
        """Blocks until the last lines of the trail are written."""
        self._keys.close()
        if self.trail is not None:
            self.trail.close()


class Answer:
    """What went out: to be written down."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.job: str | None = None
        self.status = 500  # until it begins: an application that breaks answers that

    def took_ms(self) -> float:
        return (time.perf_counter() - self._began) * 1000

    def watched(self, send: Send) -> Send:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                location = Headers(raw=message.get("headers", [])).get("location", "")
                self.job = location.rpartition("/jobs/")[2] or None if "/jobs/" in location else None
            await send(message)

        return sent


class Guard:
    """The middleware; `speaks` is `rest` or `mcp`."""

    def __init__(self, app: ASGIApp, gate: Gate, speaks: str = "rest") -> None:
        self.app, self._gate, self._speaks = app, gate, speaks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._http(scope, receive, send)
            case "websocket":  # nobody here speaks it
                await send({"type": "websocket.close", "code": 1008})
            case "lifespan":
                await self._lifespan(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        finally:
            await asyncio.to_thread(self._gate.close)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        gate, via, answer = self._gate, self._speaks, Answer()
        send = _dressed(send, gate.browsers.headers(headers.get("origin")))
        caller: Caller | None = None
        call: Call | None = None
        try:
            if scope["method"] == "OPTIONS":
                raise Refused(_preflight(scope, headers, gate.browsers))
            is_delicate = via == "mcp" or scope["method"] not in ("GET", "HEAD")
            gate.check_origin(scope, headers, is_delicate=is_delicate)
            if via == "rest" and scope["path"] in (METADATA, f"{METADATA}/mcp") and not is_delicate:
                raise Refused(gate.metadata(scope))
            if via == "mcp":
                caller = await gate.caller(scope, headers)  # who is not known is not read to the end
                call, scope, receive = await _mcp(scope, receive)
            else:
                call = rest_call(scope["method"], scope["path"])
                if call is None:
                    raise Refused(_nothing_here(scope))
                if call.need.scope is not None:
                    caller = await gate.caller(scope, headers)
            if caller is not None:
                gate.check_rate(scope, caller)
                gate.judge(scope, caller, call, hides=via == "rest")
            change = await gate.begin(scope, caller, call, via)
        except Refused as refused:
            gate.refused(scope, caller, call, via, refused.response.status_code)
            await refused.response(scope, receive, send)
            return
        try:
            with asking(caller):
                await self.app(scope, receive, answer.watched(send))
        finally:
            gate.end(scope, caller, call, via, change, answer)


def _dressed(send: Send, cors: dict[str, str]) -> Send:
    """`send` that adds what browsers are told, where the answer does not say otherwise itself."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in (ALWAYS | cors).items():
                headers.setdefault(name, value)
        await send(message)

    return sent


def _preflight(scope: Scope, headers: Headers, browsers: Browsers) -> Response:
    said = browsers.preflight(headers.get("origin")) if "access-control-request-method" in headers else None
    if said is None:
        return problem(403, "Pages of other origins are not let in.", _id(scope), kind="origin-refused")
    return Response(status_code=204, headers=said)


def _nothing_here(scope: Scope) -> Response:
    if methods := methods_of(scope["path"]):
        return problem(
            405, "See /docs for what this service answers.", _id(scope), headers={"Allow": ", ".join(methods)}
        )
    return problem(404, "See /docs for what this service answers.", _id(scope))


async def _mcp(scope: Scope, receive: Receive) -> tuple[Call, Scope, Receive]:
    """The call of an MCP request, and the request as it was understood. Raises Refused."""
    if scope["method"] != "POST":  # a stream or a session to end, of which there are none: the server says so
        call = mcp_call({})
        assert call is not None
        return call, scope, receive
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(Response(status_code=400))  # gone before it had said what it wants
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Refused(_rpc_error(None, -32700, "The body is not JSON.", 400)) from None
    if isinstance(asked, list):
        raise Refused(_rpc_error(None, -32600, "Send one message per request: batches are not taken.", 400))
    if not isinstance(asked, dict):
        raise Refused(_rpc_error(None, -32600, "A message is a JSON object.", 400))
    found = mcp_call(asked)
    if found is None:
        raise Refused(_rpc_error(asked.get("id"), RPC_UNKNOWN, _unknown_name(asked), 200))
    understood = orjson.dumps(asked)

    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": understood, "more_body": False}

    headers = [line for line in scope["headers"] if line[0] not in (b"content-length", b"transfer-encoding")]
    headers.append((b"content-length", str(len(understood)).encode()))
    return found, {**scope, "headers": headers}, replay


def _unknown_name(asked: dict[str, Any]) -> str:
    parameters = asked.get("params")
    if asked.get("method") == "tools/call":
        name = parameters.get("name") if isinstance(parameters, dict) else None
        return f"Unknown tool: {str(name)[:60]!r}. tools/list shows what there is."
    return f"Unknown method: {str(asked.get('method'))[:60]!r}."


def _rpc_error(identity: Any, code: int, text: str, status: int) -> Response:
    known = identity if isinstance(identity, (str, int)) else None
    body = {"jsonrpc": "2.0", "id": known, "error": {"code": code, "message": text}}
    return Response(orjson.dumps(body), status, media_type="application/json")


def _credential(headers: Headers) -> str | None:
    """The key or token of a request; None where it has none. What is no credential at all is one that is wrong."""
    said, keys = headers.getlist("authorization"), headers.getlist("x-api-key")
    if len(said) > 1 or len(keys) > 1 or (said and keys and said[0].partition(" ")[2].strip() != keys[0].strip()):
        return ""  # two answers to one question: none counts
    if said:
        scheme, _, credential = said[0].partition(" ")
        found = credential.strip() if scheme.lower() == "bearer" else ""
    elif keys:
        found = keys[0].strip()
    else:
        return None
    return found if len(found) <= CREDENTIAL_CHARS_MAX else ""


def _id(scope: Scope) -> str:
    return str(scope.get("state", {}).get("request_id", ""))
