"""`shoal check` as a script meets it: exit codes, one JSON document on stdout, advice that can be typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.cluster.checking import check, look
from shoal.cluster.output import Exit, Format
from shoal.settings import Settings
from tests.fixtures import damage
from tests.fixtures.damage import METADATA, VECTORS, A
from tests.fixtures.documents import document


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    place = str(tmp_path / "lancedb")
    writer = damage.open_writer(place)
    writer.apply([document(A, 110), document("prod:ds:b", 111)], (), damage.NOW)
    return Settings(lancedb_path=place)


def run(settings: Settings) -> int:
    return check(settings, leaked_age_s=None, shown_max=3, form=Format.json)


def test_whole_tables_end_with_0(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(settings) == Exit.OK
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["ok"] is True
    assert found["rows"][METADATA] == 2
    assert found["findings"] == []
    assert "nothing is wrong" in said.err


def test_an_error_ends_with_1_and_says_what_mends_it(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    damage.chunk_gone(settings.tables_uri)
    assert run(settings) == Exit.FAILED
    said = capsys.readouterr()
    (finding,) = json.loads(said.out)["findings"]
    assert (finding["code"], finding["severity"], finding["table"]) == ("chunks_missing", "error", VECTORS)
    assert finding["repair"] == "replay"
    assert "shoal replay --from-offset topic/0:110-110" in finding["what_to_do"]
    assert finding["examples"][0]["name"] == A


def test_a_warning_alone_ends_with_0(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    damage.leaked(settings.tables_uri)
    assert run(settings) == Exit.OK
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["code"], finding["severity"]) == ("leaked_files", "warning")


def test_a_vector_index_is_missed_only_where_the_setting_wants_one(tmp_path: Path) -> None:
    place = str(tmp_path / "lancedb")
    rows_min = damage.INDEX_ROWS_MIN
    writer = damage.open_writer(place, index_kind="flat")
    many = [document(f"prod:ds:{n}", n, content=f"many {n}", chunks=10) for n in range(rows_min // 10 + 1)]
    writer.apply(many, (), damage.NOW)
    flat, some = (Settings(lancedb_path=place, index_kind=kind, index_rows_min=rows_min) for kind in ("flat", "ivf_rq"))
    for settings, missing in ((flat, []), (some, ["content_embedding_idx"])):
        report = look(settings, None, lambda _: None)
        assert report is not None
        assert [subject.name for finding in report.findings for subject in finding.subjects] == missing


def test_a_place_without_tables_is_not_called_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Settings(lancedb_path=str(tmp_path / "nowhere"))) == Exit.FAILED
    assert "no tables" in capsys.readouterr().err
