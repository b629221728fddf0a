"""A collection's model: OpenAI by settings alone, kept once chosen, and no other let in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.openai_server import FakeOpenAI
from tests.fixtures.stack import Stack

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def openai() -> Iterator[FakeOpenAI]:
    server = FakeOpenAI()
    yield server
    server.close()


def test_a_key_for_openai_makes_new_collections_use_it_and_existing_ones_keep_theirs(
    tmp_path: Path, openai: FakeOpenAI
) -> None:
    """1. a key is set: 1536 wide; 2. the local model is asked for: refused in one line that names both."""
    file = tmp_path / "load.csv"
    file.write_text("Time Stamp,Hudson Valley Load (MW)\n01/20/2025 00:00,950\n")
    with Stack(tmp_path / "stack", {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": openai.url}) as stack:
        tally = stack.publish(str(file), "--source", "nyiso", "--dataset", "d")
        assert tally["outcomes"]["indexed"] == 1
        found = stack.get("/api/v1/scrapes/search", query="Hudson Valley Load", wait_token=tally["wait_token"])
        assert found["query_type"] == "vector"
        assert [row["embedding_model"] for row in found["results"]] == ["openai:text-embedding-3-small"]
        assert openai.requests, "the server was asked"
        shown = stack.run("config", "show")
        assert "sk-test" not in shown.stdout
    other = Stack(tmp_path / "stack", {"SHOAL_EMBEDDING_PROVIDER": "local"})
    refused = other.run("up")
    assert refused.returncode == 2
    assert "openai:text-embedding-3-small" in refused.stderr
    assert "local:all-MiniLM-L6-v2" in refused.stderr
