"""One suite that every embedding model obeys, and how the OpenAI adapter reads each failure of a server.

The server is a fake on loopback that answers as OpenAI documents it, unless a test scripts something else.
"""

from __future__ import annotations

import gzip
import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.embeddings import openai_model
from shoal.embeddings.embedding_model import EmbeddingModel
from shoal.embeddings.local_model import model_directory
from shoal.embeddings.models import create_model, model_width
from shoal.embeddings.openai_model import OpenAIModel
from shoal.errors import (
    BadDocument,
    ConfigurationError,
    DeadReason,
    QuotaError,
    ShoalError,
    ThrottledError,
    TransientError,
)
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
        "AZURE_OPENAI_ENDPOINT",
        "AZURE_OPENAI_API_KEY",
        "OPENAI_API_VERSION",
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


@pytest.fixture(
    params=[
        "local:all-MiniLM-L6-v2",
        "hash:64",
        "openai:text-embedding-3-small",
        "openai:somebody/else",
        "openai:intfloat/e5-small+e5",
    ]
)
def model(request: pytest.FixtureRequest, server: FakeOpenAI, home: Path) -> Iterator[EmbeddingModel]:
    if "/" in request.param:
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
        fits = "word " * (model.max_input_tokens - model.count_tokens("word") - 1)
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
        (error(429, "rate_limit_exceeded", retry_after="7"), ThrottledError, "rate limit"),
        (error(429, "insufficient_quota", retry_after="7"), QuotaError, "quota"),
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
        (Reply(200, b""), TransientError, "no JSON"),
        (Reply(200, {"error": {"message": f"bad {KEY}", "code": "boom"}}), TransientError, "boom bad"),
        (Reply(200, {"error": {"type": "insufficient_quota"}}), QuotaError, "quota"),
        (Reply(200, {"data": []}), TransientError, "0 embeddings for 1"),
        (Reply(200, gzip.compress(b"{}"), {"Content-Encoding": "gzip"}), TransientError, "no list"),
        (Reply(200, b"these are no packed bytes", {"Content-Encoding": "gzip"}), TransientError, "broke off"),
        (Reply(200, b"zz\r\n{}", {"Transfer-Encoding": "chunked"}), TransientError, "broke off|no connection"),
        (Reply(500, b"x" * 10_000_000), TransientError, "500"),
        (Reply(401, b"x" * 10_000_000), ConfigurationError, "OPENAI_API_KEY"),
        (Reply(400, gzip.compress(bytes(100_000_000)), {"Content-Encoding": "gzip"}), BadDocument, "400"),
        (Reply(302, b"x" * 10_000_000), ConfigurationError, "302 : see OPENAI_BASE_URL"),
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


def test_nothing_is_asked_of_a_server_when_its_model_is_made() -> None:
    settings = Settings(openai_api_key=KEY, openai_base_url="http://127.0.0.1:9/v1")
    model = OpenAIModel(settings, "somebodys-own", width=384)
    assert model.width == 384
    model.close()
    model = OpenAIModel(settings, "somebodys-own")
    with pytest.raises(TransientError, match="no connection"):
        assert model.width
    model.close()


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


def test_an_answer_is_read_up_to_a_bound(
    openai: OpenAIModel, server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_model, "ANSWER_BYTES_MAX", 100_000)
    bomb = gzip.compress(bytes(50_000_000))
    server.script = [Reply(body=b" " * 200_000), Reply(body=bomb, headers={"Content-Encoding": "gzip"})]
    for _ in range(2):
        with pytest.raises(TransientError, match="longer than 100000 bytes"):
            openai.embed(["one"])
    assert openai.embed(["one"]).shape == (1, 1536)


def test_an_answer_that_dribbles_in_for_ever_is_given_up(server: FakeOpenAI) -> None:
    ticks = itertools.count(0.0, 100.0)
    settings = Settings(openai_api_key=KEY, openai_base_url=server.url)
    model = OpenAIModel(settings, "text-embedding-3-small", clock=lambda: next(ticks))
    server.script = [Reply(body=b" " * 10_000_000)]
    with pytest.raises(TransientError, match="not complete"):
        model.embed(["one"])
    model.close()


def test_a_packed_answer_is_understood_though_none_was_asked_for(openai: OpenAIModel, server: FakeOpenAI) -> None:
    def packed(request: dict[str, Any]) -> Reply:
        raw = json.dumps(server.embeddings(request)).encode()
        return Reply(body=gzip.compress(raw), headers={"Content-Encoding": "gzip"})

    expected = openai.embed(["one"])
    server.script = [packed]
    assert np.array_equal(openai.embed(["one"]), expected)
    assert server.headers[0]["accept-encoding"] == "identity"


def test_another_of_openais_models_is_found_out_by_its_name(openai: OpenAIModel, server: FakeOpenAI) -> None:
    """text-embedding-ada-002 has the same width: nothing else would tell."""
    server.script = [lambda request: Reply(body=server.embeddings(request, model="text-embedding-ada-002"))]
    with pytest.raises(ConfigurationError, match="answers with text-embedding-ada-002"):
        openai.embed(["one"])
    server.script = [lambda request: Reply(body=server.embeddings(request, model="gateway/small"))]
    assert openai.embed(["one"]).shape == (1, 1536)


def test_a_text_of_openais_that_must_be_within_the_limit_is_not_counted_again(
    openai: OpenAIModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return 1

    monkeypatch.setattr(openai, "_count", count)
    short, long = "x" * openai.max_input_tokens, "x" * (openai.max_input_tokens + 1)
    assert openai.embed([short, long]).shape == (2, 1536)
    assert counted == [long]
    assert openai.embed(["load forecast"], "query").shape == (1, 1536)
    assert counted == [long]


def test_the_limiter_learns_what_another_server_has_read(server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    server.width = 40
    model = OpenAIModel(Settings(openai_base_url=server.url), "somebody/else", width=40)
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(model.limiter, "answered", lambda *_, tokens=0, used=0, **__: told.append((tokens, used)))
    server.script = [
        Reply(),  # how much of a text it reads is tried once, within the limits
        lambda request: Reply(body=server.embeddings(request, usage={"prompt_tokens": 30})),
        Reply(body={"data": []}),
    ]
    texts = ["load forecast by zone", "prices"]
    assert model.embed(texts).shape == (2, 40)
    with pytest.raises(TransientError):
        model.embed(texts)
    estimate = sum(model.count_tokens(text) for text in texts)
    assert told[0][0] == 504
    assert told[1:] == [(estimate, 30), (estimate, 0)]
    model.close()


class TestDimensions:
    def test_are_asked_for_and_part_of_the_name(self, server: FakeOpenAI) -> None:
        server.width = 512
        settings = Settings(openai_api_key=KEY, openai_base_url=server.url)
        model = create_model(settings, "openai:text-embedding-3-small@512")
        assert (model.name, model.width) == ("openai:text-embedding-3-small@512", 512)
        assert model.embed(["one"]).shape == (1, 512)
        assert server.requests[0]["dimensions"] == 512
        model.close()

    def test_that_a_server_ignores_are_refused(self, server: FakeOpenAI) -> None:
        model = create_model(Settings(openai_base_url=server.url), "openai:text-embedding-3-small@512")
        with pytest.raises(ConfigurationError, match="ignores the dimensions"):
            model.embed(["one"])
        model.close()


class TestACompatibleServer:
    """Its model is one that we know nothing of."""

    @pytest.fixture
    def theirs(self, server: FakeOpenAI) -> Iterator[OpenAIModel]:
        server.width = 40
        model = OpenAIModel(Settings(openai_base_url=server.url), "somebody/else", width=40)
        yield model
        model.close()

    def test_must_read_as_much_of_a_text_as_it_will_be_sent(self, theirs: OpenAIModel, server: FakeOpenAI) -> None:
        def cutting(request: dict[str, Any]) -> Reply:
            return Reply(body=server.embeddings(request, usage={"prompt_tokens": 128}))

        server.script = [cutting]
        with pytest.raises(ConfigurationError, match="SHOAL_OPENAI_MAX_INPUT_TOKENS=128"):
            theirs.embed(["one"])
        assert [request["input"] for request in server.requests] == [["the " * 504]]
        assert theirs.embed(["one"]).shape == (1, 40)  # asked again: it was mended meanwhile
        theirs.embed(["two"])
        assert [request["input"] for request in server.requests[2:]] == [["one"], ["two"]]  # and asked once

    def test_that_is_away_at_its_first_use_is_asked_again(self, theirs: OpenAIModel, server: FakeOpenAI) -> None:
        server.script = [error(503, None)]
        with pytest.raises(TransientError):
            theirs.embed(["one"])
        assert theirs.embed(["one"]).shape == (1, 40)

    def test_that_refuses_the_length_names_the_setting(self, theirs: OpenAIModel, server: FakeOpenAI) -> None:
        server.script = [error(413, None, "`inputs` must have less than 256 tokens. Given: 506")]
        with pytest.raises(ConfigurationError, match=r"256 tokens.*SHOAL_OPENAI_MAX_INPUT_TOKENS"):
            theirs.embed(["one"])

    def test_that_tells_no_usage_is_warned_about(
        self, theirs: OpenAIModel, server: FakeOpenAI, caplog: pytest.LogCaptureFixture
    ) -> None:
        server.script = [lambda request: Reply(body=server.embeddings(request, usage=None))] * 2
        assert theirs.embed(["one"]).shape == (1, 40)
        assert "whether it cuts is unknown" in caplog.text

    def test_that_may_have_cut_a_text_gives_no_vector(self, theirs: OpenAIModel, server: FakeOpenAI) -> None:
        theirs.embed(["one"])
        server.script = [lambda request: Reply(body=server.embeddings(request, usage={"prompt_tokens": 512}))]
        with pytest.raises(BadDocument, match="may have been cut"):
            theirs.embed(["word " * 200])

    def test_takes_a_text_of_half_its_window_unless_its_tokenizer_is_here(
        self, theirs: OpenAIModel, server: FakeOpenAI
    ) -> None:
        assert theirs.max_input_tokens == 256
        file = model_directory(Settings(model_dir=None), "all-MiniLM-L6-v2") / "tokenizer.json"
        settings = Settings(openai_base_url=server.url, openai_tokenizer=file)
        exact = OpenAIModel(settings, "somebody/else", width=40)
        assert exact.max_input_tokens == 512
        assert exact.count_tokens("word " * 510) == 512
        server.script = [
            Reply(),
            lambda request: Reply(body=server.embeddings(request, usage={"prompt_tokens": 1024})),
            lambda request: Reply(body=server.embeddings(request, usage={"prompt_tokens": 900})),
        ]
        assert exact.embed(["word " * 510] * 2).shape == (2, 40)
        with pytest.raises(BadDocument, match="may have been cut"):
            exact.embed(["word " * 510] * 2)
        exact.embed(["word " * 900], "query")
        assert server.requests[-1]["input"] == [("word " * 510).rstrip() + " "]
        exact.close()

    def test_is_sent_no_more_texts_than_it_said_it_takes(self, theirs: OpenAIModel, server: FakeOpenAI) -> None:
        theirs.embed(["one"])
        server.requests.clear()

        def limited(request: dict[str, Any]) -> Reply:
            count = len(request["input"])
            if count <= 8:
                return Reply()
            return error(422, None, f"batch size {count} > maximum allowed batch size 8")

        server.script = [limited] * 9
        texts = [f"reading {i}" for i in range(20)]
        vectors = theirs.embed(texts)
        assert [len(request["input"]) for request in server.requests] == [20, 8, 8, 4]
        server.script.clear()
        assert np.allclose(vectors, np.concatenate([theirs.embed([text]) for text in texts]), atol=1e-6)
        assert theirs.batch_inputs_max == 8

    def test_every_request_that_it_gets_is_told_and_its_probes_wait_for_room(self, server: FakeOpenAI) -> None:
        """One request per `embed` is its caller's to book; whatever goes beyond that is told."""
        server.width, told, slept = 40, list[tuple[int, int, int, bool]](), list[float]()
        now = [100.0]

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            now[0] += seconds

        def on_own(*charge: Any) -> None:
            told.append(charge)

        settings = Settings(openai_base_url=server.url, openai_tokens_per_minute=100_000)
        model = OpenAIModel(settings, "x/y", on_own=on_own, clock=lambda: now[0], sleep=sleep)
        model.limiter.acquire(10_100, now[0], is_urgent=True)  # queries have gone before
        # 1. A width that nobody knows, and its encoding, which it does not take.
        server.script = [error(422, None, "unknown: encoding_format")]
        assert model.width == 40
        assert slept
        assert told == [(1, 1, 4, True), (1, 1, 4, False)]
        # 2. The first text: how much it reads is asked before.
        told.clear()
        model.embed(["one"])
        assert told == [(1, 1, 504, False)]
        # 3. Fewer texts in a request than it was sent: one refused, three parts, of which one is the caller's.
        told.clear()
        server.script = [error(422, None, "batch size 20 > maximum allowed batch size 8")]
        model.embed([f"reading {i}" for i in range(20)])
        assert [(requests, texts, has_failed) for requests, texts, _, has_failed in told] == [
            (1, 20, True), (1, 0, False), (1, 0, False),
        ]  # fmt: skip
        # 4. A text that it refuses, though it takes another.
        told.clear()
        server.script = [error(400, None, "no")]
        with pytest.raises(BadDocument):
            model.embed(["odd"])
        assert told == [(1, 1, 4, False)]
        embeds = 3
        assert len(server.requests) == 2 + 1 + 3 + 1 + embeds
        model.close()

    def test_a_probe_that_finds_no_room_is_put_off(self, server: FakeOpenAI) -> None:
        slept: list[float] = []
        model = OpenAIModel(Settings(openai_base_url=server.url), "x/y", clock=lambda: 100.0, sleep=slept.append)
        model.limiter.throttled({}, 60.0, 100.0)
        with pytest.raises(TransientError, match="no room"):
            model.embed(["one"])
        assert not server.requests
        model.close()

    @pytest.mark.parametrize("status", [400, 422, 500])
    def test_that_takes_no_encoding_is_asked_for_numbers(
        self, theirs: OpenAIModel, server: FakeOpenAI, status: int
    ) -> None:
        theirs.embed(["one"])
        expected = theirs.embed(["one"])
        server.requests.clear()

        def plain(request: dict[str, Any]) -> Reply:
            if request["encoding_format"] == "base64":
                return error(status, None, "Setting encoding_format is not supported by this provider")
            return Reply(body=server.embeddings(request, as_lists=True))

        server.script = [plain] * 3
        assert np.allclose(theirs.embed(["one"]), expected, atol=1e-6)
        theirs.embed(["one"])
        assert [request["encoding_format"] for request in server.requests] == ["base64", "float", "float"]

    def test_has_the_width_of_its_first_answer_ever_after(self, server: FakeOpenAI) -> None:
        server.width = 40
        model = OpenAIModel(Settings(openai_base_url=server.url), "somebody/else")
        assert model.embed(["one"]).shape == (1, 40)
        server.width = 48
        with pytest.raises(ConfigurationError, match="48 wide"):
            model.embed(["one"])
        model.close()


class TestAzure:
    @pytest.fixture
    def settings(self, server: FakeOpenAI) -> Settings:
        return Settings(
            azure_openai_endpoint=server.url.removesuffix("/v1"), azure_openai_api_key=KEY,
            azure_openai_deployments={"text-embedding-3-small": "my small one"},
        )  # fmt: skip

    def test_is_asked_at_its_own_address_with_its_own_key(self, server: FakeOpenAI, settings: Settings) -> None:
        model = create_model(settings)
        assert model.name == "openai:text-embedding-3-small"  # the same vectors: a collection may move
        assert model.embed(["one"]).shape == (1, 1536)
        assert server.requests[0]["path"] == ("/openai/deployments/my%20small%20one/embeddings?api-version=2024-10-21")
        assert server.headers[0]["api-key"] == KEY
        assert "authorization" not in server.headers[0]
        model.close()

    def test_names_its_own_settings(self, server: FakeOpenAI, settings: Settings) -> None:
        model = create_model(settings, "openai:text-embedding-3-large")
        server.script = [error(404, "DeploymentNotFound"), error(401, "401", f"Access denied: {KEY}")]
        with pytest.raises(ConfigurationError, match=r"DeploymentNotFound: see .*SHOAL_AZURE_OPENAI_DEPLOYMENTS"):
            model.embed(["one"])
        with pytest.raises(ConfigurationError, match="AZURE_OPENAI_API_KEY") as caught:
            model.embed(["one"])
        assert KEY not in str(caught.value)
        model.close()

    def test_finds_a_deployment_of_another_model(self, server: FakeOpenAI, settings: Settings) -> None:
        model = create_model(settings)
        server.script = [lambda request: Reply(body=server.embeddings(request, model="text-embedding-ada-002"))]
        with pytest.raises(ConfigurationError, match="SHOAL_AZURE_OPENAI_DEPLOYMENTS"):
            model.embed(["one"])
        model.close()

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"azure_openai_api_key": None}, "AZURE_OPENAI_API_KEY"),
            ({"openai_base_url": "http://127.0.0.1:9/v1"}, "unset one"),
        ],
    )
    def test_that_is_half_configured_is_an_error(self, settings: Settings, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigurationError, match=words):
            create_model(settings.model_copy(update=changes))


def test_a_prefixed_model_sends_its_prefix(server: FakeOpenAI) -> None:
    server.width = 40
    model = create_model(Settings(openai_base_url=server.url), "openai:intfloat/e5-small-v2+e5", width=40)
    model.embed(["wind"])
    model.embed(["wind"], "query")
    assert [request["input"] for request in server.requests[1:]] == [["passage: wind"], ["query: wind"]]
    assert {request["model"] for request in server.requests} == {"intfloat/e5-small-v2"}
    model.close()
