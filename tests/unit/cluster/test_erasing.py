"""`shoal erase` on real tables and the journal of the embedded broker; the test plays reader and clock."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from shoal.cluster import erasing
from shoal.cluster.cli import main
from shoal.cluster.output import Exit, Format
from shoal.embeddings.cache import EmbeddingCache, cache_key
from shoal.errors import ConfigurationError, DeadReason
from shoal.records import Failure, Position
from shoal.settings import Settings, load
from shoal.sources.dead_letters import dead_letter
from shoal.sources.journal import Journal, JournalProducer
from shoal.sources.kafka import journal_path
from shoal.sources.messages import RawMessage
from shoal.store import purging
from shoal.store.erasure import documents_of, target_of
from shoal.store.state_files import read_state, write_state
from shoal.store.writing import TableWriter
from tests.fixtures.documents import MODEL, WIDTH, deletion, document, vector

T0 = datetime(2025, 1, 20, 12, tzinfo=UTC)
GONE, STAYS = "prod:people:4711.json", "prod:load:1.json"
TOPIC = "scraper-notifications"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(data_dir=tmp_path)


@pytest.fixture
def journal(settings: Settings) -> Iterator[Journal]:
    with closing(Journal(journal_path(settings))) as journal:
        yield journal


class Service:
    """The reader and the writer, which work while the command waits."""

    def __init__(self, settings: Settings, journal: Journal, *, works: bool = True) -> None:
        self.settings, self.journal, self.works = settings, journal, works
        self.writer = TableWriter.open(settings.tables_uri, {}, MODEL, WIDTH, settings=settings, now=T0)
        self.now, self.waited_s, self._seen = T0, 0.0, 0
        first = document(GONE, 1, content="a name", dataset="people", collected_at=T0 - timedelta(days=9))
        second = document(STAYS, 2, content="a load", dataset="load")
        self.writer.apply([first, second], (), T0)
        self._upkeep()

    def _upkeep(self) -> None:
        while self.writer.maintain(self.now) is not None:
            pass

    def pause(self, seconds: float) -> None:
        self.waited_s += seconds
        self.now += timedelta(minutes=1)
        if not self.works:
            return
        last = 1 + self.journal.last_seq()
        for entry in self.journal.entries_between(TOPIC, self._seen, last):
            if entry.value is None and entry.key is not None:
                self.writer.apply([deletion(entry.key.decode(), 100 + entry.seq)], (), self.now)
        self._seen = last
        self._upkeep()

    def erase(self, *ids: str, now: bool = False, sure: bool = True, **options: Any) -> int:
        return erasing.erase(
            self.settings, list(ids), now=now, timeout_s=30, confirm=lambda _: sure, form=Format.json, pause=self.pause,
            clock=lambda: self.waited_s, **{"dataset": "", "before": None, **options},
        )  # fmt: skip


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], dict[str, Any]]:
    def read() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return read


def test_what_is_erased_leaves_tables_and_cache_and_the_answer_says_where_it_still_is(
    settings: Settings, journal: Journal, said: Callable[[], dict[str, Any]]
) -> None:
    service = Service(settings, journal)
    cache = EmbeddingCache(settings.home / "cache" / "embeddings.sqlite", 1 << 20)
    keys = {text: cache_key(MODEL, WIDTH, "document", text) for text in ("a name part 0", "a load part 0")}
    cache.put_many({key: vector(text) for text, key in keys.items()})
    producer = JournalProducer(journal)
    body = {"dataset": "people", "urn": "4711.json"}
    raw = RawMessage(Position("c", TOPIC, 0, 5, 1), b"k", json.dumps(body).encode(), ())
    producer.send(*dead_letter(raw, Failure(DeadReason.EMPTY, "why", "fetch"), T0, 0))
    producer.flush(1.0)

    assert service.erase(GONE) == Exit.OK
    proof = said()
    assert (proof["rows"], proof["chunks"], proof["remembered"], proof["documents"]) == (0, 0, 1, 1)
    assert proof["older_versions"] > 0
    assert len(proof["kept_states"]) == 1
    assert datetime.fromisoformat(proof["gone_from_older_versions_by"]) > datetime.now(UTC) + timedelta(days=7)
    assert proof["embedding_cache"] == {"texts": 2, "forgotten": 1, "left": 0}
    assert list(cache.get_many(list(keys.values()), WIDTH)) == [keys["a load part 0"]]
    assert proof["dead_letters"] == 1
    assert any("1 stored files" in line for line in proof["not_erased"])
    assert target_of(settings, [STAYS]).known == 1
    cache.close()
    # Again: nothing is left to do, and the same is found.
    assert service.erase(GONE) == Exit.OK
    assert said()["rows"] == 0


def test_now_waits_until_no_version_holds_it(
    settings: Settings, journal: Journal, said: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purging, "HOLD", timedelta(0))
    service = Service(settings, journal)
    assert service.erase(dataset="people", now=True) == Exit.OK
    proof = said()
    assert (proof["rows"], proof["chunks"], proof["older_versions"], proof["kept_states"]) == (0, 0, 0, [])
    assert proof["rewritten"] is True
    assert not any("bytes of deleted rows" in line for line in proof["not_erased"])


def test_without_a_service_the_deletion_waits_in_the_log_and_the_command_says_so(
    settings: Settings, journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    service = Service(settings, journal, works=False)
    assert service.erase(GONE) == Exit.TIMEOUT
    assert "is Shoal running" in capsys.readouterr().err
    assert [entry.key for entry in journal.entries_between(TOPIC, 0, 1 + journal.last_seq())] == [GONE.encode()]


def a_cache_with(settings: Settings, *texts: str) -> EmbeddingCache:
    cache = EmbeddingCache(settings.home / "cache" / "embeddings.sqlite", 1 << 20)
    cache.put_many({cache_key(MODEL, WIDTH, "document", text): vector(text) for text in texts})
    return cache


@pytest.mark.parametrize("named", [{"ids": (GONE,)}, {"dataset": "people"}], ids=["by id", "by dataset"])
def test_the_same_command_after_a_timeout_goes_on_with_the_same_documents_texts_and_proof(
    settings: Settings, journal: Journal, said: Callable[[], dict[str, Any]], named: dict[str, Any]
) -> None:
    ids, options = named.get("ids", ()), {name: value for name, value in named.items() if name != "ids"}
    service = Service(settings, journal, works=False)
    # 1. Nobody applies the deletion in time. 2. Then it is, and its texts are embedded once more by what was under way.
    assert service.erase(*ids, **options) == Exit.TIMEOUT
    service.works = True
    service.pause(1)
    cache = a_cache_with(settings, "a name part 0")
    # 3. No row names the document any more, and the same is looked for all the same.
    assert service.erase(*ids, **options) == Exit.OK
    proof = said()
    assert (proof["documents"], proof["remembered"]) == (1, 1)
    assert proof["older_versions"] > 0
    assert proof["embedding_cache"] == {"texts": 2, "forgotten": 1, "left": 0}
    assert any("1 stored files" in line for line in proof["not_erased"])
    cache.close()


def test_texts_are_forgotten_before_the_deletion_is_waited_for(settings: Settings, journal: Journal) -> None:
    texts = ("a name part 0", "a load part 0")
    service, cache = Service(settings, journal, works=False), a_cache_with(settings, *texts)
    assert service.erase(GONE) == Exit.TIMEOUT
    gone, stays = (cache_key(MODEL, WIDTH, "document", text) for text in texts)
    assert list(cache.get_many([gone, stays], WIDTH)) == [stays]
    cache.close()


def test_the_memory_of_a_run_holds_no_text_and_goes_when_no_version_holds_anything(
    settings: Settings, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purging, "HOLD", timedelta(0))
    service = Service(settings, journal)
    assert service.erase(GONE) == Exit.OK
    (file,) = (settings.home / "erasures").iterdir()
    assert b"a name" not in file.read_bytes()
    assert service.erase(GONE, now=True) == Exit.OK
    assert not file.exists()


def test_a_rewrite_that_was_not_finished_in_time_is_not_begun_anew(
    settings: Settings, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purging, "HOLD", timedelta(days=10))
    service = Service(settings, journal)
    assert service.erase(GONE, now=True) == Exit.TIMEOUT
    first = read_state(settings, purging.REQUEST)
    service.works = False
    service.waited_s = 0.0
    assert service.erase(GONE, now=True) == Exit.TIMEOUT
    assert first is not None
    assert read_state(settings, purging.REQUEST) == first
    # The answer may come to a later request, of another run.
    write_state(settings, purging.ANSWER, {"id": "later", "sequence": first["sequence"] + 1})
    assert service.erase(GONE, now=True) == Exit.FAILED  # it says rewritten, and the look finds older versions


def test_a_vector_that_stays_in_the_cache_is_no_success(
    settings: Settings, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, cache = Service(settings, journal), a_cache_with(settings, "a name part 0")
    monkeypatch.setattr(EmbeddingCache, "forget_many", lambda self, keys: 0)
    assert service.erase(GONE) == Exit.FAILED
    cache.close()


def test_nothing_is_sent_before_it_is_confirmed_or_where_the_question_is_unclear(
    settings: Settings, journal: Journal
) -> None:
    service = Service(settings, journal)
    assert service.erase(GONE, sure=False) == Exit.FAILED
    for ids, options in (((), {}), ((GONE,), {"dataset": "people"}), ((GONE,), {"before": T0})):
        with pytest.raises(ConfigurationError):
            service.erase(*ids, **options)
    assert service.erase(dataset="nobody") == Exit.OK
    assert journal.last_seq() == 0


def test_a_dataset_is_all_of_it_or_what_was_last_collected_before_a_time(settings: Settings, journal: Journal) -> None:
    service = Service(settings, journal)
    newer = document("prod:people:2.json", 5, dataset="people", collected_at=T0)
    again = document(GONE, 6, version="v2", dataset="people", collected_at=T0 - timedelta(days=3))
    service.writer.apply([newer, again], (), T0)
    assert documents_of(settings, "people", None) == ["prod:people:2.json", GONE]
    assert documents_of(settings, "people", T0 - timedelta(days=1)) == [GONE]
    assert documents_of(settings, "people", T0 - timedelta(days=5)) == []
    assert documents_of(settings, "x' OR '1'='1", None) == []


def test_erase_without_tables_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.argv", ["shoal", "erase", "an-id", "--yes", "--data-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == Exit.UNREACHABLE
    assert "no tables" in capsys.readouterr().err
