"""The support bundle: what one needs, whatever is broken, and no secret in any part of it."""

from __future__ import annotations

import json
import stat
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from shoal.cluster import support_bundle
from shoal.cluster.support_bundle import LOG_BYTES_MAX, Scrubber, bundle
from shoal.settings import Settings
from shoal.store.state_files import write_state

NOW = datetime(2026, 1, 20, 3, tzinfo=UTC)
PLANTED = {
    "openai": "sk-proj-hunter2hunter2hunter2",
    "kafka": "correct horse battery",
    "aws": "wJalrXUtnFEMI/K7MDENG/bPxRfi",
    "shoal": "shoal-key-0123456789",
    "url": "pa55word-in-a-url",
}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PLANTED["aws"])
    monkeypatch.setattr(support_bundle, "_check", lambda _: {"errors": 0})  # a process of its own: seconds
    return Settings(
        data_dir=tmp_path / "data", embedding_provider="hash", openai_api_key=PLANTED["openai"],
        kafka_properties={"sasl.password": PLANTED["kafka"], "sasl.username": "me"}, api_key=PLANTED["shoal"],
        _env_file=None,
        openai_base_url=f"http://me:{PLANTED['url']}@127.0.0.1:9/v1",
    )  # fmt: skip


def parts_of(settings: Settings, to: Path) -> tuple[dict[str, str], list[str]]:
    missing = bundle(settings, to, "http://127.0.0.1:9", NOW, lambda _: None)
    with tarfile.open(to) as archive:
        found = {entry.name: archive.extractfile(entry) for entry in archive.getmembers()}
        return {name: file.read().decode() for name, file in found.items() if file is not None}, missing


def test_secrets_stand_nowhere_in_it(settings: Settings, tmp_path: Path) -> None:
    logs = settings.home / "logs"
    logs.mkdir(parents=True)
    said = "\n".join(f"it said {secret} and went on" for secret in PLANTED.values())
    (logs / "service.log").write_text(f"{said}\nGET https://x.example/?api_key={PLANTED['url']}\nthe end\n")
    write_state(settings, "status.json", {"at": "now", "writer": {"last_error": said}, "session": ""})
    parts, _ = parts_of(settings, tmp_path / "a.tar.gz")
    for name, text in parts.items():
        assert [which for which, secret in PLANTED.items() if secret in text and which != "url"] == [], name
    for name in ("shoal-support/settings.json", "shoal-support/status.json", "shoal-support/doctor.json"):
        assert f"me:{PLANTED['url']}" not in parts[name]
    assert f"api_key={PLANTED['url']}" not in parts["shoal-support/logs/service.log"]
    assert "the end" in parts["shoal-support/logs/service.log"]
    shown = {row["name"]: row["value"] for row in json.loads(parts["shoal-support/settings.json"])}
    assert shown["openai_api_key"] in ("***", "REDACTED")
    assert shown["http_port"] == 8000


def test_what_can_not_be_had_is_told_and_the_rest_is_there(settings: Settings, tmp_path: Path) -> None:
    parts, missing = parts_of(settings, tmp_path / "a.tar.gz")
    names = {name.removeprefix("shoal-support/") for name in parts}
    assert names == {"versions.json", "settings.json", "doctor.json", "check.json", "missing.txt"}
    assert [line.split(":")[0] for line in missing] == ["status.json", "index.json", "metrics.txt", "logs"]
    assert parts["shoal-support/missing.txt"].splitlines() == missing
    assert json.loads(parts["shoal-support/versions.json"])["packages"]["shoal"]


def test_logs_are_their_ends_and_the_file_is_for_its_owner(settings: Settings, tmp_path: Path) -> None:
    (settings.home / "logs").mkdir(parents=True)
    (settings.home / "logs" / "service.log").write_text("begin" + "." * (2 * LOG_BYTES_MAX) + "end")
    to = tmp_path / "a.tar.gz"
    parts, _ = parts_of(settings, to)
    log = parts["shoal-support/logs/service.log"]
    assert log.endswith("end")
    assert len(log) == LOG_BYTES_MAX
    assert stat.S_IMODE(to.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        bundle(settings, to, "", NOW, lambda _: None)


def test_a_secret_within_json_and_one_that_begins_another_go_whole() -> None:
    scrubber = Scrubber(['quote"and\\slash', "secret", "secret-and-more", "abc"])
    assert "slash" not in scrubber.json({"a": 'quote"and\\slash'})
    assert scrubber.text("secret-and-more abc") == "REDACTED abc"


def test_what_is_counted_under_a_telling_name_stays_and_the_rest_is_still_json() -> None:
    told = {"embedder": {"tokens": 12, "token": "abcdef-0123", "by": [{"tokens": 3.5, "said": 'password: "hunter2"'}]}}
    shown = json.loads(Scrubber([]).json(told))
    assert shown["embedder"]["tokens"] == 12
    assert shown["embedder"]["by"][0]["tokens"] == 3.5
    assert "abcdef-0123" not in str(shown)
    assert "hunter2" not in str(shown)
