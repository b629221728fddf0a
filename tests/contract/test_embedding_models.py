"""One suite that every embedding model obeys, and how the OpenAI adapter reads each failure of a server.

The server is a fake on loopback that answers as OpenAI documents it, unless a test scripts something else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.embeddings import openai_model
from shoal.embeddings.models import EmbeddingModel, create_model, model_width
from shoal.embeddings.openai_model import OpenAIModel
from shoal.errors import BadDocument, ConfigurationError, DeadReason, ShoalError, TransientError
from shoal.settings import Settings
from tests.fixtures.openai_server import FakeOpenAI, Reply

KEY = "sk-secret-of-the-test"


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    fake = FakeOpenAI()
    yield fake
    fake.close()


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "SHOAL_MODEL_DIR",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def openai(server: FakeOpenAI) -> Iterator[OpenAIModel]:
    model = OpenAIModel(Settings(openai_api_key=KEY, openai_base_url=server.url), "text-embedding-3-small")
    yield model
    model.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(params=["local:all-MiniLM-L6-v2", "hash:64", "openai:text-embedding-3-small", "openai:somebody/else"])
def model(request: pytest.FixtureRequest, server: FakeOpenAI, home: Path) -> Iterator[EmbeddingModel]:
    if request.param.endswith("else"):
        server.width = 40
    settings = Settings(data_dir=home, openai_api_key=KEY, openai_base_url=server.url, embedding_threads=1)
    created = create_model(settings, request.param)
    assert created.name == request.param
    assert model_width(settings, request.param) == created.width
    yield created
    created.close()


class TestEveryModel:
    def test_gives_unit_vectors_of_its_width_in_order(self, model: EmbeddingModel) -> None:
        texts = ["load forecast", "gas price and volume", "Größe in 東京", "load forecast"]
        vectors = model.embed(texts)
        assert vectors.shape == (4, model.width)
        assert vectors.dtype == np.float32
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert np.allclose(vectors[0], vectors[3], atol=1e-5)
        assert vectors[0] @ vectors[1] < 0.95
        for text, vector in zip(texts, vectors, strict=True):
            assert np.allclose(model.embed([text], "document")[0], vector, atol=1e-5)

    def test_takes_no_texts(self, model: EmbeddingModel) -> None:
        assert model.embed([]).shape == (0, model.width)

    def test_takes_a_full_batch(self, model: EmbeddingModel) -> None:
        texts = [f"reading {i}" for i in range(model.batch_inputs_max)]
        assert model.embed(texts).shape == (len(texts), model.width)

    @pytest.mark.parametrize("text", ["", " \n", "a\ud800b"])
    def test_refuses_what_nobody_can_embed(self, model: EmbeddingModel, text: str) -> None:
        with pytest.raises(BadDocument) as caught:
            model.embed(["fine", text])
        assert caught.value.reason is DeadReason.EMBEDDING_REJECTED

    def test_refuses_a_document_above_its_limit_and_cuts_a_query(self, model: EmbeddingModel) -> None:
        fits = "word " * (model.max_input_tokens - 2)
        assert model.count_tokens(fits) <= model.max_input_tokens
        too_long = fits + "word " * 10
        assert model.count_tokens(too_long) > model.max_input_tokens
        assert model.embed([fits]).shape == (1, model.width)
        with pytest.raises(BadDocument) as caught:
            model.embed([too_long])
        assert caught.value.reason is DeadReason.EMBEDDING_REJECTED
        assert model.embed([too_long], "query").shape == (1, model.width)

    def test_may_be_called_from_several_threads(self, model: EmbeddingModel) -> None:
        texts = [f"station {i}" for i in range(8)]
        expected, results = model.embed(texts), []
        threads = [threading.Thread(target=lambda: results.append(model.embed(texts))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 4
        assert all(np.allclose(result, expected, atol=1e-5) for result in results)


def test_a_request_is_what_openai_documents(openai: OpenAIModel, server: FakeOpenAI) -> None:
    openai.embed(["one", "two"])
    assert server.requests == [
        {
            "path": "/v1/embeddings", "authorization": f"Bearer {KEY}", "input": ["one", "two"],
            "model": "text-embedding-3-small", "encoding_format": "base64",
        }
    ]  # fmt: skip


def test_lists_of_numbers_and_any_order_are_understood(openai: OpenAIModel, server: FakeOpenAI) -> None:
    texts = ["one", "two", "three"]
    expected = openai.embed(texts)

    def shuffled(request: dict[str, Any]) -> Reply:
        answer = server.embeddings(request, as_lists=True)
        return Reply(body={**answer, "data": [answer["data"][i] for i in (2, 0, 1)]})

    server.script = [shuffled]
    assert np.allclose(openai.embed(texts), expected, atol=1e-6)


def test_a_server_without_keys_needs_none(server: FakeOpenAI) -> None:
    model = OpenAIModel(Settings(openai_api_key=None, openai_base_url=server.url), "text-embedding-3-small")
    assert model.embed(["one"]).shape == (1, 1536)
    model.close()


def error(status: int, code: str | None, message: str = "some words", **headers: str) -> Reply:
    kind = {"insufficient_quota": "insufficient_quota", "rate_limit_exceeded": "tokens"}.get(
        code or "", "invalid_request_error"
    )
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return Reply(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    ("reply", "expected", "words"),
    [
        (error(429, "rate_limit_exceeded", retry_after="7"), TransientError, "rate limit"),
        (error(429, "insufficient_quota", retry_after="7"), ConfigurationError, "quota"),
        (error(401, "invalid_api_key", f"Incorrect API key provided: {KEY}"), ConfigurationError, "OPENAI_API_KEY"),
        (error(403, "unsupported_country_region_territory"), ConfigurationError, "unsupported_country"),
        (error(404, "model_not_found"), ConfigurationError, "OPENAI_EMBEDDING_MODEL"),
        (Reply(404, b"<html>not found</html>"), ConfigurationError, "OPENAI_BASE_URL"),
        (error(400, "context_length_exceeded", "maximum context length is 8192"), BadDocument, "maximum context"),
        (error(413, None), BadDocument, "413"),
        (error(500, None), TransientError, "500"),
        (error(503, None, retry_after="3"), TransientError, "503"),
        (error(408, None), TransientError, "408"),
        (Reply(502, b"<html>bad gateway</html>"), TransientError, "502"),
        (Reply(200, b"<html>a login page</html>"), TransientError, "no list of embeddings"),
        (Reply(200, {"data": []}), TransientError, "0 embeddings for 1"),
        (Reply(200, {"data": [{"index": 5, "embedding": [1.0]}]}), TransientError, "no list"),
        (Reply(200, {"data": [{"index": 0, "embedding": "?"}]}), TransientError, "no list"),
        (Reply(200, {"data": [{"index": 0, "embedding": []}]}), TransientError, "empty"),
        (Reply(200, {"data": None}), TransientError, "no list"),
        (Reply(200, {"data": [{"index": 0, "embedding": [1.0, 0.0]}]}), ConfigurationError, "2 wide"),
    ],
)  # fmt: skip
def test_each_failure_is_one_of_ours(
    openai: OpenAIModel, server: FakeOpenAI, reply: Reply, expected: type[ShoalError], words: str
) -> None:
    server.script = [reply]
    with pytest.raises(expected, match=words) as caught:
        openai.embed(["one"])
    assert type(caught.value) is expected
    assert KEY not in str(caught.value)
    assert openai.embed(["two"]).shape == (1, 1536)  # nothing stays broken


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "7"}, 7.0),
        ({"retry_after_ms": "1500", "retry_after": "2"}, 1.5),
        ({}, None),
        ({"retry_after": "soon"}, None),
    ],
)
def test_what_the_server_asks_to_wait_is_told_and_held(
    openai: OpenAIModel, server: FakeOpenAI, headers: dict[str, str], seconds: float | None
) -> None:
    server.script = [error(429, "rate_limit_exceeded", **headers)]
    with pytest.raises(TransientError) as caught:
        openai.embed(["one"])
    assert caught.value.retry_after_s == seconds
    assert openai.limiter.acquire(1, time.monotonic()) == pytest.approx(seconds or 1.0, abs=0.5)


def test_the_limits_in_the_answers_headers_reach_the_limiter(openai: OpenAIModel, server: FakeOpenAI) -> None:
    limits = {"limit": "20000", "remaining": "0", "reset": "60s"}
    server.script = [Reply(headers={f"x-ratelimit-{name}-tokens": value for name, value in limits.items()})]
    assert openai.limiter.acquire(1000, time.monotonic()) == 0
    openai.embed(["one"])
    assert openai.limiter.acquire(1000, time.monotonic()) == pytest.approx(3, abs=1)


@pytest.mark.parametrize("poison", ["400", "nan", "zero"])
def test_an_unclear_refusal_blames_the_text_only_if_another_text_is_taken(
    openai: OpenAIModel, server: FakeOpenAI, poison: str
) -> None:
    def refuse(request: dict[str, Any]) -> Reply:
        if poison == "400":
            return error(400, None, "'$.input' is invalid")
        value = [None] * 1536 if poison == "nan" else [0.0] * 1536
        return Reply(body={"data": [{"index": 0, "embedding": value}]})

    server.script = [refuse]
    with pytest.raises(BadDocument) as caught:
        openai.embed(["poison"])
    assert caught.value.reason is DeadReason.EMBEDDING_REJECTED
    assert [request["input"] for request in server.requests] == [["poison"], ["shoal"]]
    server.script = [refuse, refuse]
    with pytest.raises(ConfigurationError, match="refuses every text"):
        openai.embed(["poison"])


def test_an_outage_during_the_proof_blames_nobody(openai: OpenAIModel, server: FakeOpenAI) -> None:
    server.script = [error(400, None), error(503, None)]
    with pytest.raises(TransientError):
        openai.embed(["suspect"])


def test_a_refused_batch_is_left_to_be_halved(openai: OpenAIModel, server: FakeOpenAI) -> None:
    server.script = [error(400, "max_tokens_per_request")]
    with pytest.raises(BadDocument):
        openai.embed(["one", "two"])
    assert len(server.requests) == 1


def test_a_server_that_does_not_answer_is_transient(
    openai: OpenAIModel, server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    openai._client = openai._client.with_options(timeout=0.1)
    server.script = [Reply(delay_s=30)]
    with pytest.raises(TransientError, match="no answer"):
        openai.embed(["one"])


def test_a_server_that_is_not_there_is_transient() -> None:
    model = OpenAIModel(Settings(openai_api_key=KEY, openai_base_url="http://127.0.0.1:9/v1"), "text-embedding-3-small")
    with pytest.raises(TransientError, match=r"no connection to 127\.0\.0\.1"):
        model.embed(["one"])
    model.close()


def test_a_model_of_known_width_starts_while_its_server_is_away() -> None:
    settings = Settings(openai_api_key=KEY, openai_base_url="http://127.0.0.1:9/v1")
    model = OpenAIModel(settings, "somebodys-own", width=384)
    assert model.width == 384
    model.close()
    with pytest.raises(TransientError, match="no connection"):
        OpenAIModel(settings, "somebodys-own")


def test_openai_retries_nothing_itself(openai: OpenAIModel, server: FakeOpenAI) -> None:
    server.script = [error(500, None)] * 3
    with pytest.raises(TransientError):
        openai.embed(["one"])
    assert len(server.requests) == 1


def test_openai_is_where_a_model_goes_without_a_base_url() -> None:
    model = OpenAIModel(Settings(openai_api_key=KEY, openai_base_url=None), "text-embedding-3-small")
    assert str(model._client.base_url) == "https://api.openai.com/v1/"
    assert KEY not in repr(vars(model))
    model.close()


def test_the_unknown_width_of_an_unreachable_server_is_transient(server: FakeOpenAI) -> None:
    server.script = [error(503, None)]
    with pytest.raises(TransientError):
        OpenAIModel(Settings(openai_api_key=KEY, openai_base_url=server.url), "somebody/else")
    assert openai_model.OPENAI_WIDTHS.get("somebody/else") is None
