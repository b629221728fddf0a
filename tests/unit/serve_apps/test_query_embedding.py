"""The deployment's class and its handle's adapter, without Serve."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayTaskError

from shoal.embeddings.models import create_model
from shoal.errors import ConfigurationError, TransientError
from shoal.serve_apps.query_embedding import QueryEmbedder, embed_through
from shoal.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, embedding_provider="hash")


async def test_a_question_gets_the_vector_of_the_collections_model(settings: Settings) -> None:
    embedder = QueryEmbedder(settings)
    for name in ("hash:64", "hash:32", "hash:64"):
        expected = create_model(settings, name).embed(["wind"], "query")[0]
        assert np.array_equal(await embedder.embed(name, "wind"), expected)
    await embedder.close()


async def test_a_third_model_takes_the_place_of_the_one_asked_longest_ago(settings: Settings) -> None:
    embedder = QueryEmbedder(settings)
    for name in ("hash:64", "hash:32", "hash:64", "hash:16"):
        await embedder.embed(name, "wind")
    assert list(embedder._held) == ["hash:64", "hash:16"]
    again = await embedder.embed("hash:32", "wind")
    assert np.array_equal(again, create_model(settings, "hash:32").embed(["wind"], "query")[0])
    assert list(embedder._held) == ["hash:16", "hash:32"]
    await embedder.close()


async def test_a_question_under_way_is_answered_by_a_model_that_loses_its_place(settings: Settings) -> None:
    embedder = QueryEmbedder(settings)
    await embedder.embed("hash:64", "warm")
    leaving = embedder._held["hash:64"]
    # 1. A question is asked of the model that will go; its answer is held back.
    gate, embed = asyncio.Event(), leaving.service.embed

    async def held_back(*asked: Any) -> Any:
        await gate.wait()
        return await embed(*asked)

    leaving.service.embed = held_back  # type: ignore[method-assign]
    asked = asyncio.create_task(embedder.embed("hash:64", "wind"))
    await asyncio.sleep(0)
    # 2. Two others take both places.
    for name in ("hash:32", "hash:16"):
        await embedder.embed(name, "wind")
    assert leaving.is_leaving
    # 3. The question gets its answer, and only then the model is closed.
    gate.set()
    assert (await asked).shape == (64,)
    with pytest.raises(TransientError, match="closed"):
        await embed(["wind"], "query")
    await embedder.close()


async def test_a_question_is_paid_by_the_collection_that_asks(settings: Settings) -> None:
    embedder = QueryEmbedder(settings)
    await embedder._warming  # it asks too, for nobody
    await embedder.embed("hash:64", "warm")
    charges: list[Any] = []
    embedder._held["hash:64"].service._caller._on_charges = charges.extend
    await embedder.embed("hash:64", "wind", "scraper")
    assert [(charge.purpose.lane, charge.purpose.collection) for charge in charges] == [("query", "scraper")]
    await embedder.close()


async def test_a_model_that_can_not_be_had_is_said_at_the_question_and_not_at_the_start(tmp_path: Path) -> None:
    embedder = QueryEmbedder(Settings(data_dir=tmp_path, embedding_provider="openai"))
    with pytest.raises(ConfigurationError):
        await embedder.embed("openai:text-embedding-3-small", "wind")
    await embedder.close()


@pytest.mark.parametrize("cause", [TransientError("throttled", 3.0), ConfigurationError("no key")])
async def test_our_errors_cross_the_handle_as_what_they_were(cause: Exception) -> None:
    class Method:
        async def remote(self, *_: Any) -> Any:
            raise RayTaskError("embed", "Traceback ...", cause).as_instanceof_cause()

    class Handle:
        embed = Method()

    with pytest.raises(type(cause)) as caught:
        await embed_through(Handle())("hash:64", "wind", "scraper")
    assert str(caught.value) == str(cause)


def test_settings_reach_a_replica_as_they_are_and_never_print_their_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path, openai_api_key="sk-hunter2", kafka_properties={"sasl.password": "hunter2"})
    packed = pickle.dumps(settings)
    monkeypatch.setenv("SHOAL_HTTP_PORT", "1")  # a replica's environment may differ
    replicas = pickle.loads(packed)
    assert replicas == settings
    assert replicas.openai_api_key.get_secret_value() == "sk-hunter2"
    assert "hunter2" not in repr(replicas)
