from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal.records import Announcement, Position
from shoal.settings import load
from shoal.sources.messages import RawMessage, parse_message
from shoal.sources.objects import ObjectReader
from shoal.sources.publishing import prepare

DATA_DIR = Path(os.environ.get("SHOAL_TEST_DATA", Path(__file__).parents[2] / "../shared/data"))


@pytest.mark.realdata
@pytest.mark.skipif(not (DATA_DIR / "scrapes").exists(), reason="the shared data set is not here")
def test_the_real_scrapes_are_all_announced_readable_and_verified(tmp_path):
    settings, problems = load(data_dir=tmp_path), []
    reader, works = ObjectReader(settings), []
    for prepared in prepare([DATA_DIR / "scrapes"], settings, on_problem=problems.append):
        raw = RawMessage(Position("c", "scraper-notifications", 0, 0, 0), prepared.key, prepared.value)
        (work,) = parse_message(raw, settings)
        assert isinstance(work, Announcement)
        assert reader.read(work).warnings == ()
        works.append(work)
    assert problems == []
    assert len({work.document_id for work in works}) == 912
    assert sum(work.source_url is not None for work in works) == 282
