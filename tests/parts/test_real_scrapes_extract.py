"""Every real scrape extracts, fast and into few chunks."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from shoal.documents.pipeline import Context, Limits, TokenBudget, extract_document
from shoal.errors import BadDocument
from shoal.records import Extraction

DATA = Path(os.environ.get("SHOAL_TEST_DATA", Path(__file__).parents[2] / "../shared/data")) / "scrapes"
DATA_FORMATS = {"JSON", "CSV", "XML", "XLS", "XLSX", "ODS"}
pytestmark = [
    pytest.mark.realdata,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not (DATA / "MANIFEST.json").exists(), reason="the shared data set is not here"),
]

Outcome = Extraction | BadDocument


@pytest.fixture(scope="module")
def entries() -> list[dict[str, Any]]:
    return json.loads((DATA / "MANIFEST.json").read_text())["files"]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scrapes")
    for archive in sorted(DATA.glob("files-*.tar.zst")):
        subprocess.run(["tar", "-I", "zstd --long=27", "-xf", archive, "-C", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def outcomes(entries, unpacked) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    budget = TokenBudget(lambda text: 2 + len(text) // 3, 250, 40)  # as dense as wordpieces of names and numbers
    for entry in entries:
        context = Context(
            name=Path(entry["file"]).name,
            content_type=entry["content_type"],
            source_url=entry["url"] or None,
            data_source=entry["source"],
            data_type=entry["data_type"],
            dataset=entry["dataset"],
            collected_at=datetime.fromisoformat(entry["publish_time"]),
        )
        try:
            found[entry["file"]] = extract_document(
                (unpacked / entry["file"]).read_bytes(), context, Limits(128 * 1024 * 1024, 200), budget
            )
        except BadDocument as error:
            found[entry["file"]] = error
    return found


def test_every_file_extracts(outcomes):
    assert {name: str(found) for name, found in outcomes.items() if isinstance(found, BadDocument)} == {}


def test_the_format_found_is_the_one_that_the_manifest_says(entries, outcomes):
    # JSONP, quoted JSON, a PDF and two pickles were stored with the ending .txt
    same = {"gz": "JSON", "text": ("TEXT", "JSON", "PDF", "PICKLE")}
    for entry in entries:
        found = outcomes[entry["file"]]
        if isinstance(found, Extraction):
            expected = same.get(entry["format"], entry["format"].upper())
            assert found.file_format in expected, entry["file"]


def test_data_files_give_few_chunks_with_a_schema(outcomes):
    extractions = [found for found in outcomes.values() if isinstance(found, Extraction)]
    data = [found for found in extractions if found.file_format in DATA_FORMATS]
    counts = sorted(len(found.chunks) for found in data)
    assert counts[len(counts) // 2] <= 3, Counter(counts)
    assert counts[int(len(counts) * 0.95)] <= 8, Counter(counts)
    assert all(found.schema for found in data)
    assert all(chunk.text.strip() for found in extractions for chunk in found.chunks)


def test_no_page_of_data_gives_more_than_two_dozen_chunks(outcomes):
    pages = {name: len(found.chunks) for name, found in outcomes.items()
             if isinstance(found, Extraction) and found.file_format in ("HTML", "PDF")}  # fmt: skip
    assert pages
    assert max(pages.values()) <= 24, pages


def test_no_chunk_is_a_wall_of_numbers(outcomes):
    for name, found in outcomes.items():
        if isinstance(found, Extraction) and found.file_format in DATA_FORMATS:
            text = found.chunks[0].text
            assert sum(map(str.isalpha, text)) > sum(map(str.isdigit, text)), name


def test_no_text_has_replacement_characters_unless_a_warning_says_so(outcomes, unpacked):
    for name, found in outcomes.items():
        if isinstance(found, Extraction) and "\ufffd" in "".join(chunk.text for chunk in found.chunks):
            damaged = "\ufffd".encode() in (unpacked / name).read_bytes()
            assert damaged or any("replaced" in warning for warning in found.warnings), name


def test_a_document_takes_a_fraction_of_a_second_of_processor(entries, unpacked, outcomes):
    biggest = max(entries, key=lambda entry: entry["bytes"])
    data = (unpacked / biggest["file"]).read_bytes()
    context = Context(biggest["file"], None, None, "X", "load", "x", datetime.fromisoformat(biggest["publish_time"]))
    began = time.process_time()
    extract_document(data, context, Limits(1 << 27, 200), TokenBudget(lambda text: len(text) // 3, 250, 40))
    assert time.process_time() - began < 2.0
