"""The audit trail: what leaves a line, when it is durable, how it is asked, and that it stays bounded."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from shoal.errors import TransientError
from shoal.serve_apps import trail as trails
from shoal.serve_apps.models import InvalidParameter
from shoal.serve_apps.rest import create_rest
from shoal.serve_apps.trail import CHANGES, READS, Trail, entry, prune, record_now
from shoal.serve_apps.trail_search import AuditQuery, TrailSearch, matching
from shoal.settings import Settings, load
from shoal.store.trail_files import Segment, TrailFiles
from tests.fixtures.callers import Callers, an_agent

NOW = datetime.now(UTC)
REPORT = {"scraper_name": "s", "error_type": "E", "summary": "the secret plan", "outcome": "worked"}


@pytest.fixture
def callers(tmp_path: Path) -> Callers:
    return Callers(tmp_path)


def lines(settings: Settings) -> list[dict[str, Any]]:
    root = Path(settings.tables_uri) / "_shoal" / "audit"
    return [json.loads(line) for path in sorted(root.rglob("*.jsonl")) for line in path.read_text().splitlines()]


def asked(settings: Settings, **parameters: Any) -> list[dict[str, Any]]:
    return TrailSearch(settings).read(AuditQuery.read(parameters), datetime.now(UTC))["entries"]


def rest(stand: Any, gate: Any, settings: Settings | None = None) -> httpx.AsyncClient:
    app = create_rest(stand.service(), gate=gate, audit=TrailSearch(settings) if settings else None)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://shoal")


async def test_a_change_is_written_before_it_is_begun(stand: Any, callers: Callers) -> None:
    trail = Trail(callers.settings)
    seen: list[dict[str, Any]] = []
    stand.log.on_send = lambda _: seen.extend(lines(callers.settings))
    async with rest(stand, callers.gate(trail=trail)) as http:
        await http.post("/api/v1/agents/fixes", json=REPORT, headers=callers.headers("write"))
    assert [(line["kind"], line["call"], line["caller"]) for line in seen] == [
        ("change", "POST /api/v1/agents/fixes", callers.identity("write"))
    ]
    trail.close()
    (found,) = asked(callers.settings, kind="change")
    assert found["status"] in (201, 202)
    assert found["job"] == stand.log.sent[0]["command_id"]


async def test_without_its_line_no_change_is_made(
    stand: Any, callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    trail = Trail(callers.settings)

    def full(*_: Any) -> None:
        raise TransientError("no space left")

    headers = callers.headers("write")
    monkeypatch.setattr(TrailFiles, "append", full)
    async with rest(stand, callers.gate(trail=trail)) as http:
        answer = await http.post("/api/v1/agents/fixes", json=REPORT, headers=headers)
        assert (answer.status_code, "audit trail" in answer.json()["detail"]) == (503, True)
        assert stand.log.sent == []
        assert (await http.get("/api/v1/scrapes/search", headers=headers)).status_code == 200, "reads go on"
    monkeypatch.undo()
    trail.close()
    assert {line["kind"] for line in lines(callers.settings)} == {"read", "refused"}, "they are written once it can be"


async def test_reads_and_refusals_leave_a_line_and_probes_none(stand: Any, callers: Callers) -> None:
    trail = Trail(callers.settings)
    async with rest(stand, callers.gate(trail=trail)) as http:
        await http.get("/api/v1/scrapes/search?query=top+secret+words", headers=callers.headers("read"))
        await http.get("/api/v1/scrapes/search")
        await http.post("/api/v1/agents/fixes", json=REPORT, headers=callers.headers("read"))
        for path in ("/", "/healthz", "/nowhere"):
            await http.get(path)
    async with an_agent(stand.service(), callers.gate(trail=trail)) as agent:
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call",
                   "params": {"name": "search_scrapes", "arguments": {"query": "top secret words"}}}  # fmt: skip
        await agent.post("/", json=message, headers=callers.headers("read"))
    trail.close()
    assert len(lines(callers.settings)) == 4
    by_key = [one for one in lines(callers.settings) if one["status"] != 401]
    assert {one["caller"] for one in by_key} == {callers.identity("read")}
    assert {one["call"] for one in by_key if one["via"] == "mcp"} == {"tool search_scrapes"}
    assert {(one["kind"], one["via"], one["status"]) for one in lines(callers.settings)} == {
        ("read", "rest", 200), ("refused", "rest", 401), ("refused", "rest", 403), ("read", "mcp", 200),
    }  # fmt: skip


async def test_no_body_no_query_text_no_key_and_no_secret_of_a_path_is_kept(stand: Any, callers: Callers) -> None:
    trail = Trail(callers.settings)
    key = callers.key("admin")
    async with rest(stand, callers.gate(trail=trail)) as http:
        await http.post("/api/v1/agents/fixes", json=REPORT, headers={"X-API-Key": key})
        await http.get("/api/v1/scrapes/search?query=wind+plan", headers={"X-API-Key": key})
        await http.delete(
            "/api/v1/collections/pages/documents/https://u:hunter2@h/x?token=abcdefgh", headers={"X-API-Key": key}
        )
    trail.close()
    text = json.dumps(lines(callers.settings))
    for secret in ("secret plan", "wind", key, key.split("_")[2], "hunter2", "abcdefgh"):
        assert secret not in text
    assert '"name": "pages"' in text, "what was deleted from where is"


async def test_a_hostile_path_is_one_line_of_the_trail(stand: Any, callers: Callers) -> None:
    trail = Trail(callers.settings)
    async with rest(stand, callers.gate(trail=trail)) as http:
        for name in ('x"}{"kind":"change"', "%0d%1b[2J", "%E2%80%AE", "a" * 3000):
            await http.delete(f"/api/v1/collections/pages/documents/{name}", headers=callers.headers("admin"))
        broken = await http.delete("/api/v1/collections/pages/documents/a%0ab", headers=callers.headers("admin"))
        assert broken.status_code in (404, 405), "no path of ours has a line break"
    trail.close()
    written = [line for line in lines(callers.settings) if line["kind"] == "change"]
    assert len(written) == 4
    assert max(len(line["about"]["id"]) for line in written) <= trails.VALUE_CHARS_MAX


async def test_changes_that_come_at_once_share_writes_and_all_are_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load(data_dir=tmp_path)
    trail = Trail(settings)
    writes = 0
    append = TrailFiles.append

    def counted(*args: Any) -> None:
        nonlocal writes
        writes += 1
        append(*args)

    monkeypatch.setattr(TrailFiles, "append", counted)
    await asyncio.gather(*(trail.change(entry("change", NOW, call=str(number))) for number in range(200)))
    assert len(lines(settings)) == 200
    assert writes < 200
    trail.close()


async def test_what_waits_is_bounded_and_what_was_dropped_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trails, "WAITING_MAX", 10)
    settings = load(data_dir=tmp_path)
    trail = Trail(settings)
    for number in range(25):
        trail.read(entry("read", NOW, call=str(number)))
    trail.close()
    written = lines(settings)
    assert len(written) == 11
    assert [line["count"] for line in written if line["kind"] == "dropped"] == [15]


async def test_a_share_of_the_reads_is_kept_and_every_refusal(tmp_path: Path) -> None:
    settings = load(data_dir=tmp_path, audit_read_share=0.5)
    chances = iter([0.1, 0.9, 0.4, 0.6])
    trail = Trail(settings, chance=lambda: next(chances))
    for number in range(4):
        trail.read(entry("read", NOW, call=str(number)))
    trail.refusal(entry("refused", NOW))
    trail.close()
    assert sorted(line.get("call", "-") for line in lines(settings)) == ["-", "0", "2"]


def test_the_lines_of_several_replicas_are_asked_as_one(tmp_path: Path) -> None:
    settings = load(data_dir=tmp_path)
    for number in range(3):  # each call is a process of its own, with its own segment
        record_now(settings, entry("change", NOW + timedelta(seconds=number), call=f"c{number}", caller="a"))
    assert [one["call"] for one in asked(settings)] == ["c2", "c1", "c0"]
    first = TrailSearch(settings).read(AuditQuery.read({"limit": 2}), NOW)
    second = TrailSearch(settings).read(AuditQuery.read({"limit": 2, "cursor": first["next_cursor"]}), NOW)
    assert [one["call"] for one in (*first["entries"], *second["entries"])] == ["c2", "c1", "c0"]
    assert second["next_cursor"] is None


def test_filters() -> None:
    stored = [
        entry("change", NOW, call="DELETE /x", caller="k1", caller_name="ci", collection="pages", request_id="r"),
        entry("read", NOW, call="GET /x", caller="k2", collection="scraper"),
        entry("change", NOW - timedelta(days=30), call="DELETE /x"),
    ]
    raw = [json.dumps(one).encode() for one in stored] + [b'{"torn', b"[]", b"7", b'{"kind":"change"}']
    for parameters, count in (
        ({}, 2), ({"kind": "change"}, 1), ({"caller": "ci"}, 1), ({"caller": "k2"}, 1), ({"call": "delete"}, 1),
        ({"collection": "pages"}, 1), ({"request_id": "r"}, 1), ({"request_id": "x"}, 0), ({"kind": "refused"}, 0),
        ({"since": "2020-01-01"}, 3), ({"until": "2020-01-01"}, 0),
    ):  # fmt: skip
        assert len(matching(raw, AuditQuery.read(parameters), NOW)[0]) == count, parameters


@pytest.mark.parametrize("cursor", ["x", "e30=", "WzEsMl0=", "bnVsbA==", "é"])
def test_a_damaged_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidParameter):
        matching([], AuditQuery.read({"cursor": cursor}), NOW)


def test_a_question_reads_a_bounded_amount_and_says_where_that_did_not_reach(tmp_path: Path) -> None:
    settings = load(data_dir=tmp_path)
    for number in range(3):
        record_now(settings, entry("change", NOW, call=f"c{number}"))
    size = TrailFiles(settings, CHANGES).segments()[0].size_bytes
    found = TrailSearch(settings).read(AuditQuery.read({}), NOW, bytes_max=int(size * 2.5))
    assert (found["count"], found["complete"]) == (2, False)
    assert "narrow" in found["warnings"][0]


def test_old_days_go_and_reads_go_above_their_bytes_but_changes_stay(tmp_path: Path) -> None:
    settings = load(data_dir=tmp_path, audit_days=10, audit_reads_bytes_max=1024 * 1024)
    files = {kind: TrailFiles(settings, kind) for kind in (CHANGES, READS)}
    for of_kind in files.values():
        for day in ("20260101", "20260115", "20260119", "20260120"):
            of_kind.append(Segment(day, "000000-a-1.jsonl"), b"", b"x" * 700_000)
    assert prune(files, settings, datetime(2026, 1, 20, tzinfo=UTC)) == 4
    assert [one.day for one in files[CHANGES].segments()] == ["20260115", "20260119", "20260120"]
    assert [one.day for one in files[READS].segments()] == ["20260120"]


def test_a_segment_only_grows_and_after_a_failure_another_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load(data_dir=tmp_path)
    files = TrailFiles(settings, CHANGES)
    writer = trails.SegmentWriter(files, lambda: NOW)
    assert writer.write(b"a\n")
    assert not writer.write(b"b\n")
    with monkeypatch.context() as broken:
        broken.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk")))
        with pytest.raises(TransientError):
            writer.write(b"c\n")
    assert writer.write(b"d\n")
    assert [files.read(one) for one in files.segments()] == [b"a\nb\nc\n", b"d\n"]


async def test_the_trail_is_asked_over_rest_by_an_admin_alone(stand: Any, callers: Callers) -> None:
    record_now(callers.settings, entry("change", NOW, call="keys create", caller="root"))
    async with rest(stand, callers.gate(), callers.settings) as http:
        assert (await http.get("/api/v1/audit", headers=callers.headers("write"))).status_code == 403
        answer = await http.get("/api/v1/audit?kind=change", headers=callers.headers("admin"))
        assert [one["call"] for one in answer.json()["entries"]] == ["keys create"]
        await http.get("/api/v1/audit", headers=callers.headers("admin"))
        for wrong in ("kind=all", "limit=0", "since=soon", "nonsense=1", "cursor=x"):
            assert (await http.get(f"/api/v1/audit?{wrong}", headers=callers.headers("admin"))).status_code == 422


async def test_the_trail_logs_nothing_of_what_it_writes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    trail = Trail(load(data_dir=tmp_path))
    await trail.change(entry("change", NOW, call="secret-call"))
    trail.close()
    assert "secret-call" not in caplog.text
