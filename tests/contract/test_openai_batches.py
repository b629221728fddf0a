"""The SDK's way to the Batch API, against the fake that does what OpenAI documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from shoal.embeddings.batch_files import read_line
from shoal.embeddings.batch_provider import BatchProvider, EndpointRefused, Entry, NoBatchApi
from shoal.embeddings.models import create_batch_provider, create_model
from shoal.errors import ConfigurationError, TransientError
from shoal.settings import Settings, load
from tests.fixtures.openai_batches import BatchApi
from tests.fixtures.openai_server import FakeOpenAI, vectors

MODEL, WIDTH = "openai:text-embedding-3-small", 1536
TEXTS = ["load of the zone", "price of the zone", "weather"]
TAG = {"shoal_job": "j", "shoal_part": "0", "shoal_attempt": "0"}


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    fake = FakeOpenAI(WIDTH)
    fake.batches = BatchApi(fake.embeddings)
    yield fake
    fake.close()


def settings_for(server: FakeOpenAI, **more: Any) -> Settings:
    return load(openai_api_key="sk-x", openai_base_url=server.url, openai_batch_api="on", **more)


@pytest.fixture
def provider(server: FakeOpenAI) -> Iterator[BatchProvider]:
    made = create_batch_provider(settings_for(server), MODEL, WIDTH)
    assert made is not None
    yield made
    made.close()


def uploaded(provider: BatchProvider, path: Path, texts: list[str]) -> str:
    path.write_bytes(b"".join(provider.line(f"id-{n}", Entry(text, "document", 4)) for n, text in enumerate(texts)))
    return provider.upload(path)


def test_a_file_goes_up_a_batch_is_made_over_it_and_its_answers_are_live_vectors(
    server: FakeOpenAI, provider: BatchProvider, tmp_path: Path
) -> None:
    assert server.batches is not None
    file_id = uploaded(provider, tmp_path / "in", TEXTS)
    server.batches.spoil[TEXTS[2]] = lambda row: (
        row | {"response": {"status_code": 400, "body": {"error": {"code": "bad", "message": "no"}}}}
    )
    batch = provider.create(file_id, TAG)
    assert batch.status == "validating"
    seen = [provider.look(batch.id) for _ in range(3)]
    assert [each.status for each in seen] == ["in_progress", "finalizing", "completed"]
    provider.download(seen[-1].output_id, tmp_path / "out", 1_000_000)
    lines = {line.custom_id: line for line in map(read_line, (tmp_path / "out").read_bytes().splitlines())}
    assert set(lines) == {"id-0", "id-1"}
    for n in range(2):
        body = lines[f"id-{n}"].body
        assert body is not None
        vector = provider.read(body, Entry(TEXTS[n], "document", 4))
        np.testing.assert_allclose(vector, vectors([TEXTS[n]], WIDTH)[0], atol=1e-6)
    provider.download(seen[-1].error_id, tmp_path / "errors", 1_000_000)
    assert [read_line(raw).error for raw in (tmp_path / "errors").read_bytes().splitlines()] == ["bad no"]
    provider.delete([file_id, seen[-1].output_id, seen[-1].error_id, ""])
    assert server.batches.files == {}
    provider.delete([file_id])


def test_a_request_is_what_the_model_itself_would_post(server: FakeOpenAI) -> None:
    more = {"embedding_document_prefix": "passage: ", "embedding_query_prefix": "query: "}
    settings = settings_for(server, **more)
    name = "openai:text-embedding-3-small@512"
    prefixed = f"{name}+e5"
    server.width = 512
    provider, model = create_batch_provider(settings, prefixed, 512), create_model(settings, prefixed, width=512)
    assert provider is not None
    assert provider.name == model.name == prefixed
    long = "zone " * 9000  # a query above the limit is cut
    try:
        for text, kind in (("a chunk", "document"), ("a question", "query"), (long, "query")):
            model.embed([text], kind)  # type: ignore[arg-type]
            posted = {key: server.requests[-1][key] for key in ("model", "encoding_format", "dimensions")}
            line = orjson.loads(provider.line("i", Entry(text, kind, 1)))  # type: ignore[arg-type]
            assert line["body"] == {**posted, "input": server.requests[-1]["input"][0]}
    finally:
        provider.close()
        model.close()


def test_a_batch_is_found_by_its_tag_over_many_pages(
    server: FakeOpenAI, provider: BatchProvider, tmp_path: Path
) -> None:
    assert server.batches is not None
    file_id = uploaded(provider, tmp_path / "in", TEXTS)
    made = provider.create(file_id, TAG)
    for n in range(250):
        server.batches.create(
            {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h",
             "metadata": {**TAG, "shoal_part": str(n + 1)} if n % 2 else None}
        )  # fmt: skip
    found = provider.find(TAG, 0.0)
    assert found is not None
    assert found.id == made.id
    assert provider.find({**TAG, "shoal_job": "other"}, 0.0) is None
    before = server.batches.calls["GET batches"]
    assert provider.find({**TAG, "shoal_job": "other"}, server.batches.batches[0]["created_at"] + 10_000.0) is None
    assert server.batches.calls["GET batches"] == before + 1, "it stops at the first that is older"


def test_a_failed_batch_says_why(server: FakeOpenAI, provider: BatchProvider, tmp_path: Path) -> None:
    assert server.batches is not None
    server.batches.queue_tokens = 3
    batch = provider.look(provider.create(uploaded(provider, tmp_path / "in", TEXTS), TAG).id)
    assert (batch.status, batch.code) == ("failed", "token_limit_exceeded")
    assert "Limit: 3" in batch.message


def test_a_server_without_a_batch_api_is_told_in_one_line(
    server: FakeOpenAI, provider: BatchProvider, tmp_path: Path
) -> None:
    server.batches = None
    for call in (lambda: provider.find(TAG, 0.0), lambda: uploaded(provider, tmp_path / "in", TEXTS)):
        with pytest.raises(NoBatchApi, match=r"no Batch API.*SHOAL_OPENAI_BATCH_API=off") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_what_is_not_there_is_refused_and_an_endless_file_is_cut_off(
    server: FakeOpenAI, provider: BatchProvider, tmp_path: Path
) -> None:
    with pytest.raises(EndpointRefused, match="404"):
        provider.look("batch_none")
    with pytest.raises(EndpointRefused, match="404"):
        provider.download("file-none", tmp_path / "out", 100)
    with pytest.raises(EndpointRefused, match="400"):
        provider.create("file-none", TAG)
    with pytest.raises(EndpointRefused, match="longer than 100 bytes"):
        provider.download(uploaded(provider, tmp_path / "in", TEXTS), tmp_path / "out", 100)


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ((500, {"error": {"message": "oops"}}), TransientError, "500"),
        ((429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}), TransientError, "429"),
        ((429, {"error": {"message": "pay", "code": "insufficient_quota"}}), ConfigurationError, "quota"),
        ((401, {"error": {"message": "Incorrect API key: sk-x", "code": "invalid_key"}}), ConfigurationError, "401"),
        ((200, b"<html>login</html>"), TransientError, "openai:"),
        ((200, {"object": "list", "data": None}), TransientError, "openai:"),
        ((200, {"id": 3, "status": ["done"]}), TransientError, "none of the Batch API"),
    ],
)  # fmt: skip
def test_what_the_server_says_is_one_of_our_errors(
    server: FakeOpenAI, provider: BatchProvider, answer: Any, error: type[Exception], words: str
) -> None:
    assert server.batches is not None
    server.batches.answer = lambda *_: answer  # type: ignore[method-assign]
    for call in (lambda: provider.find(TAG, 0.0), lambda: provider.look("batch_1")):
        with pytest.raises(error, match=words) as caught:
            call()
        assert "sk-x" not in str(caught.value)
