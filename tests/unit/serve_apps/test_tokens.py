"""Bearer tokens: which are taken, and what is asked of the identity provider."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from shoal.errors import ConfigurationError, TransientError
from shoal.serve_apps.rest import create_rest
from shoal.serve_apps.tokens import AGAIN_S, JWKS_BYTES_MAX, KEPT_S, STALE_S, ProviderKeys, Tokens, check_url
from shoal.settings import load
from tests.fixtures.callers import Callers, Clock

ISSUER, AUDIENCE = "https://id.example", "https://shoal.example"
RSA, EC = rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1())
STRANGER = rsa.generate_private_key(65537, 2048)


def public(key: Any, identity: str) -> dict[str, Any]:
    algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return json.loads(algorithm.to_jwk(key.public_key())) | {"kid": identity, "use": "sig"}


class Provider:
    """An identity provider; what it answers may be turned."""

    def __init__(self) -> None:
        self.keys = [public(RSA, "r"), public(EC, "e")]
        self.asked: list[str] = []
        self.answer: httpx.Response | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path)
        if self.answer is not None:
            return self.answer
        if request.url.path.endswith("openid-configuration"):
            return httpx.Response(200, json={"issuer": ISSUER, "jwks_uri": f"{ISSUER}/jwks"})
        return httpx.Response(
            200, json={"keys": [*self.keys, {"kty": "oct", "kid": "o", "k": "AAAA"}, 7, {"kty": "RSA"}]}
        )


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(provider: Provider, clock: Clock) -> Tokens:
    keys = ProviderKeys(ISSUER, transport=httpx.MockTransport(provider), clock=clock)
    return Tokens(keys, ISSUER, AUDIENCE, "scope")


def token(
    key: Any = RSA, identity: str | None = "r", algorithm: str = "RS256", headers: Any = None, **claims: Any
) -> str:
    now = int(time.time())
    said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": now + 60, "scope": "openid read write:pages"} | claims
    said = {name: value for name, value in said.items() if value is not None}
    return jwt.encode(said, key, algorithm, headers=({"kid": identity} if identity else {}) | (headers or {}))


async def test_a_good_token_grants_what_its_scope_claim_says_and_nothing_else(tokens: Tokens) -> None:
    for good in (token(), token(EC, "e", "ES256"), token(aud=["x", AUDIENCE]), token(scope=["read", "write:pages", 7])):
        caller = await tokens.verify(good)
        assert caller is not None
        assert (caller.id, caller.kind, [str(grant) for grant in caller.grants]) == (
            "ada",
            "token",
            ["read", "write:pages"],
        )
    nobody = await tokens.verify(token(scope="openid root READ *"))
    assert nobody is not None
    assert nobody.grants == ()


NOW = int(time.time())


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://evil.example"}, {"iss": None}, {"aud": "other"}, {"aud": None}, {"exp": NOW - 120},
        {"exp": None},
        {"nbf": NOW + 3600}, {"iat": NOW + 3600}, {"sub": None}, {"sub": "a\nb"}, {"sub": ""}, {"exp": "soon"},
        {"exp": 1e400},
    ],
)  # fmt: skip
async def test_wrong_claims_are_refused(tokens: Tokens, claims: dict[str, Any]) -> None:
    assert await tokens.verify(token(**claims)) is None


async def test_what_is_not_signed_by_the_provider_is_refused(tokens: Tokens) -> None:
    good = token()
    head, body, signature = good.split(".")
    shared = public(RSA, "r")["n"]  # the public key as a shared secret
    wrong = [
        token(STRANGER), token(identity="nobody"), token(identity=None), token(EC, "r", "ES256"), token(RSA, "e"),
        token(RSA, "r", "RS512"), token(RSA, "r", "PS256"), token(shared, "r", "HS256"), token("", "r", "none"),
        token(headers={"crit": ["x"]}), f"{head}.{body}.", f"{head}.{body}.{signature[:-4]}AAAA", "a.b.c", "..", "",
        f"{head}..{signature}", token(headers={"jwk": public(STRANGER, "r")}, key=STRANGER),
        token(headers={"jku": "https://evil.example/jwks"}, key=STRANGER),
    ]  # fmt: skip
    for text in wrong:
        assert await tokens.verify(text) is None, text
    assert await tokens.verify(good) is not None


async def test_a_new_key_of_the_provider_is_found_but_forged_ids_do_not_make_us_ask_all_the_time(
    tokens: Tokens, provider: Provider, clock: Clock
) -> None:
    await tokens.verify(token())
    asked = len(provider.asked)
    for number in range(50):
        assert await tokens.verify(token(STRANGER, f"forged{number}")) is None
    assert len(provider.asked) == asked
    provider.keys.append(public(STRANGER, "new"))
    clock.now += AGAIN_S + 1
    assert await tokens.verify(token(STRANGER, "new")) is not None
    assert len(provider.asked) == asked + 2


async def test_while_the_provider_is_down_the_last_keys_stand_for_the_bound(
    tokens: Tokens, provider: Provider, clock: Clock
) -> None:
    await tokens.verify(token())
    provider.answer = httpx.Response(503)
    clock.now += KEPT_S + 1
    assert await tokens.verify(token()) is not None
    clock.now += STALE_S
    with pytest.raises(TransientError, match="identity provider"):
        await tokens.verify(token())


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(302, headers={"Location": "http://169.254.169.254/"}), httpx.Response(200, content=b"{"),
        httpx.Response(200, content=b"[]"),
        httpx.Response(200, json={"keys": 7, "issuer": ISSUER, "jwks_uri": f"{ISSUER}/x"}),
        httpx.Response(200, content=b" " * (JWKS_BYTES_MAX + 1)),
        httpx.Response(200, json={"issuer": "https://evil.example", "jwks_uri": f"{ISSUER}/jwks"}),
        httpx.Response(200, json={"issuer": ISSUER, "jwks_uri": "http://169.254.169.254/latest"}),
        httpx.Response(200, json={"issuer": ISSUER}),
    ],
)  # fmt: skip
async def test_what_is_no_key_set_lets_nobody_in_and_is_not_followed(
    tokens: Tokens, provider: Provider, answer: httpx.Response
) -> None:
    provider.answer = answer
    with pytest.raises(TransientError):
        await tokens.verify(token())
    assert len(provider.asked) <= 2


@pytest.mark.parametrize(
    "url",
    [
        "http://id.example",
        "ftp://id.example",
        "https://",
        "",
        "https://u@id.example",
        "file:///etc/passwd",
        "http://127.0.0.1.evil.example",
    ],
)
def test_only_https_or_loopback_is_asked(url: str) -> None:
    with pytest.raises(ConfigurationError):
        check_url(url)


def test_a_provider_without_an_audience_is_a_wrong_setting() -> None:
    assert Tokens.of(load()) is None
    with pytest.raises(ConfigurationError, match="oidc_audience"):
        Tokens.of(load(oidc_issuer=ISSUER))
    check_url("http://127.0.0.1:9000/jwks")


async def test_over_rest_a_token_is_a_caller_and_clients_are_told_where_to_get_one(
    stand: Any, tmp_path: Path, tokens: Tokens
) -> None:
    callers = Callers(tmp_path)
    gate = callers.gate(tokens=tokens, resource=AUDIENCE, issuer=ISSUER)
    transport = httpx.ASGITransport(create_rest(stand.service(), gate=gate))
    async with httpx.AsyncClient(transport=transport, base_url="http://shoal") as http:
        path = "/api/v1/scrapes/search"
        assert (await http.get(path, headers={"Authorization": f"Bearer {token()}"})).status_code == 200
        assert (await http.get(path, headers=callers.headers("read"))).status_code == 200, "keys go on"
        refused = await http.get(path, headers={"Authorization": f"Bearer {token(STRANGER)}"})
        assert refused.status_code == 401
        where = f'resource_metadata="{AUDIENCE}/.well-known/oauth-protected-resource"'
        assert where in refused.headers["www-authenticate"]
        for suffix, resource in (("", AUDIENCE), ("/mcp", f"{AUDIENCE}/mcp")):
            told = (await http.get(f"/.well-known/oauth-protected-resource{suffix}")).json()
            assert told["resource"] == resource
            assert told["authorization_servers"] == [ISSUER]
            assert told["bearer_methods_supported"] == ["header"]
    plain = httpx.ASGITransport(create_rest(stand.service(), gate=callers.gate()))
    async with httpx.AsyncClient(transport=plain, base_url="http://shoal") as http:
        assert (await http.get("/.well-known/oauth-protected-resource")).status_code == 404
