"""State beside the tables: what is written is read back, whole."""

from collections import Counter
from pathlib import Path

from shoal.records import Outcome
from shoal.settings import load
from shoal.store.state_files import read_state, write_state


def test_what_was_written_is_read_back_and_replaced_whole(tmp_path: Path) -> None:
    settings = load(data_dir=tmp_path)
    assert read_state(settings, "status.json") is None
    write_state(settings, "status.json", {"a": 1, "b": [1] * 10_000})
    write_state(settings, "status.json", {"a": 2})
    assert read_state(settings, "status.json") == {"a": 2}
    assert [path.name for path in (tmp_path / "lancedb" / "_shoal").iterdir()] == ["status.json"], "no scraps are left"


def test_counts_by_outcome_can_be_written(tmp_path: Path) -> None:
    settings = load(data_dir=tmp_path)
    write_state(settings, "status.json", {"outcomes": Counter([Outcome.INDEXED])})
    assert read_state(settings, "status.json") == {"outcomes": {"indexed": 1}}


def test_a_damaged_file_counts_as_absent_and_is_written_anew(tmp_path: Path) -> None:
    settings = load(data_dir=tmp_path)
    write_state(settings, "status.json", {"a": 1})
    for damaged in (b"", b'{"a": '):
        (Path(settings.tables_uri) / "_shoal" / "status.json").write_bytes(damaged)
        assert read_state(settings, "status.json") is None
    write_state(settings, "status.json", {"a": 2})
    assert read_state(settings, "status.json") == {"a": 2}
