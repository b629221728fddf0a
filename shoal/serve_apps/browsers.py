"""What is owed to browsers: which pages may call us, under which names we answer, and the headers of what we send.

Pure. CORS is closed: no page of another origin reads an answer, unless its origin is in the setting; `*` can't be. A
request that carries an Origin is refused where it changes something or speaks MCP, unless that origin is our own (its
host is the Host that was asked for) or in the setting: a browser sends one with every such request, other clients none.
Where names are set (`allowed_hosts`), requests under any other are refused, which ends DNS rebinding for good; a
service without keys on loopback asks that of its own accord (reach.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from shoal.serve_apps.reach import host_name, is_loopback

PREFLIGHT_AGE_S = 600
METHODS = "GET, POST, PUT, PATCH, DELETE"
HEADERS = (
    "Authorization, X-API-Key, Content-Type, Idempotency-Key, X-Request-Id, Mcp-Protocol-Version, Mcp-Method, Mcp-Name"
)
EXPOSED = "X-Request-Id, Retry-After, Location, ETag, WWW-Authenticate"

ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cache-Control": "private, no-cache",
}
"""On every answer that does not say otherwise itself. A page's own policy (docs_page.py) stands; what holds an answer
for one caller must not give it to the next. TLS, and with it Strict-Transport-Security, ends before us."""


def normal_origin(text: str) -> str | None:
    """`https://a.example:8443` as browsers write it; None where it is no origin."""
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path or parts.query or parts.fragment:
        return None
    if parts.username is not None or parts.password is not None:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    usual = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" + ("" if port in (None, usual) else f":{port}")


@dataclass(frozen=True, slots=True)
class Browsers:
    """The rules in force."""

    origins: frozenset[str] = frozenset()
    hosts: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def of(cls, origins: Iterable[str], hosts: Iterable[str]) -> Browsers:
        """From the settings, where they were checked."""
        return cls(
            frozenset(origin for text in origins if (origin := normal_origin(text))),
            frozenset(host.casefold() for host in hosts),
        )

    def answers_to(self, host: str) -> bool:
        """Whether we answer under this Host."""
        name = host_name(host)
        if not self.hosts:
            return True
        return name is not None and (name in self.hosts or is_loopback(name))

    def allows(self, origin: str) -> bool:
        """Whether pages of `origin` may read our answers."""
        return normal_origin(origin) in self.origins

    def is_ours(self, origin: str, host: str) -> bool:
        """Whether `origin` is where we are asked ourselves. The scheme is not compared: TLS ends before us."""
        theirs = normal_origin(origin)
        if theirs is None or host_name(host) is None:
            return False
        own = {normal_origin(f"{scheme}://{host}") for scheme in ("http", "https")}
        return theirs in own

    def refuses(self, origin: str | None, host: str, *, is_delicate: bool) -> str | None:
        """Why a request is refused for where it comes from; None where it is not. `is_delicate`: a change, or MCP."""
        if not self.answers_to(host):
            return "This name is not one that Shoal answers to; who runs it adds it to SHOAL_ALLOWED_HOSTS."
        if is_delicate and origin is not None and not self.is_ours(origin, host) and not self.allows(origin):
            return "Pages of this origin may not ask this; who runs Shoal adds it to SHOAL_ALLOWED_ORIGINS."
        return None

    def headers(self, origin: str | None) -> dict[str, str]:
        """What an answer says of CORS."""
        if not self.origins:
            return {}
        if origin is None or not self.allows(origin):
            return {"Vary": "Origin"}
        return {
            "Vary": "Origin", "Access-Control-Allow-Origin": normal_origin(origin) or "",
            "Access-Control-Expose-Headers": EXPOSED, "Cross-Origin-Resource-Policy": "cross-origin",
        }  # fmt: skip

    def preflight(self, origin: str | None) -> dict[str, str] | None:
        """What a preflight is answered; None where it is refused."""
        if origin is None or not self.allows(origin):
            return None
        return {
            "Access-Control-Allow-Origin": normal_origin(origin) or "", "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Allow-Headers": HEADERS, "Access-Control-Max-Age": str(PREFLIGHT_AGE_S), "Vary": "Origin",
        }  # fmt: skip
