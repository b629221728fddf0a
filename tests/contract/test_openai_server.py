"""The fake provider does what OpenAI documents: it is what tests, chaos and benches believe."""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from shoal.embeddings.limiter import duration_s
from shoal.embeddings.openai_model import OpenAIModel
from shoal.errors import ConfigurationError, TransientError
from shoal.settings import Settings
from tests.fixtures.openai_account import Account
from tests.fixtures.openai_server import FakeOpenAI, Manners, vectors
from tests.fixtures.parts import ServerProcess, accepts_connections, free_ports

MODEL = "text-embedding-3-small"


def ask(server: FakeOpenAI, inputs: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/embeddings", json={"model": MODEL, "input": inputs}, timeout=30)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[FakeOpenAI]:
    fake = FakeOpenAI(manners=getattr(request, "param", None))
    yield fake
    fake.close()


@pytest.fixture
def model(server: FakeOpenAI) -> Iterator[OpenAIModel]:
    made = OpenAIModel(Settings(openai_api_key="sk-x", openai_base_url=server.url), MODEL)  # type: ignore[arg-type]
    yield made
    made.close()


def test_a_bucket_starts_full_is_filled_steadily_and_says_so() -> None:
    account = Account(60, 6000, 0.0)
    assert account.admit(6000, 0.0) is None
    refusal = account.admit(100, 0.5)
    assert refusal is not None
    assert (refusal.status, refusal.code, refusal.type) == (429, "rate_limit_exceeded", "tokens")
    assert refusal.headers["retry-after-ms"] == "500"
    assert refusal.headers["x-ratelimit-remaining-tokens"] == "50"
    assert duration_s(refusal.headers["x-ratelimit-reset-tokens"]) == pytest.approx(59.5)
    assert account.admit(100, 1.0) is None
    headers = account.headers(1.0)
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("60", "59")
    assert account.headers(1000.0)["x-ratelimit-remaining-tokens"] == "6000"


def test_requests_are_limited_as_tokens_are() -> None:
    account = Account(3, 6000, 0.0)
    assert [account.admit(1, 0.0) is None for _ in range(4)] == [True, True, True, False]
    refusal = account.admit(1, 10.0)
    assert refusal is not None
    assert (refusal.type, refusal.headers["retry-after"]) == ("requests", "10")


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ([], None),
        ([""], None),
        (["a"] * 2049, None),
        (["a " * 8193], "context_length_exceeded"),
        (["a " * 8000] * 38, "max_tokens_per_request"),
    ],
)
def test_what_no_account_may_send_is_refused_and_costs_nothing(server: FakeOpenAI, inputs: Any, code: str) -> None:
    server.account = Account(60, 1_000_000, time.monotonic())
    answer = ask(server, inputs)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == code
    assert server.told()["left"] == {"requests": 60, "tokens": 1_000_000}


@pytest.mark.parametrize("server", [Manners(limits=(3, 100.0))], indirect=True)
def test_limits_are_held_and_stand_in_every_answer(server: FakeOpenAI) -> None:
    assert ask(server, ["one two"] * 40).headers["x-ratelimit-remaining-tokens"] in ("20", "21")
    refused = ask(server, ["one two"] * 40)
    assert refused.status_code == 429
    assert refused.headers["x-ratelimit-limit-tokens"] == "100"
    assert float(refused.headers["retry-after-ms"]) > 30_000


@pytest.mark.parametrize("server", [Manners(limits=(60, 6000.0))], indirect=True)
def test_a_used_up_quota_is_no_rate_limit(server: FakeOpenAI, model: OpenAIModel) -> None:
    httpx.post(f"{server.url.removesuffix('/v1')}/control", json={"quota": False})
    with pytest.raises(ConfigurationError, match="quota is used up"):
        model.embed(["one"])
    httpx.post(f"{server.url.removesuffix('/v1')}/control", json={"quota": True})
    assert model.embed(["one"]).shape == (1, 1536)


@pytest.mark.parametrize(
    ("fate", "error"),
    [("throttle", TransientError), ("error", TransientError), ("reset", TransientError), ("truncate", TransientError),
     ("count", TransientError), ("width", ConfigurationError), ("nan", ConfigurationError)],
)  # fmt: skip
def test_each_fault_reaches_the_client_as_what_it_is(
    server: FakeOpenAI, model: OpenAIModel, fate: str, error: type[Exception]
) -> None:
    server.manners.faults = {fate: 1.0}
    with pytest.raises(error):
        model.embed(["one text"])
    server.manners.faults = {}
    assert np.allclose(model.embed(["one text"]), vectors(["one text"], 1536), atol=1e-5)


def test_answers_in_another_order_are_put_in_order_by_their_index(server: FakeOpenAI, model: OpenAIModel) -> None:
    server.manners.faults = {"order": 1.0}
    texts = ["load of the zone", "price of the zone", "weather"]
    rows = ask(server, texts).json()["data"]
    assert [row["index"] for row in rows] == [2, 1, 0]
    assert np.allclose(model.embed(texts), vectors(texts, 1536), atol=1e-5)


def test_as_a_process_it_holds_limits_has_a_rival_and_answers_the_same_each_time(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    words = [str(port), "--width", "8", "--limits", "600", "60000", "--count", "quarters", "--vectors", "bytes",
             "--rival", "6000", "0.05"]  # fmt: skip
    process = ServerProcess([sys.executable, "-m", "tests.fixtures.openai_server", *words], tmp_path / "log")
    try:
        process.wait_until(lambda: accepts_connections(port), 60)
        body = {"model": "m", "input": ["four", "and twelve"]}
        first, second = (httpx.post(f"http://127.0.0.1:{port}/v1/embeddings", json=body).json() for _ in range(2))
        assert first == second
        assert first["usage"]["total_tokens"] == 1 + 3
        assert len(base64.b64decode(first["data"][0]["embedding"])) == 4 * 8
        process.wait_until(lambda: httpx.get(f"http://127.0.0.1:{port}/counts").json().get("rival_tokens", 0) > 5, 30)
        counts = httpx.get(f"http://127.0.0.1:{port}/counts").json()
        assert (counts["answer"], counts["tokens"]) == (2, 8)
    finally:
        process.kill()
