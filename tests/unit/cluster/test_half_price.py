"""`shoal backfill --half-price`: what it plans is what ingest looks up, and its rounds go on wherever they were."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shoal.actors.embedder import purpose_of
from shoal.actors.fetcher import Fetcher
from shoal.cluster import half_price, half_price_planning
from shoal.cluster.backfilling import About, Directory
from shoal.cluster.half_price import backfill_at_half_price, limits_of, texts_of_a_round
from shoal.cluster.half_price_planning import DEAD, Plan, Planner
from shoal.cluster.output import Exit, Format
from shoal.cluster.sending import PacedSender, Window
from shoal.embeddings.batch_files import Limits, entries_of
from shoal.embeddings.batch_job import Job, State
from shoal.embeddings.batch_provider import Entry
from shoal.embeddings.purposes import Purpose
from shoal.errors import ConfigurationError, TransientError
from shoal.records import Position
from shoal.settings import Settings, load
from shoal.sources.messages import RawMessage, parse_message
from shoal.store.half_price_shelf import HalfPriceShelf

ABOUT = About("nyiso_load", "nyiso", "load")
MODEL, WIDTH = "openai:text-embedding-3-small", 1536


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made = tmp_path / "place"
    made.mkdir()
    for n in range(5):
        (made / f"{n}.txt").write_text(f"The load of zone {n} was {n} MW.")
    (made / ".hidden").write_text("x")
    return made


@pytest.fixture
def settings(tmp_path: Path, place: Path) -> Settings:
    return load(
        data_dir=tmp_path / "data", embedding_provider="openai", openai_api_key="sk-x", allowed_roots=(place,),
        fetchers=1, readers=1,
    )  # fmt: skip


class Sender(PacedSender):
    """Takes all; only the broker is missing."""

    sent: list[str]

    def __init__(self, _: Settings, window: Window, *, save: Any, **__: Any) -> None:
        self.window, self._save, self._tail = window, save, None

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Any, *, name: str, mark: Any, **_: Any
    ) -> bool:
        Sender.sent.append(name)
        self.window.send(name, [], mark)
        return True

    def skip(self, why: str, mark: tuple[str, Any]) -> bool:
        self.window.skip(why, mark)
        return True

    def finish(self) -> bool:
        self.window.settle()
        return True


class Embedder:
    """Ends every job as soon as somebody waits for it, or leaves it."""

    def __init__(self, settings: Settings) -> None:
        self.shelf, self.jobs, self.works, self.refusal = HalfPriceShelf(settings), list[str](), True, ""

    def look(self) -> None:
        for name in self.shelf.jobs():
            job = Job.of(self.shelf.job(name))
            assert job is not None
            if name not in self.jobs:
                self.jobs.append(name)
            state = State.begun(job, "e", datetime.now(UTC).timestamp())
            for number, part in enumerate(state.parts):
                assert len(entries_of(self.shelf.part(name, number)) or ()) == part.texts
                done = part.moved("done", 1.0, sent_texts=part.texts, embedded_texts=part.texts, embedded_tokens=9)
                state = state.with_part(number, done)
            if self.works:
                self.shelf.save(name, State(state.id, "e", state.began_at, state.parts, refusal=self.refusal).stored())


@pytest.fixture
def embedder(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Embedder:
    made = Embedder(settings)
    Sender.sent = []
    monkeypatch.setattr(half_price, "PacedSender", Sender)
    monkeypatch.setattr(half_price, "LOOK_S", 0.01)
    monkeypatch.setattr(half_price, "living_status", lambda _: made.look())
    monkeypatch.setattr(half_price_planning, "GROUP", 2)
    return made


def run(settings: Settings, place: Path, restart: bool = False) -> int:
    return backfill_at_half_price(
        settings, str(place), ABOUT, rate=0, in_flight_max=10, timeout_s=1, restart=restart, form=Format.json
    )


async def planned(settings: Settings, place: Path, texts_max: int = 1000) -> tuple[Plan, list[list[Entry]]]:
    planner, written = Planner(settings, MODEL, WIDTH), list[list[Entry]]()
    try:
        plan = await planner.plan(
            Directory(str(place), ABOUT, settings).after(""), Limits(texts=3), texts_max,
            lambda _, entries: written.append(entries), threading.Event(), lambda _: None,
        )  # fmt: skip
    finally:
        await planner.close()
    assert plan is not None
    return plan, written


async def test_the_planned_texts_are_those_that_ingest_will_look_up(settings: Settings, place: Path) -> None:
    (place / "api.json").write_text(
        '{"openapi": "3.0.0", "info": {"title": "Load"}, "paths": {"/v1/load": {"get": {}}}}'
    )
    (place / "bad.pdf").write_bytes(b"%PDF-1.7 broken")
    (place / "same.txt").write_text("The load of zone 1 was 1 MW.")
    plan, written = await planned(settings, place)
    got = {(entry.kind, entry.text): entry.tokens for part in written for entry in part}
    wanted: dict[tuple[str, str], Purpose] = {}
    fetcher = Fetcher("fetcher-0", settings, MODEL, WIDTH)
    dead = 0
    try:
        for found in Directory(str(place), ABOUT, settings).after(""):
            if found.message is None:
                continue
            raw = RawMessage(Position("", "t", 0, 0, 0), *found.message, headers=(("shoal.lane", b"backfill"),))
            (announcement,) = parse_message(raw, settings)
            fetched = await fetcher._fetch(announcement)  # type: ignore[arg-type]
            if fetched.extraction is None:
                dead += 1
                continue
            purpose = purpose_of(fetched.announcement)
            wanted |= {("document", chunk.text): purpose for chunk in fetched.extraction.chunks}
            if fetched.extraction.api_text:
                wanted["query", fetched.extraction.api_text] = purpose
    finally:
        await fetcher.__ray_shutdown__()
    assert any(kind == "query" for kind, _ in wanted), "the sample has an API in it"
    assert set(got) == set(wanted)
    assert {plan.purpose} == set(wanted.values()) == {Purpose("backfill", "scraper", "NYISO", "nyiso_load")}
    assert (plan.left_out[DEAD], dead) == (1, 1)
    assert (plan.texts, plan.tokens) == (len(got), sum(got.values()))
    assert plan.parts == [(len(part), sum(entry.tokens for entry in part)) for part in written]
    assert plan.is_last


def test_rounds_follow_until_all_is_announced_once_and_nothing_is_left(
    settings: Settings,
    place: Path,
    embedder: Embedder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(half_price, "texts_of_a_round", lambda *_: 2)
    assert run(settings, place) == Exit.OK
    assert len(embedder.jobs) == 3
    assert Sender.sent == [f"{n}.txt" for n in range(5)]
    assert not list((settings.home / "lancedb" / "_shoal").glob("half-price-*"))
    assert not list((settings.home / "backfills").glob("*.json"))
    told = capsys.readouterr()
    assert '"announced":5' in told.out.replace(" ", "")
    assert "SHOAL_EMBEDDING_CACHE_BYTES_MAX" in told.err


@pytest.mark.parametrize("where", ["planned", "waited", "announced"])
def test_broken_off_anywhere_the_same_command_goes_on_with_the_same_job(
    settings: Settings, place: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    # 1. It ends just behind a step, as by a kill.
    real = getattr(half_price._Run, where)

    def broken(self: Any, *arguments: Any) -> Any:
        real(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(half_price._Run, where, broken)
    with pytest.raises(KeyboardInterrupt):
        run(settings, place)
    embedder.look()
    before = list(embedder.jobs)
    # 2. The same command plans nothing anew.
    monkeypatch.setattr(half_price._Run, where, real)
    assert run(settings, place) == Exit.OK
    assert embedder.jobs == before
    assert set(Sender.sent) == {f"{n}.txt" for n in range(5)}


def test_restart_does_not_pay_again_for_what_is_under_way(settings: Settings, place: Path, embedder: Embedder) -> None:
    job = Job("x", MODEL, WIDTH, Purpose(), ((1, 1),), 0.0)
    run(settings, place)
    beginning = embedder.jobs[0].rpartition("-")[0]
    embedder.works = False
    embedder.shelf.write_part(f"{beginning}-1", 0, [["document", "load", 1]])
    embedder.shelf.ask(f"{beginning}-1", job.stored())
    with pytest.raises(ConfigurationError, match="is under way: run the same command without --restart"):
        run(settings, place, restart=True)


def test_a_refused_job_ends_the_command_with_its_reason(settings: Settings, place: Path, embedder: Embedder) -> None:
    embedder.refusal = "the server has no Batch API (404)"
    with pytest.raises(ConfigurationError, match="no Batch API"):
        run(settings, place)
    assert Sender.sent == []
    assert embedder.shelf.jobs() == []


def test_parts_of_a_planning_that_was_killed_are_swept(settings: Settings) -> None:
    shelf = HalfPriceShelf(settings)
    shelf.write_part("ab-1", 0, [])
    shelf.write_part("ab-2", 0, [])
    shelf.write_part("zz-1", 0, [])
    shelf.ask("ab-2", {})
    shelf.sweep("ab-")
    assert [shelf.part(name, 0) for name in ("ab-1", "ab-2", "zz-1")] == [None, [], []]
    shelf.forget("ab-2")
    assert (shelf.part("ab-2", 0), shelf.jobs()) == (None, [])


def test_without_a_provider_or_a_running_shoal_nothing_is_begun(
    tmp_path: Path, place: Path, settings: Settings
) -> None:
    with pytest.raises(ConfigurationError, match="costs nothing"):
        run(load(data_dir=tmp_path / "other", embedding_provider="hash", allowed_roots=(place,)), place)
    with pytest.raises(TransientError, match="no Shoal indexes into"):
        run(settings, place)


def test_a_round_fits_the_cache_and_a_part_the_queue() -> None:
    assert texts_of_a_round(1024**3, 1536) * (4 * 1536) < 1024**3 / 2
    assert limits_of(load(openai_batch_queue_tokens=20_000), 50) == Limits(50, 20_000, Limits().text_bytes)
