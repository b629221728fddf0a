"""Prefixes reach the model, count as tokens, and never mix."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from shoal.embeddings import prefixes
from shoal.embeddings.cache import cache_key
from shoal.embeddings.hash_model import HashModel
from shoal.embeddings.models import create_model, default_model_name, token_budget
from shoal.embeddings.prefixes import PREFIXES, PrefixedModel, Prefixes, named
from shoal.embeddings.texts import Kind
from shoal.errors import BadDocument, ConfigurationError
from shoal.records import Matrix
from shoal.settings import Settings

SERVER = {"openai_base_url": "http://127.0.0.1:9/v1", "embedding_provider": "openai"}


class Listening(HashModel):
    """Keeps what it was given."""

    def __init__(self) -> None:
        super().__init__(32)
        self.heard: list[str] = []

    def embed(self, texts: Sequence[str], kind: Kind = "document") -> Matrix:
        self.heard += texts
        return super().embed(texts, kind)


def test_queries_and_documents_get_their_own() -> None:
    inner = Listening()
    model = PrefixedModel(inner, PREFIXES["nomic"])
    document, query = model.embed(["wind"]), model.embed(["wind"], "query")
    assert inner.heard == ["search_document: wind", "search_query: wind"]
    assert not np.allclose(document, query)
    assert (model.name, model.width) == ("hash:32+nomic", 32)


def test_a_prefix_counts_as_tokens_and_a_blank_text_stays_blank() -> None:
    model = PrefixedModel(Listening(), Prefixes("one two ", "three "))
    assert model.count_tokens("wind") == 3
    assert model.embed(["word " * 255]).shape == (1, 32)
    with pytest.raises(BadDocument):
        model.embed(["word " * 256])
    with pytest.raises(BadDocument, match="blank"):
        model.embed([" "])


def test_a_pair_keeps_its_name_and_its_words_for_ever() -> None:
    """Stored names depend on them: change nothing here, add."""
    assert {name: (pair.query[:20], pair.document) for name, pair in PREFIXES.items()} == {
        "e5": ("query: ", "passage: "),
        "e5-instruct": ("Instruct: Given a we", ""),
        "qwen3": ("Instruct: Given a we", ""),
        "nomic": ("search_query: ", "search_document: "),
        "bge": ("Represent this sente", ""),
        "bge-zh": ("为这个句子生成表示以用于检索相关文章：", ""),
        "arctic2": ("query: ", ""),
        "gemma": ("task: search result ", "title: none | text: "),
    }
    assert Prefixes("find: ", "text: ").name == "own-de77e08b7e64"
    assert len({pair.name for pair in PREFIXES.values()} | {""}) == len(PREFIXES) + 1
    assert all(named(pair.name, Prefixes()) == pair for pair in PREFIXES.values())


@pytest.mark.parametrize(
    ("model", "suffix"),
    [
        ("intfloat/e5-base-v2", "+e5"),
        ("intfloat/multilingual-e5-large", "+e5"),
        ("intfloat/multilingual-e5-large-instruct", "+e5-instruct"),
        ("intfloat/e5-mistral-7b-instruct", "+e5-instruct"),
        ("nomic-embed-text:latest", "+nomic"),
        ("nomic-ai/nomic-embed-text-v1.5", "+nomic"),
        ("BAAI/bge-small-en-v1.5", "+bge"),
        ("BAAI/bge-base-zh-v1.5", "+bge-zh"),
        ("BAAI/bge-m3", ""),
        ("mxbai-embed-large", "+bge"),
        ("Snowflake/snowflake-arctic-embed-m-v2.0", "+arctic2"),
        ("snowflake-arctic-embed2", "+arctic2"),
        ("Snowflake/snowflake-arctic-embed-m", "+bge"),
        ("google/embeddinggemma-300m", "+gemma"),
        ("Qwen/Qwen3-Embedding-0.6B", "+qwen3"),
        ("all-minilm", ""),
        ("somebody/else", ""),
        ("text-embedding-3-small", ""),
    ],
)
def test_a_known_model_gets_the_prefixes_of_its_card(model: str, suffix: str) -> None:
    assert default_model_name(Settings(openai_embedding_model=model, **SERVER)) == f"openai:{model}{suffix}"


def test_the_settings_win_and_their_pair_is_part_of_the_name() -> None:
    own = Settings(
        openai_embedding_model="intfloat/e5-base-v2", embedding_query_prefix="find: ",
        embedding_document_prefix="text: ", **SERVER,
    )  # fmt: skip
    name = default_model_name(own)
    assert name == "openai:intfloat/e5-base-v2+own-de77e08b7e64"
    none = own.model_copy(update={"embedding_query_prefix": "", "embedding_document_prefix": ""})
    assert default_model_name(none) == "openai:intfloat/e5-base-v2"
    model = create_model(own, name, width=8)
    assert model.name == name
    model.close()
    with pytest.raises(ConfigurationError, match="SHOAL_EMBEDDING_QUERY_PREFIX"):
        create_model(none, name, width=8)
    with pytest.raises(ConfigurationError, match="known are e5"):
        create_model(none, "openai:intfloat/e5-base-v2+e6", width=8)


def test_a_stored_name_keeps_its_prefixes_whatever_the_settings_say_now() -> None:
    settings = Settings(embedding_query_prefix="find: ", **SERVER)
    model = create_model(settings, "openai:intfloat/e5-base-v2+e5", width=8)
    assert isinstance(model, PrefixedModel)
    assert model._prefixes == PREFIXES["e5"]
    model.close()
    bare = create_model(settings, "openai:intfloat/e5-base-v2", width=8)
    assert not isinstance(bare, PrefixedModel)
    bare.close()


def test_two_pairs_never_share_a_cached_vector() -> None:
    names = ["openai:e5-small", "openai:e5-small+e5", "openai:e5-small+nomic", f"openai:e5-small+{Prefixes('a').name}"]
    assert len({cache_key(name, 384, kind, "wind") for name in names for kind in ("query", "document")}) == 8


def test_a_chunk_leaves_room_for_its_prefix() -> None:
    settings = Settings(**SERVER)
    count, bare, _ = token_budget(settings, "openai:intfloat/e5-base-v2")
    _, prefixed, overlap = token_budget(settings, "openai:intfloat/e5-base-v2+e5")
    assert bare - prefixed == count("passage: ")
    assert overlap == prefixed // 5
    long = settings.model_copy(update={"embedding_document_prefix": "word " * 300})
    with pytest.raises(ConfigurationError, match="left for a chunk"):
        token_budget(long, f"openai:x+{Prefixes(document='word ' * 300).name}")


def test_the_prompts_of_a_model_directory_are_its_prefixes(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    file = mine / "config_sentence_transformers.json"
    settings = Settings(model_dir=mine, embedding_provider="local")
    assert default_model_name(settings) == "local:mine"
    file.write_text(json.dumps({"prompts": {"query": "query: ", "passage": "passage: "}}))
    assert default_model_name(settings) == "local:mine+e5"
    file.write_text(json.dumps({"prompts": {"query": "find: ", "document": "text: "}}))
    assert default_model_name(settings) == "local:mine+own-de77e08b7e64"
    file.write_text(json.dumps({"prompts": {}}))
    assert default_model_name(settings) == "local:mine"
    file.write_text("[]")
    with pytest.raises(ConfigurationError, match="not a JSON object"):
        default_model_name(settings)
    assert prefixes.named("", Prefixes("x")) == Prefixes()
