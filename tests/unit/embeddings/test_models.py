"""Names mean models, and planning with them loads nothing heavy."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.embeddings.hash_model import HashModel
from shoal.embeddings.local_model import model_directory
from shoal.embeddings.model_names import parse
from shoal.embeddings.models import create_model, default_model_name, model_width, token_budget
from shoal.errors import ConfigurationError
from shoal.settings import Settings

MINILM_TOKENIZER = model_directory(Settings(model_dir=None), "all-MiniLM-L6-v2") / "tokenizer.json"


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("SHOAL_", "OPENAI_")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("options", "name", "width"),
    [
        ({}, "local:all-MiniLM-L6-v2", 384),
        ({"openai_api_key": "sk-x"}, "openai:text-embedding-3-small", 1536),
        (
            {"openai_api_key": "sk-x", "openai_embedding_model": "text-embedding-3-large"},
            "openai:text-embedding-3-large",
            3072,
        ),
        ({"openai_api_key": "sk-x", "embedding_provider": "local"}, "local:all-MiniLM-L6-v2", 384),
        ({"embedding_provider": "hash"}, "hash:64", 64),
        ({"local_quantized": True}, "local:all-MiniLM-L6-v2@int8", 384),
        ({"azure_openai_endpoint": "https://x.openai.azure.com"}, "openai:text-embedding-3-small", 1536),
        ({"openai_api_key": "sk-x", "openai_embedding_dimensions": 512}, "openai:text-embedding-3-small@512", 512),
        ({"openai_api_key": "sk-x", "openai_embedding_dimensions": 1536}, "openai:text-embedding-3-small", 1536),
        (
            {"openai_api_key": "sk-x", "openai_embedding_model": "a/b", "openai_embedding_dimensions": 256},
            "openai:a/b@256",
            256,
        ),
    ],
)
def test_the_settings_decide_the_model_of_new_collections(options: dict[str, Any], name: str, width: int) -> None:
    settings = Settings(**options)
    assert default_model_name(settings) == name
    assert model_width(settings, name) == width


def test_a_collection_keeps_its_model_whatever_the_settings_say() -> None:
    settings = Settings(openai_api_key="sk-x")
    model = create_model(settings, "hash:32")
    assert (model.name, model.width) == ("hash:32", 32)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "minilm",
        "local:",
        "hash:",
        "hash:0",
        "hash:many",
        "hash:-1",
        "torch:x",
        "hash:99999999",
        ":x",
        "hash:64@8",
        "hash:64+e5",
        "local:m@512",
        "openai:m@int8",
    ],
)
def test_an_unknown_name_is_an_error_that_says_what_a_name_is(name: str) -> None:
    with pytest.raises(ConfigurationError, match="hash:WIDTH"):
        model_width(Settings(), name or "?")


@pytest.mark.parametrize(
    "name",
    [
        "openai:text-embedding-3-small@512", "openai:a/b:latest@256+e5", "local:my-model@int8", "local:my-model+own-0a",
        "openai:a@b", "openai:nomic-embed-text:v1.5+nomic", "openai:x@0", "openai:x@123456", "hash:64",
    ],
)  # fmt: skip
def test_a_name_is_read_as_it_is_written(name: str) -> None:
    assert str(parse(name)) == name


@pytest.mark.parametrize(
    "options",
    [
        {"openai_embedding_model": "text-embedding-ada-002", "openai_embedding_dimensions": 512},
        {"openai_embedding_model": "text-embedding-3-small", "openai_embedding_dimensions": 2000},
    ],
)
def test_dimensions_that_the_model_has_not_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="OPENAI_EMBEDDING_DIMENSIONS"):
        default_model_name(Settings(openai_api_key="sk-x", **options))
    with pytest.raises(ConfigurationError, match="DIMENSIONS"):
        parse(f"openai:{options['openai_embedding_model']}@{options['openai_embedding_dimensions']}")


@pytest.mark.parametrize("model", ["gpt+", "a+b", "a@7", "a@int8"])
def test_a_model_whose_name_would_be_misread_is_refused(model: str) -> None:
    settings = Settings(openai_base_url="http://127.0.0.1:9", embedding_provider="openai", openai_embedding_model=model)
    if model == "gpt+":
        assert default_model_name(settings) == "openai:gpt+"
        return
    with pytest.raises(ConfigurationError):
        default_model_name(settings)


@pytest.mark.parametrize(
    ("options", "model", "tokens"),
    [
        ({}, "somebody/else", 250),
        ({}, "nomic-embed-text", 1000),
        ({}, "all-minilm", 122),
        ({"openai_max_input_tokens": 1024}, "somebody/else", 506),
        ({"openai_max_input_tokens": 8192}, "somebody/else", 1000),
        ({"openai_max_input_tokens": 8192}, "text-embedding-3-small", 1000),
        ({"openai_tokenizer": MINILM_TOKENIZER}, "somebody/else", 506),
    ],
)
def test_a_chunk_takes_half_of_a_window_whose_tokens_are_not_ours(
    options: dict[str, Any], model: str, tokens: int
) -> None:
    count, tokens_max, _ = token_budget(Settings(**options), f"openai:{model}")
    assert tokens_max == tokens
    assert pickle.loads(pickle.dumps(count))("one two three") == 3


def test_a_tokenizer_that_is_none_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"tokenizer\.json can't be read"):
        token_budget(Settings(openai_tokenizer=tmp_path / "tokenizer.json"), "openai:a/b")


def test_openai_without_a_key_is_an_error_that_names_the_setting() -> None:
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        create_model(Settings(), "openai:text-embedding-3-small")


@pytest.mark.parametrize(
    ("name", "tokens", "overlap"),
    [("local:all-MiniLM-L6-v2", 250, 41), ("openai:text-embedding-3-small", 1000, 200), ("hash:64", 250, 40)],
)
def test_a_budget_counts_its_models_tokens_and_can_be_pickled(name: str, tokens: int, overlap: int) -> None:
    count, tokens_max, overlap_tokens = token_budget(Settings(), name)
    assert (tokens_max, overlap_tokens) == (tokens, overlap)
    assert count("one two three") == pickle.loads(pickle.dumps(count))("one two three") == 3
    assert count("") == 0


def test_planning_loads_neither_runtime_nor_sdk_nor_weights() -> None:
    program = """
import sys
from shoal.embeddings import models, service, cache
from shoal.settings import Settings
settings = Settings(_env_file=None)
for name in ("local:all-MiniLM-L6-v2", "openai:text-embedding-3-small", "hash:64"):
    models.model_width(settings, name), models.token_budget(settings, name)[0]("text")
heavy = {"onnxruntime", "onnx", "openai", "safetensors", "ray", "lancedb"} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_hash_vectors_are_the_same_in_every_process_and_release() -> None:
    vector = HashModel(8).embed(["load forecast, NYISO"])[0]
    assert vector.round(4).tolist() == pytest.approx([0, -0.3015, 0.3015, -0.603, 0, 0, -0.3015, 0.603], abs=1e-4)
    program = """
from shoal.embeddings.hash_model import HashModel
print(HashModel(8).embed(["load forecast, NYISO"])[0].tobytes().hex())
"""
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    printed = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    )
    assert printed.stdout.strip() == vector.tobytes().hex()


def test_hash_vectors_of_texts_that_share_words_are_closer() -> None:
    vectors = HashModel(256).embed(["hourly load forecast", "the load forecast by hour", "gas pipeline notices"])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


def test_a_text_without_a_word_has_a_hash_vector_too() -> None:
    assert np.linalg.norm(HashModel(8).embed(["\u200d", "\u00ad"]), axis=1).tolist() == [1.0, 1.0]
