"""The check finds each planted defect, and only it; and nothing in whole tables."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shoal.errors import ConfigurationError
from shoal.store import fsck_scan
from shoal.store.fsck import ChunkHead, Code, Coherence, Findings, Head, Repeats, Severity, Subject, repeated
from shoal.store.fsck_tables import Report, check
from tests.fixtures import damage
from tests.fixtures.damage import FIXES, INFINITE, JOBS, METADATA, NAN, SPEND, VECTORS, ZERO, A
from tests.fixtures.documents import document

HOUR = timedelta(hours=1)


@pytest.fixture
def place(whole: str, tmp_path: Path) -> str:
    return shutil.copytree(whole, str(tmp_path / "lancedb"))


def look(place: str, *, settle_s: float = 0, batches: list[str] | None = None) -> Report:
    said: list[str] = [] if batches is None else batches
    found = check(
        place, {}, leaked_before=datetime.now(UTC) - HOUR, index_rows_min=damage.INDEX_ROWS_MIN, settle_s=settle_s,
        progress=said.append,
    )  # fmt: skip
    assert found is not None
    return found


def told(report: Report) -> set[tuple[Code, str]]:
    return {(finding.code, finding.table) for finding in report.findings}


def test_nothing_is_wrong_with_whole_tables(whole: str) -> None:
    said: list[str] = []
    report = look(whole, settle_s=5, batches=said)
    assert report.findings == ()
    assert report.notes == ()
    assert report.rows == {METADATA: 77, VECTORS: 285, FIXES: 2, JOBS: 2, SPEND: 1}
    assert said[-1] == f"{SPEND}: 2 rows"


def test_texts_that_the_index_takes_apart_otherwise_than_by_letters_are_no_defect(tmp_path: Path) -> None:
    place = str(tmp_path / "lancedb")
    writer = damage.open_writer(place, compact_commits=100)  # a fragment for each: its rows are asked for
    texts = (
        "Überschreitungsmeldung", "5000kilowatt 3 MW", "kilowatt5000 a", "naïveté", "there these", "x" * 300, "",
        "getUserName", "ihre energie_daten", "12:30 100 %", "a\u0308nderungsverlauf", "don't doesn't",
    )  # fmt: skip
    for number, text in enumerate(texts):
        writer.apply([document(f"prod:ds:{number}", number, content=text)], (), damage.NOW)
    assert look(place).findings == ()
    writer._maintenance._fold("vectors", writer._epoch)
    assert look(place).findings == ()


def test_there_is_nothing_to_say_where_there_are_no_tables(tmp_path: Path) -> None:
    assert check(str(tmp_path / "no"), {}, leaked_before=datetime.now(UTC), index_rows_min=256) is None


PLANTED: list[tuple[Code, str, Callable[[str], None]]] = [
    (Code.TABLE_MISSING, FIXES, damage.no_table),
    (Code.UNREADABLE_FRAGMENT, VECTORS, damage.file_gone(VECTORS)),
    (Code.UNREADABLE_FRAGMENT, VECTORS, damage.file_cut),
    (Code.UNREADABLE_FRAGMENT, VECTORS, damage.file_garbled),
    (Code.UNREADABLE_FRAGMENT, METADATA, damage.file_gone(METADATA)),
    (Code.UNREADABLE_FRAGMENT, FIXES, damage.file_gone(FIXES)),
    (Code.FENCE_ROWS, JOBS, lambda place: damage.dataset(place, JOBS).delete("command_id = '__fence__'")),
    (Code.FENCE_ROWS, VECTORS, damage.twice(VECTORS, "id = '__fence__'")),
    (Code.FENCE_ROWS, METADATA, lambda place: damage.change_fence(place, METADATA, epoch="x")),
    (Code.FENCE_INCONSISTENT, VECTORS, lambda place: damage.change_fence(place, VECTORS, epoch=99)),
    (Code.FENCE_INCONSISTENT, JOBS, lambda place: damage.change_fence(place, JOBS, commit_sequence=99)),
    (Code.FENCE_INCONSISTENT, FIXES, lambda place: damage.change_fence(place, FIXES, model="another")),
    (Code.OPENING_UNFINISHED, JOBS, lambda place: damage.change_fence(place, JOBS, epoch=0)),
    (Code.HALF_WRITTEN_BATCH, METADATA, damage.half_a_batch),
    (Code.WRONG_WIDTH, FIXES, damage.wide),
    (Code.DUPLICATE_KEY, METADATA, damage.twice(METADATA, f"revision = '{A}@v2'")),
    (Code.DUPLICATE_KEY, METADATA, damage.twice(METADATA, f"revision = '{A}@v1'")),
    (Code.DUPLICATE_KEY, METADATA, damage.twice(METADATA, "fence = 'deleted'")),
    (Code.DUPLICATE_KEY, VECTORS, damage.twice(VECTORS, f"id = '{A}#1'")),
    (Code.DUPLICATE_KEY, FIXES, damage.twice(FIXES, "id = 'c1'")),
    (Code.DUPLICATE_KEY, JOBS, damage.twice(JOBS, "command_id = 'c1'")),
    (Code.SEVERAL_CURRENT, METADATA, damage.two_current),
    (Code.ORPHAN_CHUNKS, VECTORS, damage.orphan),
    (Code.ORPHAN_CHUNKS, VECTORS, damage.stale_chunk),
    (Code.CHUNK_MISNUMBERED, VECTORS, damage.misnumbered),
    (Code.CHUNKS_MISSING, VECTORS, damage.chunk_gone),
    (Code.VECTOR_MISSING, VECTORS, damage.vector(VECTORS, f"id = '{A}#1'", None)),
    (Code.VECTOR_NOT_FINITE, VECTORS, damage.vector(VECTORS, f"id = '{A}#1'", INFINITE)),
    (Code.VECTOR_NOT_FINITE, METADATA, damage.vector(METADATA, f"revision = '{A}@v2'", NAN)),
    (Code.VECTOR_ZERO, VECTORS, damage.vector(VECTORS, f"id = '{A}#1'", ZERO)),
    (Code.VECTOR_ZERO, FIXES, damage.vector(FIXES, "id = 'c1'", ZERO)),
    (Code.UNREADABLE_FRAGMENT, SPEND, damage.file_gone(SPEND)),
    (Code.FENCE_INCONSISTENT, SPEND, lambda place: damage.change_fence(place, SPEND, model="another")),
    (Code.SPEND_WRONG, SPEND, damage.twice(SPEND, "lane = 'live'")),
    (Code.SPEND_WRONG, SPEND, lambda place: damage.change(place, SPEND, "lane = 'live'", tokens=-5)),
    (Code.SPEND_WRONG, SPEND, lambda place: damage.change(place, SPEND, "lane = 'live'", tokens=None)),
    (Code.SPEND_WRONG, SPEND, lambda place: damage.change(place, SPEND, "lane = 'live'", tokens=43)),
    (Code.SPEND_WRONG, SPEND, lambda place: damage.change(place, SPEND, "lane = 'live'", day="2025-02-30")),
    (Code.SPEND_WRONG, SPEND, lambda place: damage.change(place, SPEND, "lane = 'live'", dataset="other")),
    (Code.SPEND_WRONG, SPEND, lambda place: damage.change(place, SPEND, "lane = 'live'", books='{"one": [2, 1')),
    (Code.SPEND_WRONG, SPEND, lambda place: damage.change(place, SPEND, "lane = 'live'", books="[1]")),
    (Code.SPEND_WRONG, SPEND, lambda place: damage.change(place, SPEND, "tokens > 0", books='{"a": [4, 2, 6, -1, 2]}')),
    (Code.SPEND_WRONG, SPEND, lambda place: damage.change(place, SPEND, "lane = 'live'", failed_tokens=99)),
    (Code.INDEX_MISSING, METADATA, damage.index_dropped(METADATA, "id_idx")),
    (Code.INDEX_MISSING, VECTORS, damage.index_dropped(VECTORS, "content_embedding_idx")),
    (Code.INDEX_WITHOUT_FILES, VECTORS, damage.index_file_gone),
    (Code.INDEX_INCOMPLETE, VECTORS, damage.index_claims_more("id_idx")),
    (Code.INDEX_INCOMPLETE, VECTORS, damage.index_claims_more("content_summary_idx")),
    (Code.INDEX_INCOMPLETE, VECTORS, damage.index_claims_more("content_embedding_idx")),
    (Code.LEAKED_FILES, VECTORS, damage.leaked),
    (Code.UNFINISHED_STATE_FILE, "_shoal", damage.unfinished_state),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "table", "plant"), PLANTED, ids=[f"{at}-{each[0]}" for at, each in enumerate(PLANTED)]
)
def test_a_planted_defect_is_found_and_nothing_else(
    place: str, code: Code, table: str, plant: Callable[[str], None]
) -> None:
    plant(place)
    report = look(place)
    assert told(report) == {(code, table)}, report
    (finding,) = report.findings
    assert finding.count == len(finding.subjects) >= 1


def test_every_code_has_a_planted_defect() -> None:
    assert {code for code, _, _ in PLANTED} | {Code.OLDER_LAYOUT} == set(Code)


def test_an_older_layout_is_told_of_every_table(place: str) -> None:
    damage.older_layout(place)
    report = look(place)
    assert told(report) == {(Code.OLDER_LAYOUT, table) for table in (METADATA, VECTORS, FIXES, JOBS, SPEND)}
    assert report.errors == 0


def test_tables_of_a_newer_layout_are_refused_in_one_line(place: str) -> None:
    damage.dataset(place, VECTORS).update_schema_metadata({"shoal.layout": "99"})
    with pytest.raises(ConfigurationError, match=r"layout 99.*install the newer"):
        look(place)


def test_several_defects_are_told_apart(place: str) -> None:
    for plant in (damage.orphan, damage.chunk_gone, damage.leaked, damage.index_dropped(VECTORS, "id_idx")):
        plant(place)
    report = look(place)
    assert [finding.code for finding in report.findings] == [
        Code.ORPHAN_CHUNKS, Code.CHUNKS_MISSING, Code.INDEX_MISSING, Code.LEAKED_FILES,
    ]  # fmt: skip
    assert report.errors == 3


def test_what_lacks_chunks_is_told_with_where_it_came_from(place: str) -> None:
    damage.chunk_gone(place)
    (finding,) = look(place).findings
    (subject,) = finding.subjects
    assert subject.name == A
    assert subject.position is not None
    assert (subject.position.topic, subject.position.offset) == ("topic", 110)
    assert "1 of 3 chunks of version 'v2'" in subject.detail


def test_a_damaged_vector_is_told_with_where_its_document_came_from(place: str) -> None:
    damage.vector(VECTORS, f"id = '{A}#1'", INFINITE)(place)
    (finding,) = look(place).findings
    (subject,) = finding.subjects
    assert (subject.name, subject.detail) == (A, f"{A}#1")
    assert subject.position is not None
    assert subject.position.offset == 110


def test_an_unreadable_fragment_does_not_hide_what_the_others_hold(place: str) -> None:
    damage.orphan(place)
    damage.file_gone(VECTORS)(place)
    report = look(place)
    assert told(report) == {(Code.UNREADABLE_FRAGMENT, VECTORS), (Code.ORPHAN_CHUNKS, VECTORS)}
    unreadable = next(each for each in report.findings if each.code is Code.UNREADABLE_FRAGMENT)
    assert "rows: data/" in unreadable.subjects[0].detail
    assert "is gone" in unreadable.subjects[0].detail
    assert "documents have chunks in fragments" in report.notes[0]


def test_a_file_is_no_leak_while_it_is_young(place: str) -> None:
    damage.leaked(place)
    path = Path(place) / f"{VECTORS}.lance" / "data" / "staged-by-the-dead.lance"
    path.touch()
    assert look(place).findings == ()


def test_a_batch_that_comes_between_two_tables_is_no_defect(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1. The check opens the metadata; 2. a whole batch is written; 3. it opens the chunks, which are ahead, and waits.
    writer = damage.open_writer(place)
    real, met = fsck_scan._open, []

    def opening(kind: str, *rest: object) -> object:
        if kind == "vectors" and len(met) < 2:
            met.append(kind)
            writer.apply([document(A, 300 + len(met), version=f"v{7 + len(met)}", content=str(met))], (), damage.NOW)
        return real(kind, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(fsck_scan, "_open", opening)
    report = look(place, settle_s=30)
    assert report.findings == ()
    assert len(met) == 2
    assert damage.fence(place, METADATA)["commit_sequence"] > 5


def test_the_check_changes_nothing(place: str) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in Path(place).rglob("*")}

    damage.chunk_gone(place)
    before = state()
    look(place)
    assert state() == before


def test_two_keys_with_one_hash_are_no_duplicate(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Repeats()
    keys.add(["a", "b", "a"])
    assert keys.suspects() == {hash("a")}
    assert len(keys) == 3
    assert repeated(["a", "b"]) == {}
    assert repeated(["a", "b", "a"]) == {"a": 2}


def test_coherence_of_nothing() -> None:
    empty = Coherence()
    assert empty.several_current() == frozenset()
    empty.begin_chunks()
    chunk = ChunkHead("x#0", "x", "v1", "0", 0)
    assert empty.chunks([chunk]) == ([chunk], [])
    assert empty.chunks([]) == ([], [])
    assert not empty.lacks_any


def test_a_chunk_that_is_there_twice_does_not_stand_for_one_that_is_missing() -> None:
    row = Head("x@v1", "x", "v1", "0", True, 2)
    coherence = Coherence()
    coherence.head(row)
    coherence.begin_chunks()
    first = ChunkHead("x#0", "x", "v1", "0", 0)
    assert coherence.chunks([first, first]) == ([], [])
    assert not coherence.lacks_any
    coherence.counted_twice(first, 1)
    assert coherence.lacks_any
    assert coherence.missing(row) == 1


def test_findings_keep_a_bounded_number_of_subjects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.store.fsck.SUBJECTS_MAX", 3)
    findings = Findings()
    for n in range(10):
        findings.add(Code.ORPHAN_CHUNKS, VECTORS, Subject(str(n)))
    (finding,) = findings.listed()
    assert (finding.count, len(finding.subjects), finding.severity) == (10, 3, Severity.ERROR)


def test_tables_of_before_the_ledger_lack_it_without_being_damaged(place: str) -> None:
    shutil.rmtree(f"{place}/{SPEND}.lance")
    report = look(place)
    assert told(report) == {(Code.TABLE_MISSING, SPEND)}
    assert report.errors == 0
