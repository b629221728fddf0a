"""Real scrapes through the whole service: all are indexed, and a person's questions find them.

Runs where the shared data set is (SHOAL_TEST_DATA, or `../shared/data` beside the repository). The questions
and the API descriptions were written from knowledge of the feeds, and name the files that should come back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.stack import Stack

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("SHOAL_TEST_DATA") or REPOSITORY.parent / "shared" / "data") / "scrapes"
QUESTIONS = json.loads((Path(__file__).parent / "real_questions.json").read_text())
APIS = json.loads((Path(__file__).parent / "real_api_questions.json").read_text())

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not (DATA / "MANIFEST.json").exists(), reason=f"the real data set is not at {DATA}"),
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("real")) as running:
        yield running


@pytest.fixture(scope="module")
def tally(stack: Stack) -> dict[str, Any]:
    return stack.publish(str(DATA), timeout_s=800)


def test_every_real_file_is_indexed_and_the_tally_adds_up(tally: dict[str, Any]) -> None:
    files = json.loads((DATA / "MANIFEST.json").read_text())["files"]
    assert tally["dead_letters"] == []
    assert tally["adds_up"]
    assert tally["announced"] == len(files)
    assert tally["outcomes"]["indexed"] == len(files)


def test_the_same_files_again_are_unchanged_and_embed_nothing(stack: Stack, tally: dict[str, Any]) -> None:
    def embedded() -> int:
        embedder = stack.get("/api/v1/ingest")["ingest"]["embedder"]
        return int(embedder["texts"]) - int(embedder["cache_hits"])

    before = embedded()
    again = stack.publish(str(DATA), timeout_s=800)
    assert again["outcomes"]["unchanged"] == again["announced"]
    assert embedded() == before


@pytest.mark.parametrize(("mode", "share"), [("vector", 0.85), ("hybrid", 0.95)])
def test_a_persons_questions_find_their_files_in_the_first_ten(
    stack: Stack, tally: dict[str, Any], mode: str, share: float
) -> None:
    missed = []
    for asked in QUESTIONS:
        answer = stack.get(
            "/api/v1/scrapes/search", query=asked["question"], mode=mode, limit=10, wait_token=tally["wait_token"]
        )
        assert answer["query_type"] == mode, answer["warnings"]
        if not any(row["urn"].startswith(tuple(asked["expect"])) for row in answer["results"]):
            missed.append(asked["question"])
    assert len(missed) <= (1 - share) * len(QUESTIONS), missed


def test_a_described_api_finds_its_scrape_among_the_first_three(stack: Stack, tally: dict[str, Any]) -> None:
    missed = []
    for asked in APIS:
        found = stack.post("/api/v1/agents/context/similar-apis?limit=3", asked["description"])["similar_apis"]
        assert len(found) <= 3
        urns = [hit["id"].split(":", 2)[2] for hit in found]
        if not any(urn.startswith(tuple(asked["expect"])) for urn in urns):
            missed.append(asked["description"])
    assert len(missed) <= 0.05 * len(APIS), missed
