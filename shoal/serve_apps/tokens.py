"""Bearer tokens of an identity provider (OIDC): JWTs, checked by the keys that the provider publishes (JWKS).

By setting. Taken is what RFC 8725 asks for: RS256 and ES256 alone (never `none`, never a shared secret, so a public key
can't be used as one), the issuer and the audience as set, an expiry, and times with a small leeway. The token's scope
claim grants by the grammar of keys (`read`, `write:scraper`); what is not of it is somebody else's and grants nothing.

The provider's keys are fetched within bounds: over https (http on loopback only), no redirects, few bytes, in seconds;
kept for `KEPT_S`; looked up again for an unknown key id, at most every `AGAIN_S`, so that forged ids can't make us ask
it all the time. While it can't be reached the last keys stand for `STALE_S`, then tokens are refused with 503.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt

from shoal.errors import ConfigurationError, TransientError
from shoal.serve_apps.reach import is_loopback
from shoal.serve_apps.scopes import Caller, read_grants
from shoal.settings import Settings

log = logging.getLogger("shoal.tokens")

ALGORITHMS = {"RSA": "RS256", "EC": "ES256"}
LEEWAY_S = 30.0
KEPT_S = 600.0
AGAIN_S = 30.0
STALE_S = 3600.0
FETCH_S = 5.0
JWKS_BYTES_MAX = 256 * 1024
KEYS_MAX = 50
SUBJECT_CHARS_MAX = 200


class ProviderKeys:
    """The keys of the provider, by id. Used from one event loop. `transport`: for tests."""

    def __init__(
        self,
        issuer: str,
        url: str = "",
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`url`: of the JWKS; empty: as the issuer's discovery document says."""
        self._issuer, self._url, self._clock = issuer, url, clock
        self._http = httpx.AsyncClient(timeout=FETCH_S, follow_redirects=False, transport=transport)
        self._keys: dict[str, jwt.PyJWK] = {}
        self._read_at = self._tried_at = float("-inf")
        self._lock = asyncio.Lock()

    async def key(self, identity: str) -> jwt.PyJWK | None:
        """The key of that id; None where the provider has none. Raises TransientError."""
        is_old = self._clock() - self._read_at > KEPT_S
        if (identity not in self._keys or is_old) and self._clock() - self._tried_at > AGAIN_S:
            async with self._lock:
                if self._clock() - self._tried_at > AGAIN_S:
                    await self._fetch()
        if self._clock() - self._read_at > STALE_S:
            raise TransientError("tokens can't be checked now: the identity provider's keys can't be read", AGAIN_S)
        return self._keys.get(identity)

    async def _fetch(self) -> None:
        self._tried_at = self._clock()
        try:
            async with asyncio.timeout(2 * FETCH_S):  # the client's own is per read: one that drips would outlast it
                url = self._url or await self._discovered()
                found = await self._get(url)
            self._keys = _keys(found)
            self._read_at = self._clock()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, TypeError, TimeoutError, ConfigurationError) as error:
            log.error("the identity provider's keys can't be read (%s: %s)", type(error).__name__, str(error)[:200])

    async def _discovered(self) -> str:
        document = await self._get(self._issuer.rstrip("/") + "/.well-known/openid-configuration")
        if document.get("issuer") != self._issuer:
            raise ValueError("its discovery document is of another issuer")
        return str(document["jwks_uri"]) if "jwks_uri" in document else ""

    async def _get(self, url: str) -> dict[str, Any]:
        check_url(url)
        body = bytearray()
        async with self._http.stream("GET", url, headers={"Accept": "application/json"}) as response:
            if response.status_code != 200:
                raise ValueError(f"{response.status_code} of {urlsplit(url).hostname}")
            async for part in response.aiter_bytes():
                body += part
                if len(body) > JWKS_BYTES_MAX:
                    raise ValueError("it is too large")
        found = httpx.Response(200, content=bytes(body)).json()
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
        return found


def check_url(url: str) -> None:
    """Raises ConfigurationError unless `url` is https, or http on loopback."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.username is not None or not (
        (parts.scheme == "https" and host) or (parts.scheme == "http" and is_loopback(host))
    ):
        raise ConfigurationError(f"{url[:200]!r} must be https (http is taken on loopback only)")


def _keys(found: Mapping[str, Any]) -> dict[str, jwt.PyJWK]:
    """Those that sign by an algorithm that we take."""
    listed = found.get("keys")
    if not isinstance(listed, list):
        raise ValueError("it is no key set")
    taken = {}
    for entry in listed[:KEYS_MAX]:
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig" or entry.get("kty") not in ALGORITHMS:
            continue
        if entry["kty"] == "EC" and entry.get("crv") != "P-256":
            continue
        try:
            taken[str(entry["kid"])] = jwt.PyJWK(entry, ALGORITHMS[entry["kty"]])
        except (jwt.PyJWTError, KeyError, ValueError, TypeError):
            continue  # another's: one bad key must not lock everybody out
    return taken


class Tokens:
    """Who a token is of."""

    def __init__(self, keys: ProviderKeys, issuer: str, audience: str, scope_claim: str) -> None:
        self._keys, self._issuer, self._audience, self._claim = keys, issuer, audience, scope_claim

    @classmethod
    def of(cls, settings: Settings) -> Tokens | None:
        """None where no provider is set. Raises ConfigurationError."""
        if not settings.oidc_issuer:
            return None
        if not settings.oidc_audience:
            raise ConfigurationError("oidc_issuer is set: set oidc_audience, too (who its tokens must be meant for)")
        for url in filter(None, (settings.oidc_issuer, settings.oidc_jwks_url)):
            check_url(url)
        keys = ProviderKeys(settings.oidc_issuer, settings.oidc_jwks_url)
        return cls(keys, settings.oidc_issuer, settings.oidc_audience, settings.oidc_scope_claim)

    async def verify(self, token: str) -> Caller | None:
        """Whose token this is; None where it is not good. Raises TransientError."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            return None
        identity = header.get("kid")
        if header.get("alg") not in ALGORITHMS.values() or not isinstance(identity, str) or "crit" in header:
            return None
        key = await self._keys.key(identity)
        if key is None or key.algorithm_name != header["alg"]:
            return None
        try:
            claims = jwt.decode(
                token, key, algorithms=[key.algorithm_name], audience=self._audience, issuer=self._issuer,
                leeway=LEEWAY_S, options={"require": ["exp", "iss", "aud", "sub"]},
            )  # fmt: skip
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
            return None
        said = claims.get(self._claim)
        texts = said.split() if isinstance(said, str) else said if isinstance(said, list) else []
        granted = read_grants(text for text in texts if isinstance(text, str))
        subject = str(claims["sub"])[:SUBJECT_CHARS_MAX]
        if not subject.isprintable() or not subject:
            return None
        return Caller(subject, str(claims.get("name") or subject)[:100], "token", granted)


def looks_like_a_token(credential: str) -> bool:
    """Whether it has the shape of a JWT: three parts; ours have no dot."""
    return credential.count(".") == 2
